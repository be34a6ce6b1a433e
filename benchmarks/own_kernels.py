"""A compiled program on the kernels of `gaia_fast.ops`, as calls that PyTorch's compiler leaves as they are.

A ReLU that is counted becomes `relu_forward_count`, as on a CUDA device where maps are beyond the cache, a masked
gradient that is summed `relu_backward_moments`, which no runtime does. On a GPU the compiler fuses these by itself:
gpu/engines.py times one beside the other.
"""

import operator
from math import inf

import torch
from torch import fx

from gaia_fast.compiler.ir.constants import constant
from gaia_fast.compiler.ir.passes import clean_up
from gaia_fast.compiler.ir.rewriting import calls, copy_of, erase, same_shape
from gaia_fast.compiler.native.fusion import relu_mask_of, scaled, summed
from gaia_fast.compiler.passes.relu_counts import count_in_relus
from gaia_fast.ops import maps

aten = torch.ops.aten


def on_own_kernels(module: fx.GraphModule, backend: str) -> tuple[fx.GraphModule, int]:
    """Returns a copy of a program with calls of torch.ops.gaia_fast.* in it, and how many."""
    copied = copy_of(module)
    count_in_relus(copied, backend=backend)
    count = sum(calls(node, torch.ops.gaia_fast.relu_forward_count.default) for node in copied.graph.nodes)
    for node in list(copied.graph.nodes):
        if node.target is aten.where.self:
            count += _backward(copied, node, backend)
    clean_up(copied)
    return copied, count


def _is_map(node: fx.Node) -> bool:
    value = node.meta["val"]
    return value.ndim == 4 and value.dtype in maps.DTYPE_CODES


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
