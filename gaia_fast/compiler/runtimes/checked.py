"""Checks of images, results and the model's memory around a program, where a device runs it in one launch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gaia_fast.backends import KERNEL_DTYPES
from gaia_fast.compiler.ir.results import LOGITS, PRECONDITIONS, ResultNames
from gaia_fast.compiler.runtimes.runner import Guard, Runner, no_guard
from gaia_fast.inspection.guards import ModelGuard
from gaia_fast.ops import result_checks
from gaia_fast.ops.check_results import MOST, check_results, pieces_of
from gaia_fast.ops.copy_and_check import backend_for, copy_and_check, parts_of


class _Results(NamedTuple):
    """Of the outputs of a program, what is checked; see `gaia_fast.ops.check_results`."""

    logits: Tensor
    scores: list[Tensor]
    preconditions: Tensor | None
    components: list[Tensor]


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

    def results_in(self, outputs: Sequence[Tensor]) -> _Results:
        """Returns what is checked of what the program gave."""
        found = dict(zip(self.outputs, outputs, strict=True))
        components = [each.component_in(found) for each in self.results]
        return _Results(
            found[LOGITS],
            [found[each.score] for each in self.results],
            found.get(PRECONDITIONS) if any(each.counted for each in self.results) else None,
            [each for each in components if each is not None],
        )

    def in_launches(self, images: Tensor, outputs: Sequence[Tensor]) -> "ChecksInLaunches | None":
        """Returns the same in a launch before and one behind a program; None where there are no kernels for it.

        Args:
            images: where the program reads its images.
            outputs: of the program.
        """
        results = self.results_in(outputs)
        backend = backend_for(None, images)
        checked = [results.logits, *results.scores, *results.components]
        checked += [] if results.preconditions is None else [results.preconditions]
        taken = all(each.dtype in KERNEL_DTYPES and each.device == images.device for each in checked)
        if backend == "torch" or not taken or len(results.scores) + len(results.components) > MOST:
            return None
        return ChecksInLaunches(self, images, backend)

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


class ChecksInLaunches:
    """Copies images to where a program reads them, and ends the program, with the checks in the same two launches.

    How they came out is told in memory of the host, as counts that only grow: whoever has waited for a launch may read
    them while later ones run. What these find is then taken for a failure of the earlier one's, and looked at closer.
    """

    def __init__(self, checks: Checks, images: Tensor, backend: str) -> None:
        self._checks, self._images, self._backend = checks, images, backend
        device = images.device
        self._finite = torch.ones((images.shape[0], parts_of(images)), dtype=torch.uint8, device=device)
        # Views that are kept: the kernel reads what they are views of.
        self._memory, self._expected = checks.state.sample_on(device)
        self._pieces = pieces_of(self._memory) if self._memory else None
        self._counts = torch.zeros(3, dtype=torch.int64, device=device)
        self._told = torch.zeros(2, dtype=torch.int64, device="cpu", pin_memory=device.type == "cuda")
        self._read = self._told.numpy()  # a tenth of what it takes to ask a tensor
        self._yes = torch.ones(images.shape[0], dtype=torch.bool, device="cpu")
        self._no = torch.zeros_like(self._yes)

    @property
    def launches(self) -> int:
        """How many have ended."""
        return int(self._read[1])

    @property
    def failures(self) -> int:
        """How many of them found something."""
        return int(self._read[0])

    def copy(self, x: Tensor) -> None:
        """Copies images to where the program reads them."""
        copy_and_check(x, self._images, self._finite, backend=self._backend)

    def end(self, outputs: Sequence[Tensor]) -> None:
        """Checks what was copied, what the program gave, and the model's memory."""
        check_results(
            *self._checks.results_in(outputs),
            self._finite,
            self._memory,
            self._expected,
            self._pieces,
            self._counts,
            self._told,
            backend=self._backend,
        )

    def answers(self, launch: int, failures: int) -> Tensor:
        """Returns (N,) bools on the CPU, all alike: whether nothing is wrong with a launch that was waited for.

        Args:
            launch: its number, from 1.
            failures: as they were before it started.
        """
        return self._yes if self.launches >= launch and self.failures == failures else self._no


class Checked:
    """A runner with the checks around it: one output more, (N,) bools, whether an image's results mean something."""

    def __init__(self, run: Runner, checks: Checks) -> None:
        self._run, self._checks = run, checks

    def __call__(self, x: Tensor, guard: Guard = no_guard) -> tuple[Tensor, ...]:
        before = self._checks.before(x)
        outputs = self._run(x, guard)
        return (*outputs, before & self._checks.after(outputs))
