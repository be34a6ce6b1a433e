"""Checks of images, results and the model's memory that end a program, where a device runs it in one launch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gaia_fast.compiler.ir.results import LOGITS, PRECONDITIONS, ResultNames
from gaia_fast.compiler.runtimes.runner import Guard, Runner, no_guard
from gaia_fast.inspection.guards import ModelGuard
from gaia_fast.ops import result_checks


@dataclass(frozen=True)
class Checks:
    """What is asked of every batch, on the device: nothing here waits for it.

    Attributes:
        outputs, results: the names of what the program gives; see `Program`.
        state: of the model, when it was captured.
    """

    outputs: tuple[str, ...]
    results: tuple[ResultNames, ...]
    state: ModelGuard

    def before(self, x: Tensor) -> Tensor:
        """Returns (N,) bools: which images are finite; none where the model's memory holds something else."""
        views, expected = self.state.sample_on(x.device)
        finite = result_checks.finite_per_image(x)
        if not views:
            return finite
        now = torch.empty_like(expected)
        # A block for each view. A concatenation starts as many for the shortest as for the longest: of ResNet34 on an
        # H200 it took 116 us, a fifth of what the program does.
        torch._foreach_copy_(now.split([each.numel() for each in views]), views)
        return finite & (now == expected).all()

    def after(self, outputs: Sequence[Tensor]) -> Tensor:
        """Returns (N,) bools: which images' results mean something."""
        found = dict(zip(self.outputs, outputs, strict=True))
        logits, fine = found[LOGITS], None
        for each in self.results:
            preconditions = found.get(PRECONDITIONS) if each.counted else None
            holds = result_checks.results_hold_per_image(
                logits, found[each.score], preconditions, each.component_in(found)
            )
            fine = holds if fine is None else fine & holds
        return result_checks.finite_per_image(logits) if fine is None else fine


class Checked:
    """A runner with the checks around it: one output more, (N,) bools, whether an image's results mean something."""

    def __init__(self, run: Runner, checks: Checks) -> None:
        self._run, self._checks = run, checks

    def __call__(self, x: Tensor, guard: Guard = no_guard) -> tuple[Tensor, ...]:
        before = self._checks.before(x)
        outputs = self._run(x, guard)
        return (*outputs, before & self._checks.after(outputs))
