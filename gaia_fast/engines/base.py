"""What an engine is: a way to measure batches of images with one model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from gaia_fast.backends import Choice
from gaia_fast.compiler.preparation import Prepared
from gaia_fast.compiler.program_cache import ProgramCache
from gaia_fast.inspection import checks
from gaia_fast.inspection.head import Head, HeadFinder
from gaia_fast.inspection.requests import Request
from gaia_fast.inspection.survey import Passes
from gaia_fast.measurement import Measurement


class Subject:
    """What is measured: a model, and what is asked of it.

    Args:
        model: the classifier, checked and in eval mode.
        modules: all of the model's.
        requests: the methods, each with the layers that it inspects; none for the logits alone.
        head: where GAIA-A's components meet, as the user named it; None to find it.
    """

    def __init__(
        self,
        model: nn.Module,
        modules: Sequence[nn.Module],
        requests: Sequence[Request],
        head: str | nn.Module | None,
    ) -> None:
        self.model, self.modules, self.requests = model, list(modules), tuple(requests)
        self.requested_head = head
        self.passes = Passes()
        self._heads = HeadFinder(model, self.modules, head, self.passes)

    def head(self, x: Tensor) -> Head | None:
        """Returns the head for images like `x`; None where no method needs one.

        Raises:
            LayerError: there is none, or one without the A_last that a method needs.
        """
        if not any(each.method.needs_head for each in self.requests):
            return None
        head = self._heads.find(x)
        if any(each.method.needs_output_component for each in self.requests):
            head.check_last()
        return head


@dataclass(frozen=True)
class EnginePlan:
    """What an engine does on images of one kind, and why; parts of `gaia_fast.plan.Plan`.

    Attributes:
        derivations: for each request, for each of its maps; empty but in the compiled engine.
    """

    engine: Choice
    backend: Choice
    runtime: Choice | None = None
    derivations: tuple[tuple[str, ...], ...] = ()
    programs: str = ""


class Engine(Protocol):
    """A way to measure batches; safe to use from several threads at once."""

    def plan(self, x: Tensor) -> EnginePlan:
        """Returns what `score` does on images like `x`, N at least 1; may prepare it."""

    def prepare(self, x: Tensor, tune: str | None = None, cache: ProgramCache | None = None) -> None:
        """Makes what `score` needs for images like `x`; `tune` is of `gaia_fast.options.Tune`.

        Programs are taken from `cache` where it has them, and kept there.

        Raises:
            ArgumentError: there is nothing to prepare. ModelError, BackendError: it cannot be made.
        """

    def program(self, x: Tensor) -> Prepared | None:
        """Returns the compiled program for images like `x`; None without one, or where the model has changed since."""

    def score_prepared(self, x: Tensor) -> Measurement | None:
        """Scores with what is prepared; that the model is unchanged is checked meanwhile, not before.

        Returns:
            None where nothing is prepared for such images, or the model has changed since.
        """

    def score(self, x: Tensor) -> Measurement:
        """Scores one batch, of the model's dtype and device, N at least 1.

        Raises:
            GaiaError: of the kind that fits. The model is left as it was, whatever happens.
        """


def checked(measured: Measurement) -> Measurement:
    """Returns a measurement; NonFiniteError where a logit or a score is no finite number."""
    checks.check_logits(measured.logits)
    for each in measured.results:
        checks.check_score(each.score)
    return measured
