"""A model's own forward pass, folded and run as the compiled programs are: what they are compared with."""

import torch
from torch import Tensor, nn

from gaia_fast.compiler.frontend.capture import capture
from gaia_fast.compiler.pipeline import CAPTURED, run_passes
from gaia_fast.compiler.program import Program
from gaia_fast.compiler.runtimes import Runner, make_runner
from gaia_fast.options import Tune

aten = torch.ops.aten


def plain(model: nn.Module, runtime: str, x: Tensor) -> Runner:
    """Returns a function of images like `x` that gives the logits alone."""
    captured = capture(model, x, [], None)
    for node in captured.graph.graph.nodes:  # as it is recorded in a program
        if node.target is aten.pad.default:
            node.target, node.args = aten.constant_pad_nd.default, node.args[:2]
    run_passes(CAPTURED, captured.graph)
    return make_runner(runtime, Program(captured.graph, ("logits",), (), ()), x, captured.dynamic, tune=Tune.default())
