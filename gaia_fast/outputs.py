"""What a detector hands to its user: the prediction and its score, or several scores, from one call."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor
from typing_extensions import Self

from gaia_fast.calibration import decide


class _LogitsAndScore(NamedTuple):
    logits: Tensor
    score: Tensor


class GaiaOutput(_LogitsAndScore):
    """The prediction and its score, from one call: the pair `logits, score`, with what was asked for beside them.

    Attributes:
        logits: (N, C), detached, in the model's dtype.
        score: (N,) float32; larger = more out of distribution.
        matrix: (N, L, K_max), the zero-padded abnormality matrix Lambda, where it was asked for.
        threshold: the detector's, when this was scored; None before it was calibrated.
    """

    matrix: Tensor | None = None
    threshold: float | None = None

    def __new__(
        cls, logits: Tensor, score: Tensor, matrix: Tensor | None = None, threshold: float | None = None
    ) -> Self:
        made = super().__new__(cls, logits, score)
        made.matrix, made.threshold = matrix, threshold
        return made

    def _replace(self, **changed: Any) -> Self:
        return type(self)(**{**self._asdict(), **vars(self), **changed})

    @property
    def is_ood(self) -> Tensor | None:
        """(N,) bool, score > threshold (Eq. 1), and True where the score is NaN; None where no threshold is known."""
        return None if self.threshold is None else decide(self.score, self.threshold)


class _LogitsAndScores(NamedTuple):
    logits: Tensor
    scores: dict[str, Tensor]


class GaiaScores(_LogitsAndScores):
    """The prediction and its scores, from one call: the pair `logits, scores`, with what was asked for beside them.

    Attributes:
        logits: (N, C), detached, in the model's dtype.
        scores: by name, each (N,) float32; larger = more out of distribution.
        matrices: by GAIA score, (N, L, K_max), the zero-padded abnormality matrix Lambda; empty unless asked for.
        thresholds: by name, those of the detector when this was scored.
    """

    matrices: dict[str, Tensor] = {}  # noqa: RUF012  (of each object its own, but for those that others make)
    thresholds: dict[str, float] = {}  # noqa: RUF012

    def __new__(
        cls,
        logits: Tensor,
        scores: dict[str, Tensor],
        matrices: Mapping[str, Tensor] | None = None,
        thresholds: Mapping[str, float] | None = None,
    ) -> Self:
        made = super().__new__(cls, logits, scores)
        made.matrices, made.thresholds = dict(matrices or {}), dict(thresholds or {})
        return made

    def _replace(self, **changed: Any) -> Self:
        return type(self)(**{**self._asdict(), **vars(self), **changed})

    @property
    def is_ood(self) -> dict[str, Tensor]:
        """By name, of scores whose threshold is known: (N,) bool, score > threshold (Eq. 1), True where it is NaN."""
        known = self.thresholds
        return {name: decide(score, known[name]) for name, score in self.scores.items() if name in known}
