"""Zeros padded around a convolution's input become the convolution's own padding, where it is even."""

from typing import Any

import torch
from torch import fx

from gaia_fast.compiler.ir.rewriting import CONVOLUTIONS, calls, pair

aten = torch.ops.aten


def fold_padding(module: fx.GraphModule) -> None:
    """Takes out what pads as many zeros on both sides of an axis, before convolutions that are not transposed."""
    for node in [node for node in module.graph.nodes if node.target in CONVOLUTIONS]:
        if node.kwargs or node.meta["val"].ndim != 4 or (node.target is aten.convolution.default and node.args[6]):
            continue
        defaults: list[Any] = [None, None, None, [1, 1], [0, 0]]
        x, weight, bias, stride, padding = (list(node.args) + defaults[len(node.args) :])[:5]
        around = None if isinstance(padding, str) else _even_zeros(x)
        if around is None:
            continue
        inside, (above, before) = around
        top, left = pair(padding)
        node.args = (inside, weight, bias, list(pair(stride)), [top + above, left + before], *node.args[5:])
    module.graph.eliminate_dead_code()


def _even_zeros(node: Any) -> tuple[fx.Node, tuple[int, int]] | None:
    """The map around which zeros are padded, and how many rows and columns on each side; None of anything else."""
    defaults: list[Any] = [None, None, "constant", None]
    if calls(node, aten.pad.default):
        x, widths, mode, value = list(node.args) + defaults[len(node.args) :]
    elif calls(node, aten.constant_pad_nd.default):
        (x, widths, value), mode = [*node.args, None][:3], "constant"
    else:
        return None
    if mode != "constant" or value not in (None, 0) or node.kwargs or len(widths) not in (2, 4):
        return None
    left, right, top, bottom = [*widths, 0, 0][:4]
    return (x, (top, left)) if left == right and top == bottom and min(left, top) >= 0 else None
