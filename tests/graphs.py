"""Captured graphs, for tests of what is made of them."""

import torch
from torch import Tensor, nn

from gaia_fast import layers
from gaia_fast.compiled.capture import Captured, capture


def captured(model: nn.Module, x: Tensor, names: list[str] | None = None, with_head: bool = True) -> Captured:
    with torch.no_grad():
        head = layers.find_head(model, x, None) if with_head else None
    return capture(model, x, layers.inspected_layers(model, names), head)


def targets(module: torch.fx.GraphModule) -> list[object]:
    return [node.target for node in module.graph.nodes if node.op == "call_function"]
