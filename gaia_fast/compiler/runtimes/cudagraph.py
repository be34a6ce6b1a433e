"""The program operator by operator, recorded into CUDA graphs: no compiler, and one launch."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from sys import maxsize

import torch
from torch import Tensor, fx

from gaia_fast.backends import has_kernels
from gaia_fast.compiler.frontend.example_batch import repeated
from gaia_fast.compiler.ir.results import PRECONDITIONS
from gaia_fast.compiler.ir.rewriting import copy_of
from gaia_fast.compiler.pipeline import cuda, run_passes
from gaia_fast.compiler.runtimes import fusion_checks
from gaia_fast.compiler.runtimes.checked import Checked, Checks
from gaia_fast.compiler.runtimes.eager import Eager
from gaia_fast.compiler.runtimes.fixed_sizes import FixedSizes
from gaia_fast.compiler.runtimes.recorded import Recorded, check_recordable
from gaia_fast.compiler.runtimes.runner import Guard, no_guard
from gaia_fast.errors import BackendError, CompilationError, first_line

# What stands first is taken unless it is so much slower than another: else chance would decide, and with it the
# rounding.
_SLOWER = 1.1
# Of the largest value, as in `Recorded`: rounding, at the end of a network. Faults are looked for where they arise.
_MOST_OFF = 0.05


class CudaGraph(FixedSizes):
    """Records the program for each number of images that is prepared, in the fastest of a few forms.

    Channels last with convolutions fused by cuDNN, where that is right (`fusion_checks`); channels last; as it is.

    Many more images than were ever prepared run operator by operator: replaying a small graph often takes longer.

    Args:
        graph: the program.
        example: images, of which the first is enough.
        checks: see `Recorded`.

    Raises:
        BackendError: the images are not on a CUDA device. CompilationError: the program cannot be recorded.
    """

    def __init__(self, graph: fx.GraphModule, example: Tensor, checks: Checks | None = None) -> None:
        check_cuda(example)
        check_recordable(graph)

        def record(images: int) -> Recording:
            # cuDNN's algorithms are timed: by its rules of thumb it takes others for single images than are fastest.
            with fusion_checks.benchmark():
                return _fastest(graph, repeated(example, images), checks)

        eager = Eager(graph)
        super().__init__(record, otherwise=eager if checks is None else Checked(eager, checks))


@dataclass(frozen=True)
class Recording:
    """A recorded program.

    Attributes:
        run: what runs it.
        how: in which form it was recorded, and why in no other.
    """

    run: Recorded
    how: str

    def __call__(self, x: Tensor, guard: Guard = no_guard) -> tuple[Tensor, ...]:
        return self.run(x, guard)


def _fastest(graph: fx.GraphModule, x: Tensor, checks: Checks | None) -> Recording:
    kernels = has_kernels(x.device, x.dtype)

    def form(l2_bytes: int, channels_last: bool) -> fx.GraphModule:
        return run_passes(cuda(x.shape[0], l2_bytes, kernels, channels_last), copy_of(graph))

    found: list[Recording] = []
    failed: list[RuntimeError] = []
    # Bias, residual and ReLU are a kernel each, unless one of this package's does it all, and counts: whatever the size
    # of the maps. cuDNN's do it all, too; there the counts are left to the end.
    for last, how in ((True, "channels last"), (False, "in the layout it came in")):
        try:
            found.append(Recording(Recorded(Eager(form(0, last)), x, checks), how))
        except RuntimeError as error:
            failed.append(error)
    if not found:
        if isinstance(failed[-1], torch.OutOfMemoryError):
            raise failed[-1]
        raise CompilationError(
            f"the program cannot be recorded into a CUDA graph ({first_line(failed[-1])}); use runtime='eager'"
        ) from failed[-1]
    fused, why = _fused(form(maxsize, True), x, checks, [each.run for each in found])
    if fused is not None:
        found.insert(0, Recording(fused, f"channels last, {why}"))
    # Of forms that give another result at every replay none is taken where there is one that does not.
    found = [each for each in found if each.run.repeats(x)] or found
    because = "slower" if any(each.run is fused for each in found) else "not the same at every replay"
    spent = [each.run.milliseconds() for each in found]
    chosen = next(each for each, time in zip(found, spent, strict=True) if time <= _SLOWER * min(spent))
    if chosen.run is fused:
        return chosen
    return Recording(chosen.run, f"{chosen.how}; {why if fused is None else f'{because}: {why}'}")


def _fused(
    laid_out: fx.GraphModule, x: Tensor, checks: Checks | None, unfused: Sequence[Recorded]
) -> tuple[Recorded | None, str]:
    """The program with convolutions fused, if it gives what it does without; and how it is, or why it is not there."""
    try:
        fusion = fusion_checks.fused(laid_out, x)
        if fusion.graph is None:
            return None, fusion.how
        found = Recorded(Eager(fusion.graph), x, checks)
        fault = _disagrees(found, unfused, x, checks.outputs if checks is not None else ())
    except RuntimeError as error:
        return None, f"with fused convolutions it cannot be recorded ({first_line(error)})"
    return (None, f"with fused convolutions {fault}") if fault else (found, fusion.how)


def _disagrees(found: Recorded, unfused: Sequence[Recorded], x: Tensor, names: Sequence[str]) -> str:
    """What a recording gives otherwise than others of the same program, of which the first is right; empty for nothing.

    By how much these differ among each other is what rounding does.
    """
    # Images that overflow, and images that are none, leave in the graph's memory what must not reach the next batch.
    huge = x / x.abs().amax().clamp_min(torch.finfo(x.dtype).tiny) * (torch.finfo(x.dtype).max / 2)
    for images in (x, torch.full_like(x, torch.nan), fusion_checks.other_images(x), huge, x):
        expected, other, got = (run(images) for run in (unfused[0], unfused[-1], found))
        fine = expected[0].isfinite().all(1)
        if bool((got[0].isfinite().all(1) & ~fine).any()):
            return "images that overflow go unseen"
        for name, *each in zip_longest(names, expected, other, got):
            # Of preconditions all that counts is whether they are positive.
            should, same, does = [(one > 0).float() for one in each] if name == PRECONDITIONS else each
            if should.is_floating_point() and should.numel() and bool(fine.any()):
                size, own, off = (_off(each, should[fine]) for each in (0, same[fine], does[fine]))
                if not off <= max(_MOST_OFF * size, 2 * own):
                    return "it gives other results"
    return ""


def _off(found: Tensor | int, expected: Tensor) -> float:
    """The largest difference where numbers are expected; NaN where there are none instead."""
    expected, finite = expected.double(), expected.isfinite()
    return float((found - expected).where(finite, 0).abs().amax())


def check_cuda(example: Tensor) -> None:
    """Raises BackendError unless images are on a CUDA device."""
    if example.device.type != "cuda":
        raise BackendError(f"runtime='cudagraph' needs a CUDA device; the images are on {example.device}")
