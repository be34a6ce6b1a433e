"""Backward passes written as forward operators.

What autograd records of a backward pass names each operator's own backward one, which runs slower than a forward
operator would, or exists in PyTorch alone. In eval mode, towards a feature map, each is the adjoint of a linear map at
a known point, and has a plain form:

    convolution, stride 1     convolution with the flipped weight, input and output channels exchanged
    convolution, strided      transposed convolution with the weight itself
    ReLU, ReLU6               selection by the sign (the interval) of the output (the input)
    max-pooling               each gradient to the position that its window chose, added up
    average pooling           a transposed convolution with one value, channel by channel
    GroupNorm, SiLU, ...      PyTorch's own decompositions, in closed form
"""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor, fx
from torch._decomp import get_decompositions

from gaia_fast.compiler.ir.constants import constant
from gaia_fast.compiler.ir.rewriting import Rewrite, rewritten
from gaia_fast.compiler.ir.windows import unread

aten = torch.ops.aten

# The backward operators for which PyTorch has a closed form that is as good as any.
DECOMPOSITIONS = get_decompositions(
    [
        aten.native_group_norm_backward,
        aten.native_layer_norm_backward,
        aten.native_batch_norm_backward,
        aten.silu_backward,
        aten.gelu_backward,
        aten.elu_backward,
        aten.hardswish_backward,
        aten.hardsigmoid_backward,
        aten.leaky_relu_backward,
        aten.sigmoid_backward,
        aten.tanh_backward,
        aten.mish_backward,
        aten.softplus_backward,
        aten._prelu_kernel_backward,
        aten._softmax_backward_data,
        aten._log_softmax_backward_data,
        aten.select_backward,
        aten.slice_backward,
        aten.embedding_dense_backward,
    ]
)


def decompose_backward(module: fx.GraphModule) -> None:
    """Replaces the backward operators that have a plain form; what is not known stays as it is."""
    for node, replaced in rewritten(module.graph, _REWRITES):
        if node.target is aten.convolution_backward.default:
            for user in list(node.users):
                if user.args[1] == 0:
                    user.replace_all_uses_with(replaced)
        else:
            node.replace_all_uses_with(replaced)


def _convolution(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    g, x, weight, _, stride, padding, dilation, transposed, _, groups, mask = node.args
    if mask[1] or mask[2] or transposed or len(stride) != 2:
        return None
    inputs, outputs = x.meta["val"].shape[1], g.meta["val"].shape[1]
    kernel = weight.meta["val"].shape[2:]
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if all(s == 1 for s in stride) and all(p <= r for p, r in zip(padding, reach, strict=True)):
        split = _call(graph, aten.reshape.default, weight, [groups, outputs // groups, inputs // groups, *kernel])
        exchanged = _call(graph, aten.permute.default, split, [0, 2, 1, 3, 4])
        joined = _call(graph, aten.reshape.default, exchanged, [inputs, outputs // groups, *kernel])
        flipped = _call(graph, aten.flip.default, joined, [2, 3])
        contiguous = graph.call_function(aten.clone.default, (flipped,), {"memory_format": torch.contiguous_format})
        rest = [r - p for r, p in zip(reach, padding, strict=True)]
        arguments = (g, contiguous, None, [1, 1], rest, dilation, False, [0, 0], groups)
    else:
        # A strided convolution may not reach the last rows and columns: no gradient goes there, but they exist.
        beyond = unread(x.meta["val"].shape[2:], g.meta["val"].shape[2:], kernel, stride, padding, dilation)
        arguments = (g, weight, None, stride, padding, dilation, True, beyond, groups)
    replaced = graph.call_function(aten.convolution.default, arguments)
    replaced.meta["val"] = x.meta["val"]
    return replaced


def _threshold(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    g, y, threshold = node.args
    return _select(graph, node, _call(graph, aten.le.Scalar, y, threshold), g)


def _hardtanh(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    g, x, low, high = node.args
    # Its output tells as much, and is there already: its input need not be kept.
    outputs = (user for user in x.users if user.target is aten.hardtanh.default and user.args[1:] == (low, high))
    x = next(outputs, x)
    outside = _call(
        graph,
        aten.logical_or.default,
        _call(graph, aten.le.Scalar, x, low),
        _call(graph, aten.ge.Scalar, x, high),
    )
    return _select(graph, node, outside, g)


def _select(graph: fx.Graph, node: fx.Node, inactive: fx.Node, g: fx.Node) -> fx.Node:
    # Selects, not multiplies: an infinite gradient behind an inactive unit is zero, as in PyTorch.
    value = node.meta["val"]
    zero = graph.call_function(aten.scalar_tensor.default, (0,), {"dtype": value.dtype, "device": value.device})
    selected = _call(graph, aten.where.self, inactive, zero, g)
    selected.meta["val"] = value
    return selected


def _max_pool(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    g, x, *_, indices = node.args
    shape = x.meta["val"].shape
    size = prod(shape[2:])
    # Sizes that mention the number of images are asked of the tensor.
    images = graph.call_function(aten.sym_size.int, (x, 0))
    flat = _call(graph, aten.reshape.default, g, [images, shape[1], -1])
    where = _call(graph, aten.reshape.default, indices, [images, shape[1], -1])
    zero = _call(graph, aten.zeros_like.default, _call(graph, aten.reshape.default, x, [images, shape[1], size]))
    added = _call(graph, aten.scatter_add.default, zero, 2, where, flat)
    replaced = _call(graph, aten.reshape.default, added, [images, *shape[1:]])
    replaced.meta["val"] = node.meta["val"]
    return replaced


def _avg_pool(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    g, x, kernel, stride, padding, _, count_include_pad, divisor = _filled(
        node, [None, None, None, None, [0, 0], False, True, None]
    )
    value = x.meta["val"]
    kernel = list(kernel) * (2 // len(kernel))
    stride = list(stride or kernel) * (2 // len(stride or kernel))
    padding = list(padding) * (2 // len(padding))
    if any(padding) and not count_include_pad:
        return None
    beyond = unread(value.shape[2:], g.meta["val"].shape[2:], kernel, stride, padding, (1, 1))
    if any(not 0 <= b < s for b, s in zip(beyond, stride, strict=True)):  # a window hangs over the edge
        return None
    ones = graph.call_function(
        aten.full.default,
        ([value.shape[1], 1, *kernel], 1 / (divisor or prod(kernel))),
        {"dtype": value.dtype, "device": value.device},
    )
    replaced = graph.call_function(
        aten.convolution.default, (g, ones, None, stride, padding, [1, 1], True, beyond, value.shape[1])
    )
    replaced.meta["val"] = node.meta["val"]
    return replaced


def _adaptive_avg_pool(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    g, x = node.args
    value, out = x.meta["val"], g.meta["val"].shape
    rows, columns = (_averaging(value, size, int(o)) for size, o in zip(value.shape[2:], out[2:], strict=True))
    placed = [constant(graph.owning_module, each) for each in (rows.t().contiguous(), columns)]
    replaced = _call(graph, aten.matmul.default, _call(graph, aten.matmul.default, placed[0], g), placed[1])
    replaced.meta["val"] = node.meta["val"]
    return replaced


def _averaging(like: Tensor, size: int, out: int) -> Tensor:
    """(out, size): row i averages the positions that adaptive pooling gives to it."""
    matrix = torch.zeros((out, size), dtype=like.dtype, device=like.device)
    for index in range(out):
        begin, end = index * size // out, -(-(index + 1) * size // out)
        matrix[index, begin:end] = 1 / (end - begin)
    return matrix


def _call(graph: fx.Graph, target: Callable[..., Any], *args: Any) -> fx.Node:
    return graph.call_function(target, args)


def _filled(node: fx.Node, defaults: list[Any]) -> list[Any]:
    return [*node.args, *defaults[len(node.args) :]]


_REWRITES: dict[Any, Rewrite] = {
    aten.convolution_backward.default: _convolution,
    aten.threshold_backward.default: _threshold,
    aten.hardtanh_backward.default: _hardtanh,
    aten.max_pool2d_with_indices_backward.default: _max_pool,
    aten.avg_pool2d_backward.default: _avg_pool,
    aten._adaptive_avg_pool2d_backward.default: _adaptive_avg_pool,
}
