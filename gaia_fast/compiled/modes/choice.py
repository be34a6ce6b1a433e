"""Which mode a call gets, and why."""

import torch
from torch import Tensor, fx

from gaia_fast.backends import Choice
from gaia_fast.compiled.fused import operations
from gaia_fast.compiled.modes import native
from gaia_fast.compiled.modes.cudagraph import CudaGraph
from gaia_fast.compiled.modes.eager import Eager
from gaia_fast.compiled.modes.inductor import Inductor
from gaia_fast.compiled.modes.native import Native
from gaia_fast.compiled.modes.onnxruntime import OnnxRuntime
from gaia_fast.compiled.modes.runner import Runner
from gaia_fast.compiled.modes.sizes import FixedSizes
from gaia_fast.compiled.onnx import missing
from gaia_fast.compiled.program import Program
from gaia_fast.errors import ArgumentError

MODES = ("eager", "native", "inductor", "onnxruntime", "cudagraph")


def check(requested: str) -> None:
    """Raises ArgumentError unless `requested` is a name of `MODES`, or "auto"."""
    if requested not in ("auto", *MODES):
        raise ArgumentError(f"mode={requested!r} does not exist; choose from {('auto', *MODES)}")


# float32 on the CPU, measured on 2 cores (AVX-512) with GAIA-Z, native against onnxruntime: below so many operations a
# batch the latter is faster (WRN-40-2: 9.1 ms against 7.2 with one image of 0.7e9, 18.1 against 18.2 with four;
# ResNet34: 15.6 against 18.0 with one of 2.3e9), and where native leaves convolutions to PyTorch, too (MobileNetV2 96
# against 27, ResNeXt-50 519 against 302; ResNet-50 52 against 54, VGG11 414 against 520).
_FEW = 2e9
_MOST = 0.9


def choose(requested: str, x: Tensor, graph: fx.GraphModule) -> Choice:
    """Returns the mode for a captured graph on images like `x`; `requested` is a name of `MODES`, or "auto"."""
    if requested != "auto":
        return Choice(requested, "asked for")
    if x.device.type == "cuda":
        # Not before benchmarks/gpu/run.sh has tested and timed them.
        return Choice("eager", "no GPU has run the others yet: inductor and cudagraph can be asked for by name")
    if x.device.type == "cpu" and x.dtype == torch.float32:
        return _choose_float32(x.shape[0], graph)
    if x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16):
        return Choice("inductor", f"fastest measured for {x.dtype} on the CPU")
    return Choice("eager", f"the others take no {x.dtype} on {x.device}")


def _choose_float32(images: int, graph: fx.GraphModule) -> Choice:
    """The mode for float32 on the CPU."""
    total, ours = operations(graph)
    no_onnx, no_kernels = missing(), native.missing()
    if not no_kernels and ours >= _MOST * total and (no_onnx or images * total >= _FEW):
        return Choice("native", "fastest measured for float32 on the CPU where its kernels take the convolutions")
    if not no_onnx:
        why = f"{images * total:.1g} operations a batch are few"
        if ours < _MOST * total:
            why = f"the kernels of native take {ours / total:.0%} of the convolutions' operations"
        return Choice("onnxruntime", no_kernels or f"faster than native: {why}")
    return Choice("inductor", f"onnxruntime would be faster: {no_onnx}")


def make_runner(mode: str, program: Program, example: Tensor, dynamic: bool) -> Runner:
    """Makes a program ready to run on images like `example`.

    Args:
        mode: a name of `MODES`.
        program: what to run.
        example: images, of which the first is enough.
        dynamic: whether the program takes any number of images; else it takes as many as `example` has.

    Raises:
        BackendError, ModelError: the mode cannot run here, or not this program.
    """
    runner: Runner
    if mode == "inductor":
        runner = Inductor(program.graph, example)
    elif mode == "cudagraph":
        runner = CudaGraph(program.graph, example)
    elif mode == "native":
        runner = Native(program.graph, example)
    elif mode == "onnxruntime":
        runner = OnnxRuntime(program.graph, program.outputs, example, dynamic)
    else:
        runner = Eager(program.graph)
    images = example.shape[0]
    if not dynamic:
        return FixedSizes(None, {images: runner.prepare(images) if isinstance(runner, FixedSizes) else runner})
    if isinstance(runner, FixedSizes):
        runner.prepare(images)
    return runner
