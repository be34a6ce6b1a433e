"""Norm folding: norms in eval mode become factors and shifts, which convolutions take up."""

import operator

import torch
from torch import Tensor, fx

from gaia_fast.compiler.ir.constants import constant, constant_value
from gaia_fast.compiler.ir.rewriting import CONVOLUTIONS

aten = torch.ops.aten

_BATCH_NORM = aten._native_batch_norm_legit_no_training.default


def fold_norms(module: fx.GraphModule) -> None:
    """Makes every batch norm on running statistics a factor and a shift a channel.

        y = (x - mean) / sqrt(var + eps) * weight + bias = x * scale + shift

    Where a convolution alone feeds it, its weights take both up: an inspected map after the norm is then the
    convolution's own output, and its gradient goes straight to the convolution's adjoint. Computed in float64.
    """
    graph = module.graph
    for node in [node for node in graph.nodes if node.target is _BATCH_NORM]:
        x, weight, bias, mean, var, _, eps = node.args
        values = {each: constant_value(each) for each in (weight, bias, mean, var) if each is not None}
        if any(value is None for value in values.values()):
            continue
        wide = {each: value.double() for each, value in values.items() if value is not None}
        scale = 1 / (wide[var] + eps).sqrt() * wide.get(weight, 1)
        shift = wide.get(bias, 0) - wide[mean] * scale
        with graph.inserting_before(node):
            folded = _into_convolution(module, x, scale, shift)
            if folded is None:
                shape = (1, -1, *[1] * (x.meta["val"].ndim - 2))
                dtype = x.meta["val"].dtype
                product = graph.call_function(aten.mul.Tensor, (x, constant(module, scale.to(dtype).reshape(shape))))
                product.meta["val"] = x.meta["val"]
                folded = graph.call_function(
                    aten.add.Tensor, (product, constant(module, shift.to(dtype).reshape(shape)))
                )
                folded.meta["val"] = x.meta["val"]
        for user in list(node.users):
            if user.target is operator.getitem and user.args[1] == 0:
                user.replace_all_uses_with(folded)


def _into_convolution(module: fx.GraphModule, x: fx.Node, scale: Tensor, shift: Tensor) -> fx.Node | None:
    if x.target not in CONVOLUTIONS or len(x.users) != 1 or len(x.args) < 2:
        return None
    weight = constant_value(x.args[1])
    bias_node = x.args[2] if len(x.args) > 2 else None
    bias = None if bias_node is None else constant_value(bias_node)
    transposed = x.target is aten.convolution.default and x.args[6]
    if weight is None or (bias_node is not None and bias is None) or transposed or weight.ndim != 4:
        return None
    shift = shift if bias is None else shift + bias.double() * scale
    folded_weight = constant(module, (weight.double() * scale.view(-1, 1, 1, 1)).to(weight.dtype))
    folded_bias = constant(module, shift.to(weight.dtype))
    folded = module.graph.call_function(x.target, (x.args[0], folded_weight, folded_bias, *x.args[3:]), x.kwargs)
    folded.meta["val"] = x.meta["val"]
    return folded
