"""A compiled program on the kernels of `gaia_fast.ops`, as calls that PyTorch's compiler leaves as they are.

A ReLU that is counted becomes `relu_forward_count`, a masked gradient that is summed `relu_backward_moments`. A bias of
the convolutions before it becomes the kernel's shift: left to itself, the compiler adds each in a kernel of its own. On
a GPU the compiler fuses these by itself: gpu/engines.py times one beside the other. No runtime does this.
"""

import operator
from math import inf
from typing import Any

import torch
from torch import Tensor, fx

from gaia_fast.compiler.ir.constants import constant, constant_value
from gaia_fast.compiler.ir.passes import clean_up
from gaia_fast.compiler.ir.rewriting import CONVOLUTIONS, calls, copy_of, erase, same_shape
from gaia_fast.compiler.native.fusion import relu_mask_of, scaled, summed
from gaia_fast.ops import maps
from gaia_fast.ops.convolution.steps import RELU

aten = torch.ops.aten


def on_own_kernels(module: fx.GraphModule, backend: str) -> tuple[fx.GraphModule, int]:
    """Returns a copy of a program with calls of torch.ops.gaia_fast.* in it, and how many."""
    copied = copy_of(module)
    count = 0
    for node in list(copied.graph.nodes):
        if node.target is aten.relu.default:
            count += _forward(copied, node, backend)
        elif node.target is aten.where.self:
            count += _backward(copied, node, backend)
    clean_up(copied)
    return copied, count


def _is_map(node: fx.Node) -> bool:
    value = node.meta["val"]
    return value.ndim == 4 and value.dtype in maps.DTYPE_CODES


def _forward(module: fx.GraphModule, node: fx.Node, backend: str) -> bool:
    """y = relu(x + shift + residual), with the count of what is open."""
    _, counts = summed(node, RELU)
    if not _is_map(node) or not counts:
        return False
    graph = module.graph
    x, residual = node.args[0], None
    if added := _sum_of_two(x):
        x, residual = added
    biases = [bias for each in (x, residual) if (bias := _taken_bias(each)) is not None]
    with graph.inserting_before(node):
        shift = constant(module, torch.stack(biases).sum(0)) if biases else None
        made = graph.call_function(
            torch.ops.gaia_fast.relu_forward_count.default, (x, None, shift, residual), {"backend": backend}
        )
        y, counted = (graph.call_function(operator.getitem, (made, index)) for index in range(2))
    _replace(graph, node, y)
    for each in counts:
        _replace(graph, each, counted)
    return True


def _taken_bias(x: Any) -> Tensor | None:
    """Takes the bias out of a convolution that one node alone reads, and returns it, (K,) float32."""
    if not isinstance(x, fx.Node) or x.target not in CONVOLUTIONS or len(x.users) > 1 or len(x.args) < 3:
        return None
    bias = constant_value(x.args[2])
    if bias is None:
        return None
    x.update_arg(2, None)
    return bias.float()


def _sum_of_two(x: Any) -> tuple[fx.Node, fx.Node] | None:
    """Two maps whose sum nothing but the ReLU reads."""
    if not calls(x, aten.add.Tensor) or len(x.users) > 1 or x.kwargs:
        return None
    one, other = x.args
    both_maps = isinstance(one, fx.Node) and isinstance(other, fx.Node) and one is not other
    return (one, other) if both_maps and same_shape(one, other) and same_shape(one, x) else None


def _backward(module: fx.GraphModule, node: fx.Node, backend: str) -> bool:
    """where(y <= 0, 0, g), summed over space, times a factor a channel where nothing else reads it."""
    found, g = relu_mask_of(node), node.args[2]
    statistic, sums = summed(node, None)
    if found is None or found[1].upper < inf or not _is_map(node) or not sums or not same_shape(g, node):
        return False
    relu_mask = found[0]
    last, factor = node, None
    if product := scaled(node, sums, int(node.meta["val"].shape[1])):
        factor, last = product
    graph = module.graph
    with graph.inserting_before(node):
        scale = None if factor is None else constant(module, factor.float())
        made = graph.call_function(
            torch.ops.gaia_fast.relu_backward_moments.default, (g, relu_mask, scale), {"backend": backend}
        )
        grad_in, moments = (graph.call_function(operator.getitem, (made, index)) for index in range(2))
        which = maps.SUM if statistic == "sum" else maps.ABS_SUM
        total = graph.call_function(aten.select.int, (moments, 0, which))
    _replace(graph, last, grad_in)
    for each in sums:
        _replace(graph, each, total)
    return True


def _replace(graph: fx.Graph, node: fx.Node, by: fx.Node) -> None:
    by.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(by)
    erase(graph, node)
