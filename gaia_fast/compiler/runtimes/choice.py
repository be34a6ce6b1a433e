"""Which runtime a call gets, and why."""

from functools import cache

import torch
from torch import Tensor, fx

from gaia_fast.backends import Choice
from gaia_fast.compiler.native.cost import operations
from gaia_fast.compiler.onnx.conversion import Conversion, missing, to_onnx
from gaia_fast.compiler.program import Program
from gaia_fast.compiler.runtimes import native, openvino
from gaia_fast.compiler.runtimes.checked import Checks
from gaia_fast.compiler.runtimes.cudagraph import CudaGraph, check_cuda
from gaia_fast.compiler.runtimes.eager import Eager
from gaia_fast.compiler.runtimes.fixed_sizes import FixedSizes
from gaia_fast.compiler.runtimes.inductor import Inductor
from gaia_fast.compiler.runtimes.native import Native
from gaia_fast.compiler.runtimes.onnxruntime import OnnxRuntime
from gaia_fast.compiler.runtimes.openvino import OpenVino
from gaia_fast.compiler.runtimes.runner import Runner, check_float32_on_cpu
from gaia_fast.options import AUTO, Runtime, Tune

FLOAT32_ALONE = (Runtime.NATIVE, Runtime.ONNXRUNTIME, Runtime.OPENVINO)
GRAPHS = (Runtime.INDUCTOR, Runtime.CUDAGRAPH)  # the runtimes that replay CUDA graphs, on a CUDA device


# Without measuring, native is taken where its kernels take so much of the convolutions' operations: ResNeXt-50, of
# which they then left 5 % to PyTorch, took 32 ms, and 17 in onnxruntime (AMD Zen 5, 2 cores).
_MOST = 0.98

# ResNet34's GAIA-A in bfloat16 with 1 and 32 images, against the eager float32 forward pass: 1.42 and 0.47 times under
# Inductor on an earlier processor, 1.46 and 0.83 times on this one, where native takes 0.31 and 0.56
# (benchmarks/results/compiled-cpu.json). That the former owed it to matrix tiles, and from
# how many images on, is a guess.
_MANY_IN_TILES = 8


def computes_in(requested: str, x: Tensor) -> torch.dtype:
    """Returns the dtype that the program for images like `x` computes in.

    Half precision on the CPU is widened to float32 in the runtimes that have no other, and by "auto" where that is the
    faster: weights and images are the same numbers, and what is made of them is rounded less.
    """
    if x.device.type != "cpu" or x.dtype not in (torch.bfloat16, torch.float16):
        return x.dtype
    tiles = x.dtype == torch.bfloat16 and x.shape[0] >= _MANY_IN_TILES and torch.cpu._is_amx_tile_supported()
    if requested in FLOAT32_ALONE or (requested == AUTO and not tiles):
        return torch.float32
    return x.dtype


def _missing(runtime: str) -> str:
    """Why one of `FLOAT32_ALONE` cannot run here; empty where it can."""
    told = {Runtime.NATIVE: native.missing, Runtime.ONNXRUNTIME: missing, Runtime.OPENVINO: openvino.missing}
    return told[Runtime(runtime)]()


def check_forced(requested: str, x: Tensor) -> None:
    """Raises BackendError at once where a runtime that was asked for by its name cannot run here."""
    if requested in FLOAT32_ALONE:
        check_float32_on_cpu(requested, _missing(requested), x.new_empty(0, dtype=computes_in(requested, x)))
    elif requested == Runtime.CUDAGRAPH:
        check_cuda(x)


def choose(requested: str, x: Tensor, graph: fx.GraphModule) -> Choice:
    """Returns the runtime for a graph captured in the dtype of `x`, and for images like it.

    Args:
        requested: a name of `gaia_fast.options.Runtime`, or "auto".
    """
    if requested != AUTO:
        return Choice(requested, "asked for")
    if x.device.type == "cuda":
        # GAIA-Z's program on an H200 in eager, in a CUDA graph, and in one of the compiler's kernels
        # (benchmarks/results/nvidia-h200/engines.json), milliseconds. ResNet34 in bfloat16: 15.2, 1.16 and 0.73 with
        # one 32x32 image, 16.1, 2.6 and 1.6 with 128; ResNet-50: 19.8, 10.2 and 4.0 with 64 of 224x224. The compiler
        # works for tens of seconds, and anew for each number of images: only who asks for that gets it.
        return Choice(
            Runtime.CUDAGRAPH, "one launch, and nothing is compiled; runtime='inductor' is faster, and compiles"
        )
    if x.device.type == "cpu" and x.dtype == torch.float32:
        return _choose_float32(graph)
    if x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16):
        return Choice(
            Runtime.INDUCTOR,
            "what computes in float32 is slower for so many images here, or the model cannot be widened",
        )
    return Choice(Runtime.EAGER, f"the others take no {x.dtype} on {x.device}")


def rivals(requested: str, tune: str, x: Tensor) -> list[Runtime]:
    """Returns the runtimes that "auto" times against each other for images like `x`; none where it does not."""
    if requested != AUTO or tune != Tune.MEASURE or x.device.type != "cpu" or x.dtype != torch.float32:
        return []
    return [runtime for runtime in FLOAT32_ALONE if not _missing(runtime)]


def instead_of(runtime: str) -> list[Runtime]:
    """Returns the runtimes for "auto" to go on with, in order, where the one chosen does not take a program.

    Or where it rounds otherwise than the reference by too much: Winograd's algorithms do, where many units are zero to
    rounding.
    """
    if runtime == Runtime.CUDAGRAPH:
        return [Runtime.EAGER]
    if runtime != Runtime.NATIVE:
        return []
    return [*(each for each in FLOAT32_ALONE if each != runtime and not _missing(each)), Runtime.EAGER]


def _choose_float32(graph: fx.GraphModule) -> Choice:
    """The runtime for float32 on the CPU, where none is measured."""
    total, ours = operations(graph)
    no_onnx, no_kernels = missing(), native.missing()
    if not no_kernels and ours >= _MOST * total:
        return Choice(Runtime.NATIVE, "its kernels take the convolutions")
    if not no_onnx:
        return Choice(
            Runtime.ONNXRUNTIME,
            no_kernels or f"faster than native, whose kernels take {ours / total:.0%} of the convolutions' operations",
        )
    return Choice(Runtime.INDUCTOR, f"onnxruntime would be faster: {no_onnx}")


def checks_results(runtime: str, x: Tensor) -> bool:
    """Whether runners of a runtime check such images and their results, if they are asked to."""
    return runtime == Runtime.NATIVE or checks_memory(runtime, x)


def checks_memory(runtime: str, x: Tensor) -> bool:
    """Whether they check the model's memory as well."""
    return runtime in GRAPHS and x.device.type == "cuda"


def conversion(program: Program, example: Tensor, dynamic: bool) -> Conversion:
    """Returns what makes a program an ONNX graph, once; see `to_onnx`."""
    return cache(lambda: to_onnx(program.graph, program.outputs, example, dynamic))


def make_runner(
    runtime: str,
    program: Program,
    example: Tensor,
    dynamic: bool,
    checks: Checks | None = None,
    tune: str = Tune.MODEL,
    convert: Conversion | None = None,
) -> Runner:
    """Makes a program ready to run on images like `example`.

    Args:
        runtime: a name of `gaia_fast.options.Runtime`.
        program: what to run.
        example: images, of which the first is enough.
        dynamic: whether the program takes any number of images; else it takes as many as `example` has.
        tune: how the native runtime settles between algorithms.
        checks: what the runner checks, where `checks_results`, for one output more: (N,), positive where an image's
            results mean something.
        convert: a `conversion` of the program, where it has one already.

    Raises:
        BackendError, ModelError: the runtime cannot run here, or not this program.
    """
    runner: Runner
    if runtime == Runtime.INDUCTOR:
        runner = Inductor(program.graph, example, checks)
    elif runtime == Runtime.CUDAGRAPH:
        runner = CudaGraph(program.graph, example, checks)
    elif runtime == Runtime.NATIVE:
        runner = Native(program.graph, example, tune, checks)
    elif runtime == Runtime.ONNXRUNTIME:
        runner = OnnxRuntime(convert or conversion(program, example, dynamic), example)
    elif runtime == Runtime.OPENVINO:
        runner = OpenVino(convert or conversion(program, example, dynamic), example)
    else:
        runner = Eager(program.graph)
    images = example.shape[0]
    if not dynamic:
        return FixedSizes(None, {images: runner.prepare(images) if isinstance(runner, FixedSizes) else runner})
    if isinstance(runner, FixedSizes):
        runner.prepare(images)
    return runner
