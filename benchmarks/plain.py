"""A model's own forward pass, folded and run as the compiled programs are: what they are compared with."""

from torch import Tensor, nn

from gaia_fast.compiled.capture import capture
from gaia_fast.compiled.modes import Runner, make_runner
from gaia_fast.compiled.pipeline import CAPTURED, run_passes
from gaia_fast.compiled.program import Program


def plain(model: nn.Module, mode: str, x: Tensor) -> Runner:
    """Returns a function of images like `x` that gives the logits alone."""
    captured = capture(model, x, [], None)
    run_passes(CAPTURED, captured.graph)
    return make_runner(mode, Program(captured.graph, ("logits",), ()), x, captured.dynamic)
