"""What a method's results are called among a program's outputs."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from gaia_fast.inspection.requests import SCORE
from gaia_fast.method import Method
from gaia_fast.options import Measure

LOGITS, PRECONDITIONS = "logits", "preconditions"


def decision_name(score: str) -> str:
    """Returns what the decision by a score is called among outputs: "is_ood" with "score"."""
    return "is_ood" if score == SCORE else f"is_ood_{score}"


class ResultNames(NamedTuple):
    """Of one method.

    Attributes:
        score, packed, component: as in `gaia_fast.measurement.Result`; no component, None, where nothing is divided.
        counted: whether the score is of non-zeros, so that it rests on the preconditions where they are counted.
    """

    score: str
    packed: str
    component: str | None
    counted: bool

    @classmethod
    def of(cls, score: str, method: Method) -> "ResultNames":
        """Returns the names that go with that of a method's score: "packed" and "component" with "score"."""
        begin = "" if score == SCORE else f"{score}_"
        component = f"{begin}component" if method.needs_output_component else None
        return cls(score, f"{begin}packed", component, method.name == Measure.GAIA_Z)

    def component_in(self, outputs: Mapping[str, Tensor]) -> Tensor | None:
        """Returns the output component; None where nothing is divided."""
        return None if self.component is None else outputs[self.component]
