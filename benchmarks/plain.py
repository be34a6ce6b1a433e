"""A model's own forward pass, folded and run as the compiled programs are: what they are compared with."""

from torch import Tensor, nn

from gaia_fast.compiler.frontend.capture import capture
from gaia_fast.compiler.pipeline import CAPTURED, run_passes
from gaia_fast.compiler.program import Program
from gaia_fast.compiler.runtimes import Runner, make_runner


def plain(model: nn.Module, runtime: str, x: Tensor) -> Runner:
    """Returns a function of images like `x` that gives the logits alone."""
    captured = capture(model, x, [], None)
    run_passes(CAPTURED, captured.graph)
    return make_runner(runtime, Program(captured.graph, ("logits",), ()), x, captured.dynamic)
