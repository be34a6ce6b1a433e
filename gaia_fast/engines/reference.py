"""The reference as an engine: plain PyTorch, any dtype, no kernels."""

import torch
from torch import Tensor

from gaia_fast import reference
from gaia_fast.backends import Choice
from gaia_fast.compiler.program_cache import ProgramCache
from gaia_fast.engines.base import EnginePlan, Subject, checked
from gaia_fast.errors import ArgumentError
from gaia_fast.inspection import checks
from gaia_fast.measurement import FeatureMap, Measurement, Result


class ReferenceEngine:
    """See `gaia_fast.engines.base.Engine`.

    Args:
        subject: what is measured.
        backend: "auto" or "torch": the reference uses no kernels.
    """

    def __init__(self, subject: Subject, backend: str) -> None:
        self._subject, self._backend = subject, backend

    def plan(self, x: Tensor) -> EnginePlan:
        if self._backend not in ("auto", "torch"):
            raise ArgumentError(
                f"engine='reference' uses no kernels, so backend={self._backend!r} means nothing; use 'torch'"
            )
        return EnginePlan(Choice("reference", "asked for"), Choice("torch", "the reference uses no kernels"))

    def prepare(self, x: Tensor, tune: str | None = None, cache: ProgramCache | None = None) -> None:
        raise ArgumentError("engine='reference' has nothing to prepare; use engine='compiled' or 'auto'")

    def program(self, x: Tensor) -> None:
        return None

    def score_prepared(self, x: Tensor) -> Measurement | None:
        return None

    def score(self, x: Tensor) -> Measurement:
        """Scores with one method after the other, each in passes of its own: for truth, not for speed."""
        self.plan(x)
        checks.check_pixels(x)
        subject = self._subject
        found = [
            reference.run(each.method, subject.model, x, each.layer_names, subject.requested_head)
            for each in subject.requests
        ]
        logits = found[0].logits if found else reference.logits(subject.model, x)
        return checked(Measurement(logits, tuple(map(_result, found))))


def _result(found: reference.Reference) -> Result:
    widths = [FeatureMap(str(index), each.shape[1], 1, 1) for index, each in enumerate(found.abnormality)]
    return Result(found.score.float(), tuple(widths), torch.cat(found.abnormality, dim=1))
