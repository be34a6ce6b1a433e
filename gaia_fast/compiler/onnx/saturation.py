"""A program rewritten for onnxruntime, whose Sigmoid and Tanh saturate earlier than float32 does.

Its Sigmoid is exactly 0 below -16.0 and 1 above 16.0, its Tanh 1 above 8.1. The functions, and PyTorch's, are so only
below -88.7 and above 16.6, and above 9.0: a unit between has a gradient, which GAIA-Z counts. So both are written with
the exponential, which onnxruntime has whole:

    sigmoid(x) = 1 / (1 + exp(-x))
    tanh(x)    = sign(x) (1 - 2 / (1 + exp(2 |x|)))    where |x| > 4, and Tanh elsewhere: there nothing cancels
"""

from typing import Any

import torch
from torch import fx

from gaia_fast.compiler.ir.rewriting import Rewrite, rewritten

aten = torch.ops.aten

_CANCELS = 4.0  # below it 1 - 2 / (1 + exp(2 |x|)) loses digits that Tanh has


def expand_sigmoids(module: fx.GraphModule) -> None:
    """Writes float32 sigmoids, SiLUs and tanhs in the form above."""
    for old, new in rewritten(module.graph, _FORMS):
        old.replace_all_uses_with(new)


def _sigmoid(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    if node.meta["val"].dtype != torch.float32:
        return None
    exponential = _call(graph, node, aten.exp.default, _call(graph, node, aten.neg.default, node.args[0]))
    return _call(graph, node, aten.reciprocal.default, _call(graph, node, aten.add.Tensor, exponential, 1))


def _silu(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    sigmoid = _sigmoid(graph, node)
    return None if sigmoid is None else _call(graph, node, aten.mul.Tensor, node.args[0], sigmoid)


def _tanh(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    if node.meta["val"].dtype != torch.float32:
        return None
    (x,) = node.args
    size = _call(graph, node, aten.abs.default, x)
    exponential = _call(graph, node, aten.exp.default, _call(graph, node, aten.mul.Tensor, size, 2))
    part = _call(graph, node, aten.reciprocal.default, _call(graph, node, aten.add.Tensor, exponential, 1))
    large = _call(graph, node, aten.add.Tensor, _call(graph, node, aten.mul.Tensor, part, -2), 1)
    signed = _call(graph, node, aten.mul.Tensor, _call(graph, node, aten.sign.default, x), large)
    cancels = _call(graph, node, aten.le.Scalar, size, _CANCELS, dtype=torch.bool)
    return _call(graph, node, aten.where.self, cancels, _call(graph, node, aten.tanh.default, x), signed)


def _call(graph: fx.Graph, node: fx.Node, target: Any, *arguments: Any, dtype: torch.dtype = torch.float32) -> fx.Node:
    """A call whose result has the shape of `node`'s."""
    made = graph.call_function(target, arguments)
    made.meta["val"] = node.meta["val"].to(dtype)
    return made


_FORMS: dict[Any, Rewrite] = {
    aten.sigmoid.default: _sigmoid,
    aten.silu.default: _silu,
    aten.tanh.default: _tanh,
}
