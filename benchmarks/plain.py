"""A model's own forward pass, folded and run as the compiled programs are: what they are compared with."""

from collections.abc import Callable

from torch import Tensor, fx, nn

from gaia_fast.compiled.capture import capture
from gaia_fast.compiled.fold import fold
from gaia_fast.compiled.modes import Runner, make_runner
from gaia_fast.compiled.program import Program


def plain(
    model: nn.Module, mode: str, x: Tensor, rewrite: Callable[[fx.GraphModule], fx.GraphModule] | None = None
) -> Runner:
    """Returns a function of images like `x` that gives the logits alone; `rewrite` is applied to the folded graph."""
    captured = capture(model, x, [], False, None)
    fold(captured.graph)
    graph = rewrite(captured.graph) if rewrite else captured.graph
    return make_runner(mode, Program(graph, ("logits",), ()), x, captured.dynamic)
