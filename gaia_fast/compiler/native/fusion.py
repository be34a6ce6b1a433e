"""Fusion: each convolution takes up what stands behind it, for this package's own kernels.

Forward, that is the residual added to it, the activation and the count of what is active; backward, the gradient added
to it, the ReLU's mask, the sums that the score needs, the norm's factor and the skip connection's gradient. Zeros
padded around its input it reads as such. A norm and a ReLU behind anything else, a group norm, a pooling, a gate and a
concatenation become kernels of their own. What fits nowhere stays PyTorch's.
"""

import operator
from collections.abc import Callable
from math import inf, prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from gaia_fast.compiler.ir.constants import constant_value
from gaia_fast.compiler.ir.counts import bounded, grid_of, over_space
from gaia_fast.compiler.ir.rewriting import (
    CONVOLUTIONS,
    alike,
    call_kernel,
    calls,
    erase,
    only_user,
    pair,
    per_channel,
)
from gaia_fast.compiler.native.kernels import (
    IDENTITY,
    Activation,
    BoundCheck,
    Check,
    Concatenation,
    Convolution,
    GateGradient,
    GroupNorm,
    MeanGradient,
    Pointwise,
    Pool,
    Windows,
)
from gaia_fast.compiler.native.masks import MaskFuser, windows_of
from gaia_fast.ops.convolution import Part, Weights, adjoint_parts, output_size, takes
from gaia_fast.ops.convolution.packing import NR, Algorithm
from gaia_fast.ops.convolution.parts import Pair
from gaia_fast.ops.convolution.steps import RELU, SIGMOID

aten = torch.ops.aten


def fuse(module: fx.GraphModule) -> None:
    """Makes a float32 program on the CPU one of the kernels above."""
    _Fuser(module).run()


class _Fuser:
    def __init__(self, module: fx.GraphModule) -> None:
        self.module, self.graph = module, module.graph
        self._weights: dict[str, Weights] = {}
        self._exact = _counted(self.graph)

    def run(self) -> None:
        self._each(lambda node: node.target in CONVOLUTIONS and not _is_transposed(node), self._convolution)
        self._each(lambda node: node.target is aten.native_group_norm.default, self._group_norm)
        self._each(lambda node: activation_of(node) is not None, self._activation)
        self._each(lambda node: node.target is aten.mul.Tensor, self._gate)
        self._each(lambda node: node.target is aten.cat.default, self._cat)
        MaskFuser(self.graph).run()  # what windows look at is written as the adjoint of a convolution
        self._each(lambda node: node.target in CONVOLUTIONS, self._convolution)
        self._each(lambda node: node.target is aten.where.self, self._relu_backward)
        self._each(lambda node: node.target is aten.max_pool2d_with_indices.default, self._max_pool)
        self._each(lambda node: node.target is aten.avg_pool2d.default, self._avg_pool)
        self._each(lambda node: node.target in (aten.mean.dim, aten.adaptive_avg_pool2d.default), self._mean)
        self._each(lambda node: node.target is aten.mul.Tensor, self._gate_gradient)
        self._each(lambda node: node.target is aten.add.Tensor, self._mean_gradient)
        self._each(lambda node: node.target is aten.amin.default, self._condition)
        self._each(lambda node: node.target is aten._to_copy.default, self._bound)
        self._each(_normalises_channels, self._channels_first)

    def _each(self, matches: Callable[[fx.Node], bool], use: Callable[[fx.Node], None]) -> None:
        for node in [node for node in self.graph.nodes if matches(node)]:
            use(node)

    def _place(self, kernel: nn.Module, inputs: tuple[fx.Node | None, ...], like: Any) -> tuple[fx.Node, fx.Node]:
        """A call of a kernel, at the graph's current place of insertion: its map, and its sums."""
        made = call_kernel(self.graph, kernel, inputs)
        y = self.graph.call_function(operator.getitem, (made, 0))
        y.meta["val"] = like
        return y, self.graph.call_function(operator.getitem, (made, 1))

    def _replace(self, node: fx.Node, y: fx.Node, sums: list[fx.Node], total: fx.Node) -> None:
        """Has a map and its sums come from a kernel, and takes out what made them."""
        node.replace_all_uses_with(y)
        for each in sums:
            total.meta["val"] = each.meta["val"]
            each.replace_all_uses_with(total)
        if not sums:
            self.graph.erase_node(total)
        for each in [*sums, node]:
            erase(self.graph, each)

    def _convolution(self, node: fx.Node) -> None:
        weight = constant_value(node.args[1])
        bias = node.args[2] if len(node.args) > 2 else None
        bias_value = None if bias is None else constant_value(bias)
        if weight is None or (bias is not None and bias_value is None):
            return
        size = None
        x = node.args[0]
        if (part := convolution_part(node, weight, self._weights)) is not None:
            parts = [part]
            if (around := padded_by_zeros(x)) is not None:
                (x, (top, left, _, _)), (above, before) = around, part.padding
                parts = [Part(part.weights, part.stride, (above + top, before + left), part.dilation)]
                size = _size(node)
        elif (adjoint := _adjoint(node, weight)) is not None:
            parts, size = adjoint
        else:
            return
        last = node
        residual = relu_mask = skip = scale = None
        activation = IDENTITY
        if added := _added(last):
            residual, last = added
        user = only_user(last)
        if user is not None and (found := activation_of(user)) is not None:
            activation, last = found, user
        elif masked := _masked(last):
            relu_mask, activation, last = masked
        value = node.meta["val"]
        active = activation if activation.name == "relu" else None
        statistic, sums = summed(last, active)
        if activation.name == "identity" and (factor := scaled(last, sums, int(value.shape[1]))):
            scale, product = factor
            if (added := _added(product)) and _unread(sums, last, added[1]):
                skip, last = added
            else:
                last = product
        algorithm = Algorithm.INDIRECT_GEMM if node in self._exact else None
        kernel = Convolution(parts, bias_value, scale, size, activation, statistic, algorithm)
        with self.graph.inserting_before(last):
            y, total = self._place(kernel, (x, residual, relu_mask, skip), last.meta["val"])
        self._replace(last, y, sums, total)

    def _activation(self, node: fx.Node) -> None:
        """A ReLU of x * scale + shift, with the count of what is active."""
        value, activation = node.meta["val"], activation_of(node)
        if value.ndim != 4 or value.dtype != torch.float32 or activation is None or activation.name != "relu":
            return
        x, parameters = node.args[0], {}
        for name, target in (("shift", aten.add.Tensor), ("scale", aten.mul.Tensor)):
            if calls(x, target) and len(x.users) == 1 and not x.kwargs and alike(x.args[0], node):
                factor = per_channel(x.args[1], int(value.shape[1]))
                if factor is not None:
                    parameters[name], x = factor, x.args[0]
        counts = counted(node, activation)
        kernel = Pointwise(parameters.get("scale"), parameters.get("shift"), None, activation, "positive")
        with self.graph.inserting_before(node):
            y, total = self._place(kernel, (x, None, None, None, None), value)
        self._replace(node, y, counts, total)

    def _relu_backward(self, node: fx.Node) -> None:
        """A gradient through a ReLU, with its sums and the norm's factor."""
        value, g = node.meta["val"], node.args[2]
        if value.ndim != 4 or value.dtype != torch.float32 or not alike(g, node):
            return
        if (found := relu_mask_of(node)) is None:
            return
        relu_mask, bounds = found
        statistic, sums = summed(node, None)
        scale, last = scaled(node, sums, int(value.shape[1])) or (None, node)
        factor = _per_channel_everywhere(g)
        with self.graph.inserting_before(last):
            kernel = Pointwise(factor, None, scale, bounds, statistic)
            y, total = self._place(kernel, (None if factor is not None else g, None, relu_mask, None, None), value)
        self._replace(last, y, sums, total)

    def _group_norm(self, node: fx.Node) -> None:
        """A group norm, with the ReLU behind it and the count of what is active."""
        x, scale, shift, _, channels, _, groups, epsilon = node.args
        results = {each.args[1]: each for each in node.users}
        y, scale_value, shift_value = results.get(0), constant_value(scale), constant_value(shift)
        if any(each in results and results[each].users for each in (1, 2)) or y is None:
            return
        value = y.meta["val"]
        if value.ndim != 4 or value.dtype != torch.float32 or scale_value is None or shift_value is None:
            return
        if not GroupNorm.takes(channels, groups):
            return
        user, last, counts = only_user(y), y, list[fx.Node]()
        if user is not None and activation_of(user) == RELU:
            last = user
            counts = counted(last, RELU)
        kernel = GroupNorm(groups, scale_value, shift_value, epsilon, last is not y)
        with self.graph.inserting_before(last):
            made, total = self._place(kernel, (x,), value)
        self._replace(last, made, counts, total)

    def _gate(self, node: fx.Node) -> None:
        """A map times a number for each of its channels, image by image."""
        value = node.meta["val"]
        if value.ndim != 4 or value.dtype != torch.float32 or node.kwargs:
            return
        one, other = node.args
        for x, gate in ((one, other), (other, one)):
            if not alike(x, node) or not isinstance(gate, fx.Node) or constant_value(gate) is not None:
                continue
            if _are_maps(gate) and _is_one_position(gate, node) and tuple(value.shape[2:]) != (1, 1):
                kernel = Pointwise(None, None, None, IDENTITY, None)
                with self.graph.inserting_before(node):
                    y, total = self._place(kernel, (x, None, None, None, gate), value)
                self._replace(node, y, [], total)
                return

    def _gate_gradient(self, node: fx.Node) -> None:
        """A sum over space of a product of two maps, times gate * (1 - gate)."""
        for total, slope in (node.args, node.args[::-1]):
            if not calls(total, aten.sum.dim_IntList) or list(total.args[1:]) != [[2, 3], True] or total.kwargs:
                continue
            product, gate = total.args[0], _sigmoid_of_slope(slope)
            if gate is None or not calls(product, aten.mul.Tensor) or not _are_maps(node, gate, *product.args):
                continue
            g, y = product.args
            if alike(g, y) and alike(gate, node) and _is_one_position(gate, g):
                self._use(node, GateGradient(), (g, y, gate))
                return

    def _mean_gradient(self, node: fx.Node) -> None:
        """A map plus what is, at each position, the area's share of a number a channel."""
        for x, share in (node.args, node.args[::-1]):
            if node.kwargs or not _are_maps(node, x) or not alike(x, node) or not calls(share, aten.expand.default):
                continue
            mean, area = share.args[0], _size(node)[0] * _size(node)[1]
            if not calls(mean, aten.div.Scalar) or mean.args[1] != area or not alike(share, node):
                continue
            if _are_maps(mean.args[0]) and _is_one_position(mean.args[0], x):
                self._use(node, MeanGradient(), (x, mean.args[0]))
                return

    def _use(self, node: fx.Node, kernel: nn.Module, inputs: tuple[fx.Node, ...]) -> None:
        """Has a node's value come from a kernel that gives it alone."""
        with self.graph.inserting_before(node):
            made = call_kernel(self.graph, kernel, inputs)
            y = self.graph.call_function(operator.getitem, (made, 0))
            y.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(y)
        erase(self.graph, node)

    def _cat(self, node: fx.Node) -> None:
        """Maps side by side, whole panels of channels each but the last."""
        value, maps, axis = node.meta["val"], node.args[0], [*node.args, 0][1]
        if value.ndim != 4 or axis not in (1, -3) or value.dtype != torch.float32:
            return
        if any(each.meta["val"].dtype != value.dtype or each.meta["val"].ndim != 4 for each in maps):
            return
        if any(int(each.meta["val"].shape[1]) % NR for each in maps[:-1]):
            return
        if len(maps) == 1:
            node.replace_all_uses_with(maps[0])
            erase(self.graph, node)
            return
        with self.graph.inserting_before(node):
            made = call_kernel(self.graph, Concatenation(), tuple(maps))
            y = self.graph.call_function(operator.getitem, (made, 0))
            y.meta["val"] = value
        node.replace_all_uses_with(y)
        erase(self.graph, node)

    def _max_pool(self, node: fx.Node) -> None:
        """A max-pooling whose choice nobody asks for."""
        x, *given = node.args
        results = {each.args[1]: each for each in node.users}
        if 0 not in results or (1 in results and results[1].users) or not _is_map(results[0]):
            return
        around = padded_by_zeros(x)
        windows = windows_of(given, _size(results[0]))
        if around is not None:
            (x, (top, left, _, _)) = around
            # Where a window hangs over the edge of what was padded there is nothing, not zeros.
            if windows.padding != (0, 0) or any(given[4:]):
                return
            windows = Windows(windows.kernel, windows.stride, (top, left), windows.dilation, windows.out)
        self._pool(results[0], x, Pool("maximum", windows, zeros=around is not None))

    def _avg_pool(self, node: fx.Node) -> None:
        defaults: list[Any] = [None, None, [], [0, 0], False, True, None]
        x, kernel, stride, padding, ceil_mode, with_padding, divisor = list(node.args) + defaults[len(node.args) :]
        if ceil_mode or not _is_map(node):
            return
        windows = windows_of([kernel, stride, padding], _size(node))
        self._pool(node, x, Pool("mean", windows, divisor=divisor or (prod(windows.kernel) if with_padding else 0)))

    def _mean(self, node: fx.Node) -> None:
        """A mean over space that a convolution reads; a linear head's is its own."""
        if node.target is aten.adaptive_avg_pool2d.default:
            if _is_map(node) and list(node.args[1]) == [1, 1] and any(user.op == "call_module" for user in node.users):
                self._pool(node, node.args[0], Pool("mean", None))
            return
        defaults: list[Any] = [None, (), False]
        _, axes, kept = list(node.args) + defaults[len(node.args) :]
        if not _is_map(node) or not kept or sorted(axis % 4 for axis in axes or ()) != [2, 3] or node.kwargs:
            return
        if any(user.op == "call_module" for user in node.users):
            self._pool(node, node.args[0], Pool("mean", None))

    def _pool(self, node: fx.Node, x: fx.Node, kernel: Pool) -> None:
        if x.meta["val"].dtype != torch.float32:
            return
        with self.graph.inserting_before(node):
            y, total = self._place(kernel, (x, None), node.meta["val"])
        self._replace(node, y, [], total)

    def _channels_first(self, node: fx.Node) -> None:
        """Has PyTorch normalise each channel by itself with its positions side by side.

        Channels last it takes the variance for the mean of squares less the square of the mean, of which rounding alone
        is left where a channel is constant, and the norm makes up to 300 times as much of it.
        """
        x = node.args[0]
        with self.graph.inserting_before(node):
            first = self.graph.call_function(aten.clone.default, (x,), {"memory_format": torch.contiguous_format})
            first.meta["val"] = x.meta["val"]
        node.replace_input_with(x, first)

    def _condition(self, node: fx.Node) -> None:
        """Whether each position of a grid has an active channel, of all or of some that follow each other."""
        grid = grid_of(node)
        if grid is None:
            return
        (y, begin, step), channels = grid, (0, None)
        if calls(y, aten.slice.Tensor) and y.args[1] == 1 and list(y.args[4:]) in ([], [1]):
            y, _, *channels = y.args[:4]
        self._check(node, y, Check(begin, step, *channels))

    def _bound(self, node: fx.Node) -> None:
        """Whether all of an image is above a bound, as a number."""
        above = node.args[0]
        if not calls(above, aten.gt.Scalar) or node.meta["val"].dtype != torch.float32:
            return
        least, bound = above.args
        if not calls(least, aten.amin.default) or list(least.args[1:]) != [[1]]:
            return
        flat = least.args[0]
        if calls(flat, aten.reshape.default) and flat.meta["val"].ndim == 2 and isinstance(bound, (int, float)):
            y = flat.args[0]
            if str(y.meta["val"].shape[0]) == str(flat.meta["val"].shape[0]):
                self._check(node, y, BoundCheck(float(bound)))

    def _check(self, node: fx.Node, y: fx.Node, kernel: nn.Module) -> None:
        if _are_maps(y):
            self._use(node, kernel, (y,))


def activation_of(node: fx.Node) -> Activation | None:
    """The activation that a node is, of those that kernels have; None of any other node."""
    if node.target is aten.relu.default:
        return RELU
    if node.target is aten.sigmoid.default:
        return SIGMOID
    if node.target in (aten.hardtanh.default, aten.clamp.default) and not node.kwargs:
        defaults: list[Any] = [None, None] if node.target is aten.clamp.default else [-1.0, 1.0]
        low, high = list(node.args[1:]) + defaults[len(node.args) - 1 :]
        if low == 0 and isinstance(high, (int, float)) and high > 0:
            return Activation("relu", float(high))
    return None


def alike_in_images(one: fx.Node, other: fx.Node) -> bool:
    """Whether two maps are of as many images and channels."""
    (images, channels), (others, same) = (each.meta["val"].shape[:2] for each in (one, other))
    return channels == same and (images is others or str(images) == str(others))


def padded_by_zeros(x: Any) -> tuple[fx.Node, tuple[int, int, int, int]] | None:
    """The map around which zeros were padded, and how many: (top, left, bottom, right). None of any other node."""
    if not calls(x, aten.constant_pad_nd.default) or len(x.args[1]) != 4 or [*x.args, 0][2] != 0:
        return None
    left, right, top, bottom = x.args[1]
    if min(left, right, top, bottom) < 0 or x.meta["val"].dtype != torch.float32:
        return None
    return x.args[0], (top, left, bottom, right)


def _per_channel_everywhere(x: fx.Node) -> Tensor | None:
    """The (K,) numbers of a map that has one for each channel, at every position of every image."""
    value = constant_value(x.args[0]) if calls(x, aten.expand.default) else None
    if value is None or value.ndim != 4 or value.shape[0] != 1 or value.dtype != torch.float32:
        return None
    if value.shape[1] != x.meta["val"].shape[1]:
        return None
    first = value[0, :, 0, 0]
    return first.clone() if bool((value[0] == first[:, None, None]).all()) else None


def _are_maps(*nodes: Any) -> bool:
    """Whether all are float32 of four axes."""
    values = [node.meta["val"] if isinstance(node, fx.Node) else None for node in nodes]
    return all(isinstance(each, Tensor) and each.ndim == 4 and each.dtype == torch.float32 for each in values)


def _is_one_position(small: fx.Node, x: fx.Node) -> bool:
    """Whether a map is a number for each channel of each image of another."""
    return tuple(small.meta["val"].shape[2:]) == (1, 1) and alike_in_images(small, x)


def _sigmoid_of_slope(slope: Any) -> fx.Node | None:
    """Which s is meant by s * (1 - s)."""
    if not calls(slope, aten.mul.Tensor) or slope.kwargs:
        return None
    for s, rest in (slope.args, slope.args[::-1]):
        if calls(rest, aten.rsub.Scalar) and rest.args[0] is s and list(rest.args[1:]) == [1]:
            return s
    return None


def _size(node: fx.Node) -> Pair:
    value = node.meta["val"]
    return int(value.shape[2]), int(value.shape[3])


def _is_map(node: fx.Node) -> bool:
    value = node.meta["val"]
    return value.ndim == 4 and value.dtype == torch.float32


def convolution_part(node: fx.Node, weight: Any, known: dict[str, Weights]) -> Part | None:
    """A convolution over two axes, not transposed, that the kernel takes; None for any other node."""
    value = node.meta["val"]
    if value.ndim != 4 or value.dtype != torch.float32:
        return None
    if node.target is aten.convolution.default:
        _, _, _, stride, padding, dilation, transposed, _, groups = node.args
        if transposed:
            return None
    else:
        defaults: list[Any] = [None, None, None, [1, 1], [0, 0], [1, 1], 1]
        stride, padding, dilation, groups = (list(node.args) + defaults[len(node.args) :])[3:]
    if not takes(weight, groups) or isinstance(padding, str):
        return None
    weights = known.setdefault(f"{node.args[1].target} in {groups}", Weights(weight, groups))
    return Part(weights, pair(stride), pair(padding), pair(dilation))


def _is_transposed(node: fx.Node) -> bool:
    return node.target is aten.convolution.default and bool(node.args[6])


def _adjoint(node: fx.Node, weight: Tensor) -> tuple[list[Part], Pair] | None:
    """The parts of a transposed convolution that is the adjoint of a strided one, and where it leads."""
    value = node.meta["val"]
    if node.target is not aten.convolution.default or not node.args[6] or value.ndim != 4 or weight.ndim != 4:
        return None
    _, _, _, stride, padding, dilation, _, _, groups = node.args
    exchanged = weight.new_empty(()).expand(weight.shape[1] * groups, weight.shape[0] // groups, *weight.shape[2:])
    if pair(dilation) != (1, 1) or value.dtype != torch.float32 or not takes(exchanged, groups):
        return None
    input_size = (int(value.shape[2]), int(value.shape[3]))
    stride, padding = pair(stride), pair(padding)
    reached = output_size(value.shape, exchanged.shape, stride, padding, (1, 1))
    if reached != tuple(node.args[0].meta["val"].shape[2:]):
        return None
    return adjoint_parts(weight, stride, padding, groups), input_size


def _counted(graph: fx.Graph) -> set[fx.Node]:
    """The nodes of the gradients whose non-zeros are counted, without those that the logits are made of.

    Made of zeros alone, they have to be zero exactly: in Winograd's tiles rounding leaves something of the neighbours.
    """
    results = graph.output_node().args[0]
    logits = results[0] if isinstance(results, (tuple, list)) else results
    counts = [node for node in graph.nodes if calls(node, aten.ne.Scalar) and node.args[1] == 0]
    return _behind(counts) - _behind([logits])


def _normalises_channels(node: fx.Node) -> bool:
    """Whether a node is a norm by the variance of each channel of each image."""
    if node.target is aten.native_group_norm.default:
        return bool(node.args[4] == node.args[6])  # as many groups as channels
    return node.target is aten._native_batch_norm_legit.no_stats


def _behind(nodes: list[Any]) -> set[fx.Node]:
    """The nodes, and all that they are made of."""
    found: set[fx.Node] = set()
    left = [node for node in nodes if isinstance(node, fx.Node)]
    while left:
        node = left.pop()
        if node not in found:
            found.add(node)
            left += node.all_input_nodes
    return found


def _unread(sums: list[fx.Node], node: fx.Node, last: fx.Node) -> bool:
    """Whether nothing reads the sums of a node before `last`, where a kernel that makes both would stand."""
    between = set()
    while last is not node:
        last = last.prev
        between.add(last)
    return not any(user in between for each in sums for user in each.users)


def _added(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """What is added to a node that nothing else reads, and the sum."""
    user = only_user(node)
    if user is None or user.target is not aten.add.Tensor or user.kwargs or len(user.args) != 2:
        return None
    other = user.args[1] if user.args[0] is node else user.args[0]
    return None if other is node or not alike(other, node) else (other, user)


def _masked(node: fx.Node) -> tuple[fx.Node, Activation, fx.Node] | None:
    """The map whose active units let a node through that nothing else reads, its bound, and what is let through."""
    user = only_user(node)
    if user is None or user.target is not aten.where.self or user.args[2] is not node:
        return None
    found = relu_mask_of(user)
    return None if found is None else (*found, user)


def relu_mask_of(where: fx.Node) -> tuple[fx.Node, Activation] | None:
    """The map where a selection is zero because it is not active there, with its bound; None of any other selection."""
    inactive, zero, _ = where.args
    upper = inf
    if calls(inactive, aten.logical_or.default):
        inactive, above = inactive.args
        if not calls(above, aten.ge.Scalar) or not calls(inactive, aten.le.Scalar):
            return None
        if above.args[0] is not inactive.args[0] or not above.args[1] > 0:
            return None
        upper = float(above.args[1])
    if not isinstance(inactive, fx.Node) or inactive.target is not aten.le.Scalar or inactive.args[1] != 0:
        return None
    nothing = constant_value(zero)
    relu_mask = inactive.args[0]
    if nothing is None or bool(nothing.any()) or not alike(relu_mask, where):
        return None
    return relu_mask, Activation("identity", upper)


def summed(node: fx.Node, activation: Activation | None) -> tuple[str | None, list[fx.Node]]:
    """What of a node is summed over space, and the sums; with an activation the count of what is active, too."""
    for name, find in _STATISTICS.items():
        if name == "positive" and activation is None:
            continue
        users = [each for user in node.users for each in find(user, activation)]
        if sums := [each for each in dict.fromkeys(users) if over_space(each)]:
            return name, sums
    return None, []


def counted(node: fx.Node, activation: Activation) -> list[fx.Node]:
    """The counts of a node's active units, where nothing else of it is summed over space."""
    statistic, sums = summed(node, activation)
    return sums if statistic == "positive" else []


def _absolute(user: fx.Node, activation: Activation | None) -> list[fx.Node]:
    return list(user.users) if user.target is aten.abs.default else []


def _positive(user: fx.Node, activation: Activation | None) -> list[fx.Node]:
    if user.target is not aten.gt.Scalar or user.args[1] != 0:
        return []
    if activation is not None and activation.upper < inf:
        return [each for both in user.users if bounded(both) == activation.upper for each in _copies(both)]
    return _copies(user)


def _copies(mask: fx.Node) -> list[fx.Node]:
    return [each for copy in mask.users if copy.target is aten._to_copy.default for each in copy.users]


_STATISTICS: dict[str, Callable[[fx.Node, Activation | None], list[fx.Node]]] = {
    "sum": lambda user, _: [user],
    "abs_sum": _absolute,
    "positive": _positive,
}


def scaled(node: fx.Node, sums: list[fx.Node], channels: int) -> tuple[Tensor, fx.Node] | None:
    """The factor a channel of a node that nothing but its sums reads besides, and the product."""
    users = [user for user in node.users if user not in sums and not any(each in sums for each in user.users)]
    if len(users) != 1 or users[0].target is not aten.mul.Tensor or users[0].args[0] is not node:
        return None
    if not _unread(sums, node, users[0]):
        return None
    factor = per_channel(users[0].args[1], channels)
    return None if factor is None else (factor, users[0])
