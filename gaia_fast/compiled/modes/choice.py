"""Which mode a call gets, and why."""

import torch
from torch import Tensor

from gaia_fast.backends import Choice
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


def choose(requested: str, x: Tensor) -> Choice:
    """Returns the mode for images like `x`; `requested` is a name of `MODES`, or "auto"."""
    if requested != "auto":
        return Choice(requested, "asked for")
    if x.device.type == "cuda":
        # Not before benchmarks/gpu/run.sh has tested and timed them.
        return Choice("eager", "no GPU has run the others yet: inductor and cudagraph can be asked for by name")
    if x.device.type == "cpu" and x.dtype == torch.float32:
        reason = missing()
        if not reason:
            return Choice("onnxruntime", "fastest measured for float32 on the CPU")
        return Choice("inductor", f"onnxruntime would be faster: {reason}")
    if x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16):
        return Choice("inductor", f"fastest measured for {x.dtype} on the CPU")
    return Choice("eager", f"the others take no {x.dtype} on {x.device}")


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
