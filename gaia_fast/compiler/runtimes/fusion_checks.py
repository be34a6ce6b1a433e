"""cuDNN's fused convolutions, each held to the operators in whose place it is before anything is made of it.

Convolution by convolution, because faults hang on the shape and the dtype: one that is wrong for 7x7 maps in bfloat16
need not cost the others, and, where it stands alone, what it gives differs from what it should by rounding or by a
fault, and by nothing between. At the end of a network rounding has flipped units, and both look alike.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from textwrap import shorten
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from gaia_fast.compiler.ir.rewriting import copy_of
from gaia_fast.compiler.passes.cudnn_fusion import CONVOLUTION_ADD_RELU, FUSED, INDEX, unfused
from gaia_fast.compiler.pipeline import cudnn, run_passes
from gaia_fast.compiler.verification import lost, rounding
from gaia_fast.errors import CompilationError, first_line

# A fused convolution that takes so much longer than what it stands for is left out: some kernels are many times slower.
_SLOWER = 1.5
_ROUNDS = 5
_CALLS = 5


class Fusion(NamedTuple):
    """A program with fused convolutions, if there is one, and what became of all that could be fused."""

    graph: fx.GraphModule | None
    how: str


def other_images(x: Tensor) -> Tensor:
    """Returns images that are not those of a batch, nor like each other."""
    contrast = torch.linspace(0.5, 1.5, x.shape[0], dtype=x.dtype, device=x.device)
    return (x.roll(1, -1) + 1) * contrast[:, None, None, None]


def obstacle() -> str:
    """Why nothing may be fused here, by the user's settings; empty where it may."""
    cudnn_settings = torch.backends.cudnn
    if not cudnn_settings.enabled:
        return "torch.backends.cudnn.enabled is off"
    # The fused operators know no such setting.
    if cudnn_settings.deterministic or torch.are_deterministic_algorithms_enabled():
        return "cuDNN's fused convolutions are not deterministic, as is asked for"
    return ""


def fused(graph: fx.GraphModule, x: Tensor) -> Fusion:
    """Returns a program with those of its convolutions fused for which that is right, and no slower, on a batch like x.

    Args:
        graph: a program, channels last; stays as it was.
        x: images on a CUDA device.
    """
    if why := obstacle():
        return Fusion(None, why)
    everything = run_passes(cudnn(), copy_of(graph))
    found = _Examination(everything)
    with torch.cuda.device(x.device), torch.no_grad():
        for images in (x, other_images(x)):
            found.run(images)
    total = sum(1 for _ in _fused_nodes(everything))
    left_out = found.faults
    if len(left_out) == total:
        return Fusion(None, _described(total, left_out, False))
    try:
        made = run_passes(cudnn(left_out, found.hides_overflow), copy_of(graph))
    except CompilationError as error:
        return Fusion(None, f"cuDNN's fused convolutions hide overflow, and {first_line(error)}")
    return Fusion(made, _described(total, left_out, found.hides_overflow))


def _fused_nodes(graph: fx.GraphModule) -> Iterator[fx.Node]:
    return (node for node in graph.graph.nodes if node.target in FUSED)


def _described(total: int, left_out: dict[int, str], guarded: bool) -> str:
    if not total:
        return "no convolution has a ReLU behind it that can be fused"
    told = f"{total - len(left_out)} of {total} convolutions fused with their ReLUs by cuDNN"
    if guarded:
        told += ", which hides overflow: looked for in the maps"
    for reason, times in Counter(left_out.values()).items():
        told += f"; {times} left: {reason}"
    return told


class _Examination(fx.Interpreter):  # type: ignore[misc]
    """Runs a program with fused convolutions; compares each with what it stands for, which goes on in its place.

    Attributes:
        faults: of those that cannot be used, by their index, why.
        hides_overflow: whether one that can be used makes numbers of what is none.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.faults: dict[int, str] = {}
        self.hides_overflow = False
        self._slower: dict[str, bool] = {}  # by the sizes of the arguments

    def run_node(self, n: fx.Node) -> Any:
        if n.target not in FUSED:
            return super().run_node(n)
        args, _ = self.fetch_args_kwargs_from_env(n)
        expected = unfused(n.target, args)
        index = n.meta[INDEX]
        if index not in self.faults:
            try:
                fault = self._fault(n.target, args, expected)
            except RuntimeError as error:
                fault = f"cuDNN refuses it ({shorten(first_line(error), 100, placeholder='...')})"
            if fault:
                self.faults[index] = fault
        return expected

    def _fault(self, target: Any, args: tuple[Any, ...], expected: Tensor) -> str:
        found = _on_nan(target, args, expected)
        if found.dtype != expected.dtype or found.shape != expected.shape:
            return "it gives something else"
        off = (found.double() - expected.double()).abs()
        if not bool((off <= _rounding(target, args)).all()):
            return "it is off by more than rounding"
        hides = not all(_keeps_what_is_not_finite(target, each) for each in _not_finite(target, args))
        if hides and expected.dtype == torch.float16:
            return "it hides overflow, which in float16 is near"
        if self._is_slower(target, args):
            return "it is slower"
        self.hides_overflow |= hides
        return ""

    def _is_slower(self, target: Any, args: tuple[Any, ...]) -> bool:
        key = str([target, *(each.shape if isinstance(each, Tensor) else each for each in args)])
        if key not in self._slower:
            spent = _milliseconds(lambda: target(*args), args[0].device)
            self._slower[key] = spent > _SLOWER * _milliseconds(lambda: unfused(target, args), args[0].device)
        return self._slower[key]


def _on_nan(target: Any, args: tuple[Any, ...], expected: Tensor) -> Tensor:
    """A fused operator's result, in memory that held NaN: what it does not write, or multiplies by zero, is seen."""
    target(*args)  # the first run times algorithms, and leaves their results in that memory
    junk = torch.full_like(expected, torch.nan)
    del junk  # the allocator gives the block that came back last
    result: Tensor = target(*args)
    return result


def _rounding(target: Any, args: tuple[Any, ...]) -> Tensor:
    """By how much an operator, and those in whose place it is, may be off from each other; float64.

    Plain PyTorch's own error, twice. It rounds what a convolution gives, that with the bias, and that with the
    residual, each by half an epsilon, where the fused operator rounds once. And the convolution itself adds up products
    that are each rounded: at random, which makes of them the root of the sum of their squares. Of that the largest of a
    map counts: algorithms that transform tiles spread errors over them.
    """
    x, weight, *residual, bias, stride, padding, dilation, groups = args
    last = stride, padding, dilation, False, [0, 0], groups
    convolution = torch.ops.aten.convolution.default
    y = convolution(x, weight, None, *last)
    squares = convolution(x.float().square(), weight.float().square(), None, *last)
    added = y.double().abs() + bias.double().abs()[:, None, None]
    for each in residual[:1]:  # alpha follows
        added = added + each.double().abs()
    noise = squares.amax((2, 3), keepdim=True).double().sqrt()
    return 2 * rounding(y) * added + max(1e-3, lost(y)) * noise


def _not_finite(target: Any, args: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """What a fused operator is given, but for a map of what are no numbers."""
    for place in (0, 2) if target is CONVOLUTION_ADD_RELU else (0,):
        for value in (torch.nan, torch.inf):
            yield (*args[:place], torch.full_like(args[place], value), *args[place + 1 :])


def _keeps_what_is_not_finite(target: Any, args: tuple[Any, ...]) -> bool:
    return bool((unfused(target, args).isfinite() | ~target(*args).isfinite()).all())


def _milliseconds(run: Callable[[], object], device: torch.device) -> float:
    """The least that a few calls took, of a few times; recorded, as they will be: else launches would be timed."""
    beside, graph = torch.cuda.Stream(device), torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=beside, capture_error_mode="thread_local"):
        for _ in range(_CALLS):
            run()
    spent = []
    for _ in range(_ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        spent.append(start.elapsed_time(end))
    return min(spent)


class _Benchmark:
    """Has cuDNN time its algorithms while anybody asks for it.

    The setting is the process's: who leaves last restores it. Convolutions of other threads are timed meanwhile, too:
    slower the first time, and right.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before = False

    @contextmanager
    def __call__(self) -> Iterator[None]:
        if torch.backends.cudnn.deterministic or torch.are_deterministic_algorithms_enabled():
            yield  # which is the fastest is not the same each time
            return
        with self._lock:
            if self._users == 0:
                self._before = torch.backends.cudnn.benchmark
                _set_benchmark(True)
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    _set_benchmark(self._before)


def _set_benchmark(on: bool) -> None:
    # Refused after `torch.backends.disable_global_flags`: then it stays as it is.
    with suppress(RuntimeError):
        torch.backends.cudnn.benchmark = on


benchmark = _Benchmark()
