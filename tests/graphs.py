"""Captured graphs, for tests of what is made of them."""

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from gaia_fast.compiler import pipeline
from gaia_fast.compiler.frontend.capture import Captured, capture
from gaia_fast.compiler.ir.passes import Pass
from gaia_fast.compiler.ir.rewriting import copy_of
from gaia_fast.compiler.pipeline import CAPTURED, CHANNELS_LAST, EXPAND_SIGMOIDS, KERNELS, ONNX, run_passes
from gaia_fast.inspection.head import find_head
from gaia_fast.inspection.layers import inspected_layers


def captured(model: nn.Module, x: Tensor, names: list[str] | None = None, with_head: bool = True) -> Captured:
    with torch.no_grad():
        head = find_head(model, x, None) if with_head else None
    return capture(model, x, inspected_layers(model, names), head)


def targets(module: torch.fx.GraphModule) -> list[object]:
    return [node.target for node in module.graph.nodes if node.op == "call_function"]


def fold(module: fx.GraphModule) -> None:
    run_passes(CAPTURED, module)


def rewritten(passes: Sequence[Pass], module: fx.GraphModule) -> fx.GraphModule:
    """A copy of a graph, rewritten; the graph stays as it was."""
    return run_passes(passes, copy_of(module))


def fused(module: fx.GraphModule) -> fx.GraphModule:
    return rewritten(KERNELS, module)


def native(module: fx.GraphModule) -> fx.GraphModule:
    return rewritten(pipeline.native(), module)


def blocked(module: fx.GraphModule) -> fx.GraphModule:
    return rewritten(ONNX, module)


def with_whole_exponentials(module: fx.GraphModule) -> fx.GraphModule:
    return rewritten([EXPAND_SIGMOIDS], module)


def with_channels_last(module: fx.GraphModule) -> fx.GraphModule:
    return rewritten([CHANNELS_LAST], module)
