"""A linear head, and the output component behind it, by this package's own kernels instead of an operator a step."""

from typing import Any

import torch
from torch import Tensor, fx, nn

from gaia_fast.compiler.ir.constants import constant_value
from gaia_fast.compiler.ir.rewriting import call_kernel, calls
from gaia_fast.ops.linear_head import output_component, pooled_logits

aten = torch.ops.aten

_VIEWS = (aten.reshape.default, aten.squeeze.dims, aten.unsqueeze.default)


class PooledLogits(nn.Module):
    """`gaia_fast.ops.linear_head.pooled_logits` with its weights: a map to logits."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight, self.bias = weight.contiguous(), None if bias is None else bias.contiguous()

    def forward(self, x: Tensor) -> Tensor:
        return pooled_logits(x, self.weight, self.bias)


class OutputComponent(nn.Module):
    """`gaia_fast.ops.linear_head.output_component` with its weights: logits to output components."""

    def __init__(self, weight: Tensor, factor: float) -> None:
        super().__init__()
        self.weight, self.factor = weight.contiguous(), factor

    def forward(self, logits: Tensor) -> Tensor:
        return output_component(logits, self.weight, self.factor)


def use_linear_head(module: fx.GraphModule) -> None:
    """Has the modules above compute what they can."""
    graph = module.graph
    for node in list(graph.nodes):
        found: tuple[nn.Module, fx.Node] | None = None
        if node.target is aten.addmm.default and len(node.args) == 3 and not node.kwargs:
            found = _logits(node, node.args[1], constant_value(node.args[2]), node.args[0])
        elif node.target is aten.mm.default:
            found = _logits(node, node.args[0], constant_value(node.args[1]), None)
        elif node.target is aten.linear.default:
            pooled, weight, bias = [*node.args, None][:3]
            value = constant_value(weight)
            found = _logits(node, pooled, None if value is None else value.t(), bias)
        elif node.target is aten.sqrt.default:
            found = _component(node)
        if found is None:
            continue
        kernel, x = found
        with graph.inserting_before(node):
            made = call_kernel(graph, kernel, (x,), node.meta["val"])
        node.replace_all_uses_with(made)


def _logits(node: fx.Node, pooled: Any, weight: Tensor | None, bias: Any) -> tuple[nn.Module, fx.Node] | None:
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
    return PooledLogits(weight.t(), shift), x


def _averages(node: Any) -> bool:
    """Whether a node is the mean over a map's space."""
    if calls(node, aten.adaptive_avg_pool2d.default):
        return list(node.args[1]) == [1, 1]
    return calls(node, aten.mean.dim) and not node.kwargs and sorted(axis % 4 for axis in node.args[1] or ()) == [2, 3]


def _component(root: fx.Node) -> tuple[nn.Module, fx.Node] | None:
    """The output component behind a linear head, and the logits."""
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
    return OutputComponent(weight, factor), softmax.args[0]


def _size(node: fx.Node) -> list[Any]:
    return list(node.meta["val"].shape)
