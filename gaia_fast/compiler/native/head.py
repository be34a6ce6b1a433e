"""A linear head, and the output component behind it, by this package's own kernels instead of an operator a step.

A linear layer on a map's mean over space is a convolution of one position.
"""

from typing import Any

import torch
from torch import Tensor, fx

from gaia_fast.compiler.ir.constants import constant_value
from gaia_fast.compiler.ir.rewriting import call_kernel, calls, result_of
from gaia_fast.compiler.native.kernels import IDENTITY, Convolution, Pool
from gaia_fast.compiler.native.result_kernels import LogitSlopes, MeanRoot
from gaia_fast.ops.convolution import Part, Weights

aten = torch.ops.aten

_VIEWS = (aten.reshape.default, aten.squeeze.dims, aten.unsqueeze.default)


def use_linear_head(module: fx.GraphModule) -> None:
    """Has kernels compute what they can."""
    graph = module.graph
    for node in list(graph.nodes):
        found: tuple[Convolution, fx.Node] | None = None
        if node.target is aten.addmm.default and len(node.args) == 3 and not node.kwargs:
            found = _logits(node, node.args[1], constant_value(node.args[2]), node.args[0])
        elif node.target is aten.mm.default:
            found = _logits(node, node.args[0], constant_value(node.args[1]), None)
        elif node.target is aten.linear.default:
            pooled, weight, bias = [*node.args, None][:3]
            value = constant_value(weight)
            found = _logits(node, pooled, None if value is None else value.t(), bias)
        elif node.target is aten.sqrt.default and (component := _component(node)) is not None:
            with graph.inserting_before(node):
                node.replace_all_uses_with(_output_component(graph, node, *component))
        if found is None:
            continue
        kernel, x = found
        with graph.inserting_before(node):
            mean = result_of(graph, call_kernel(graph, Pool("mean", None), (x, None)), 0, x.meta["val"][:, :, :1, :1])
            logits = result_of(graph, call_kernel(graph, kernel, (mean, None, None, None)), 1, node.meta["val"])
        node.replace_all_uses_with(logits)


def _output_component(graph: fx.Graph, node: fx.Node, weight: Tensor, factor: float, logits: fx.Node) -> fx.Node:
    """sqrt(factor * mean over k of |slopes @ weight|): the product is a convolution of one position."""
    value = logits.meta["val"]
    slopes = result_of(graph, call_kernel(graph, LogitSlopes(), (logits,)), 0, value[:, :, None, None])
    kernel = Convolution([_position(weight.t())], None, None, None, IDENTITY, "abs_sum")
    product = call_kernel(graph, kernel, (slopes, None, None, None))
    magnitudes = result_of(graph, product, 1, value.new_empty((value.shape[0], weight.shape[1])))
    return result_of(graph, call_kernel(graph, MeanRoot(factor), (magnitudes,)), 0, node.meta["val"])


def _position(weight: Tensor) -> Part:
    """A linear layer with weights (outputs, inputs), as a convolution of one position."""
    return Part(Weights(weight[:, :, None, None].contiguous()), (1, 1), (0, 0), (1, 1))


def _logits(node: fx.Node, pooled: Any, weight: Tensor | None, bias: Any) -> tuple[Convolution, fx.Node] | None:
    """The linear layer on a map's mean over space, with its (K, C) weights, and the map."""
    shift = None if bias is None else constant_value(bias)
    if weight is None or weight.ndim != 2 or (bias is not None and (shift is None or shift.shape != weight.shape[1:])):
        return None
    channels = weight.shape[0]
    while calls(pooled, aten.reshape.default) and _size(pooled)[1:] in ([channels], [channels, 1, 1]):
        pooled = pooled.args[0]
    if not _averages(pooled):
        return None
    x = pooled.args[0]
    if x.meta["val"].ndim != 4 or _size(x)[1] != channels or node.meta["val"].dtype != torch.float32:
        return None
    # The sum over a position is what stands there, without what whole panels have more than the logits.
    return Convolution([_position(weight.t())], shift, None, None, IDENTITY, "sum"), x


def _averages(node: Any) -> bool:
    """Whether a node is the mean over a map's space."""
    if calls(node, aten.adaptive_avg_pool2d.default):
        return list(node.args[1]) == [1, 1]
    return calls(node, aten.mean.dim) and not node.kwargs and sorted(axis % 4 for axis in node.args[1] or ()) == [2, 3]


def _component(root: fx.Node) -> tuple[Tensor, float, fx.Node] | None:
    """The weights (C, K) of a linear head that an output component lies behind, its factor, and the logits."""
    mean = root.args[0]
    if not calls(mean, aten.mean.dim) or list(mean.args[1:]) != [[1]] or mean.kwargs:
        return None
    g, factor = mean.args[0], 1.0
    if not calls(g, aten.abs.default):
        return None
    g = g.args[0]
    while calls(g, aten.div.Scalar) or calls(g, aten.mul.Scalar) or any(calls(g, each) for each in _VIEWS):
        if g.target is aten.div.Scalar:
            factor /= g.args[1]
        elif g.target is aten.mul.Scalar:
            factor *= g.args[1]
        g = g.args[0]
    if not calls(g, aten.mm.default) or _size(g)[1:] != _size(mean.args[0])[1:] or not factor > 0:
        return None
    slope, weight = g.args[0], constant_value(g.args[1])
    if weight is None or not calls(slope, aten.rsub.Scalar) or list(slope.args[1:]) != [1, weight.shape[0]]:
        return None
    softmax = slope.args[0]
    if not calls(softmax, aten._softmax.default) or list(softmax.args[1:]) != [1, False]:
        return None
    if root.meta["val"].dtype != torch.float32 or softmax.meta["val"].dtype != torch.float32:
        return None
    return weight, factor, softmax.args[0]


def _size(node: fx.Node) -> list[Any]:
    return list(node.meta["val"].shape)
