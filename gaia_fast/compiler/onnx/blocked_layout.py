"""A program rewritten for onnxruntime, which keeps maps in a blocked layout as long as it can.

It stays in that layout between convolutions, poolings, sums and products of whole maps, and turns every map around,
there and back, for anything else. So what a program does between convolutions is written as those. For a ReLU's output
y:

    [y > 0]                    clip(y * 3e38, 0, 1): a convolution of one weight a channel, with its activation
    [y < b], y at most b       clip((b - y) * 2^100, 0, 1), in the same way
    a & b                      a product
    a window of which is set   a max-pooling; where windows are strided, what they are read from is each window's
                               value repeated, and a convolution with ones and its activation
    y > 0 ? g : 0              g * [y > 0]
    count of y > 0, sum of g   average pooling over the whole map; its area is put back once for all maps together
    any channel of y > 0       a convolution with the weights -1, whose largest value tells of the emptiest position
    x * scale + shift          a convolution of one weight a channel

Exact for float32: y * 3e38 is at least 1 for every normal number, a product with a power of two is not rounded, and
sums of ones are whole numbers.
"""

import itertools
from typing import Any

import torch
from torch import fx

from gaia_fast.compiler.ir.constants import constant, constant_value
from gaia_fast.compiler.ir.rewriting import calls, per_channel, same_shape

aten = torch.ops.aten

_LARGE = 3e38
_LARGE_POWER = 2.0**100
_BLOCK = 16  # channels that onnxruntime keeps together, at most


def to_blocked_layout(module: fx.GraphModule) -> None:
    """Brings a program into the form above."""
    _Rewriter(module).run()


class _Rewriter:
    def __init__(self, module: fx.GraphModule) -> None:
        self.module, self.graph = module, module.graph
        self._open: dict[fx.Node, fx.Node] = {}
        self._below: dict[fx.Node, fx.Node] = {}
        self._masks: dict[fx.Node, fx.Node | None] = {}

    def run(self) -> None:
        for node in list(self.graph.nodes):
            if node.target is aten.where.self:
                self._selection(node)
            elif node.target is aten.cat.default:
                self._sums(node)
            elif node.target is aten.stack.default:
                self._conditions(node)
            elif node.target is aten.mul.Tensor:
                self._norm(node)

    def _selection(self, node: fx.Node) -> None:
        inactive, zero, g = node.args
        if not (calls(inactive, aten.le.Scalar) and inactive.args[1] == 0 and _is_zero(zero)):
            return
        if same_shape(inactive.args[0], g) and self._blocks(inactive.args[0]):
            with self.graph.inserting_before(node):
                product = self._call(aten.mul.Tensor, g, self._indicator(inactive.args[0]), like=node)
            node.replace_all_uses_with(product)

    def _norm(self, node: fx.Node) -> None:
        """A factor a channel, with or without a shift behind it: a convolution of one weight a channel."""
        x, factor = node.args
        value = node.meta["val"]
        if value.ndim != 4 or value.dtype != torch.float32 or not isinstance(x, fx.Node) or not same_shape(x, node):
            return
        channels = int(value.shape[1])
        scale = per_channel(factor, channels)
        if scale is None or channels % _BLOCK:
            return
        shift, last = None, node
        if len(node.users) == 1:
            user = next(iter(node.users))
            if calls(user, aten.add.Tensor) and user.args[0] is node and not user.kwargs:
                shift = per_channel(user.args[1], channels)
                last = node if shift is None else user
        with self.graph.inserting_before(last):
            weight = constant(self.module, scale.reshape(channels, 1, 1, 1))
            bias = None if shift is None else constant(self.module, shift.reshape(channels))
            arguments = (x, weight, bias, [1, 1], [0, 0], [1, 1], False, [0, 0], channels)
            folded = self._call(aten.convolution.default, *arguments, like=last)
        last.replace_all_uses_with(folded)

    def _sums(self, node: fx.Node) -> None:
        """The (N, K) sums of maps, beside each other: the means together, and the areas put back behind."""
        if node.args[1:] != (1,) or node.meta["val"].ndim != 2:
            return
        with self.graph.inserting_before(node):
            pieces: list[fx.Node] = []
            areas: list[float] = []
            sums = [self._summed(each) for each in node.args[0]]
            if not any(sums):
                return
            for mapped, run in itertools.groupby(
                zip(sums, node.args[0], strict=True), lambda pair: pair[0] is not None
            ):
                pooled, before = [], len(areas)
                for source, each in run:
                    channels = int(each.meta["val"].shape[1])
                    if source is None:
                        pieces.append(each)
                        areas += [1.0] * channels
                        continue
                    height, width = (int(size) for size in source.meta["val"].shape[2:])
                    pooled.append(self.graph.call_function(aten.avg_pool2d.default, (source, [height, width])))
                    areas += [float(height * width)] * channels
                if mapped:
                    pieces.append(self._flat(pooled, len(areas) - before, node))
            means = pieces[0] if len(pieces) == 1 else self._call(aten.cat.default, pieces, 1, like=node)
            factors = constant(self.module, torch.tensor(areas, dtype=node.meta["val"].dtype))
            scaled = self._call(aten.mul.Tensor, means, factors, like=node)
        for user in list(node.users):
            if calls(user, aten.mul.Tensor) and constant_value(user.args[1]) is not None:
                with self.graph.inserting_before(user):
                    joined = self._call(aten.mul.Tensor, factors, user.args[1], like=factors)
                    user.replace_all_uses_with(self._call(aten.mul.Tensor, means, joined, like=user))
        node.replace_all_uses_with(scaled)

    def _flat(self, maps: list[fx.Node], channels: int, like: fx.Node) -> fx.Node:
        """(N, channels) of maps of one position each: together before they leave the layout, and turned around once."""
        joined = self.graph.call_function(aten.cat.default, (maps, 1)) if len(maps) > 1 else maps[0]
        images = self.graph.call_function(aten.sym_size.int, (joined, 0))
        return self._call(aten.reshape.default, joined, [images, channels], like=like)

    def _summed(self, node: fx.Node) -> fx.Node | None:
        """The map whose mean over space stands for a sum, or a count."""
        if not calls(node, aten.sum.dim_IntList) or list(node.args[1]) != [2, 3] or len(node.args) > 2:
            return None
        source = node.args[0]
        if calls(source, aten._to_copy.default) and source.args[0].meta["val"].dtype == torch.bool:
            return self._mask(source)
        value = source.meta["val"]
        return source if value.dtype == torch.float32 and value.ndim == 4 else None

    def _conditions(self, node: fx.Node) -> None:
        """The (N, conditions), beside each other; in another order than before, where some stay as they are."""
        if node.args[1:] != (1,) or node.meta["val"].ndim != 2:
            return
        blocks: list[fx.Node] = []
        rest: list[fx.Node] = []
        with self.graph.inserting_before(node):
            for each in node.args[0]:
                emptiest = self._emptiest(each)
                (rest if emptiest is None else blocks).append(each if emptiest is None else emptiest)
            if not blocks:
                return
            flat = self._flat(blocks, len(blocks) * _BLOCK, node)
            columns = self.graph.call_function(aten.slice.Tensor, (flat, 1, 0, len(blocks) * _BLOCK, _BLOCK))
            held = self.graph.call_function(aten.neg.default, (columns,))
            if rest:
                held = self.graph.call_function(
                    aten.cat.default, ([held, self.graph.call_function(aten.stack.default, (rest, 1))], 1)
                )
            held.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(held)

    def _emptiest(self, node: fx.Node) -> fx.Node | None:
        """min over a grid of positions of [max over channels of y] > 0, for ReLU's y: (N, 16, 1, 1)."""
        if not calls(node, aten.amin.default) or not calls(node.args[0], aten.reshape.default):
            return None
        highest, pool = node.args[0].args[0], None
        if calls(highest, aten.max_pool2d.default):
            pool, highest = highest, highest.args[0]
            if len(pool.args) > 4 and list(pool.args[4]) != [1, 1]:
                return None
        if not calls(highest, aten.amax.default) or list(highest.args[1]) != [1]:
            return None
        y, begin, step = highest.args[0], 0, 1
        while calls(y, aten.slice.Tensor) and y.args[1] in (2, 3):
            y, _, begin, _, step = [*y.args, 1][:5]
        source = y if self._blocks(y) else self._mask(y)
        if source is None:
            return None
        y, size = source, [int(each) for each in y.meta["val"].shape[2:]]
        taps = torch.zeros((_BLOCK, int(y.meta["val"].shape[1]), begin + 1, begin + 1))
        taps[:, :, begin, begin] = -1
        arguments = (y, constant(self.module, taps), None, [step, step], [0, 0], [1, 1], False, [0, 0], 1)
        emptiness = self.graph.call_function(aten.convolution.default, arguments)
        if pool is not None:
            emptiness = self.graph.call_function(aten.avg_pool2d.default, (emptiness, *pool.args[1:4]))
        windows = [(each - begin - 1) // step + 1 for each in size]
        return self.graph.call_function(aten.max_pool2d.default, (emptiness, windows))

    def _mask(self, node: Any) -> fx.Node | None:
        """Whether a bool is set, or a float32 positive, as 0 and 1 in the layout; None where it cannot be written so.

        Asked of bools of a map's shape and of what they become.
        """
        if not isinstance(node, fx.Node):
            return None
        if node not in self._masks:
            self._masks[node] = self._as_mask(node)
        return self._masks[node]

    def _as_mask(self, node: fx.Node) -> fx.Node | None:
        source: Any = node.args[0] if node.args else None
        if calls(node, aten.gt.Scalar) and node.args[1] == 0:
            return self._indicator(source) if self._blocks(source) else self._mask(source)
        if calls(node, aten.lt.Scalar) and self._blocks(source) and node.args[1] == _bound(source):
            return self._below_bound(source)
        if calls(node, aten.bitwise_and.Tensor):
            one, other = (self._mask(each) for each in node.args)
            if one is None or other is None or not same_shape(one, other):
                return None
            with self.graph.inserting_after(max(one, other)):
                return self._call(aten.mul.Tensor, one, other, like=one)
        if calls(node, aten._to_copy.default) or (calls(node, aten.clamp.default) and node.args[1:] == (None, 1)):
            return self._mask(source)
        if calls(node, aten.max_pool2d.default):
            windows = self._mask(source)
            if windows is None:
                return None
            with self.graph.inserting_after(windows):
                return self._call(aten.max_pool2d.default, windows, *node.args[1:], like=node)
        if calls(node, aten.convolution.default) and node.args[6]:
            return self._reached(node)
        return None

    def _reached(self, node: fx.Node) -> fx.Node | None:
        """What strided windows of one channel are read from, a transposed convolution with ones."""
        x, weight, bias, stride, padding, dilation, _, _, groups = node.args
        ones, size = constant_value(weight), node.meta["val"].shape
        windows = self._mask(x)
        if windows is None or ones is None or not bool((ones == 1).all()) or bias is not None:
            return None
        given, channels = windows.meta["val"].shape, int(size[1])
        alike = len({stride[0], stride[-1]}) == len({padding[0], padding[-1]}) == len({*ones.shape[2:]}) == 1
        (s, p), k = (int(stride[0]), int(padding[0])), int(ones.shape[2])
        whole = all(int(given[axis]) * s == int(size[axis]) for axis in (2, 3))
        if not alike or list(dilation) != [1, 1] or groups != channels or ones.shape[1] != 1 or not whole or k < s:
            return None
        # Position i is read by the windows i - before to i - before + k - s, if each is repeated `s` times.
        before, length = k - s - p, k - s + 1
        reach = max(before, length - 1 - before)
        taps = torch.zeros((channels, 1, 2 * reach + 1, 2 * reach + 1))
        taps[:, :, reach - before : reach - before + length, reach - before : reach - before + length] = 1
        with self.graph.inserting_after(windows):
            weights = constant(self.module, taps)
        with self.graph.inserting_after(weights):
            repeated = self.graph.call_function(aten.upsample_nearest2d.vec, (windows, None, [float(s), float(s)]), {})
            repeated.meta["val"] = node.meta["val"]
        with self.graph.inserting_after(repeated):
            arguments = (repeated, weights, None, [1, 1], [reach, reach], [1, 1], False, [0, 0], channels)
            reached = self._call(aten.convolution.default, *arguments, like=node)
        with self.graph.inserting_after(reached):
            return self._call(aten.clamp.default, reached, 0.0, 1.0, like=node)

    def _indicator(self, y: Any) -> fx.Node:
        """[y > 0] as float32, next to where y is made."""
        if y not in self._open:
            self._open[y] = self._clipped(y, _LARGE, None)
        return self._open[y]

    def _below_bound(self, y: Any) -> fx.Node:
        """[y < b] as float32 of a y that is at most b, next to where y is made."""
        if y not in self._below:
            bound = _bound(y)
            assert bound is not None
            self._below[y] = self._clipped(y, -_LARGE_POWER, bound * _LARGE_POWER)
        return self._below[y]

    def _clipped(self, y: fx.Node, factor: float, shift: float | None) -> fx.Node:
        """clip(y * factor + shift, 0, 1)."""
        channels = int(y.meta["val"].shape[1])
        with self.graph.inserting_after(y):
            weight = last = constant(self.module, torch.full((channels, 1, 1, 1), factor))
        bias = None
        if shift is not None:
            with self.graph.inserting_after(weight):
                bias = last = constant(self.module, torch.full((channels,), shift))
        with self.graph.inserting_after(last):
            arguments = (y, weight, bias, [1, 1], [0, 0], [1, 1], False, [0, 0], channels)
            scaled = self._call(aten.convolution.default, *arguments, like=y)
        with self.graph.inserting_after(scaled):
            return self._call(aten.clamp.default, scaled, 0.0, 1.0, like=y)

    def _blocks(self, y: Any) -> bool:
        """Whether y is the float32 output of a ReLU, bounded or not, that is kept in blocks."""
        if not (calls(y, aten.relu.default) or _bound(y) is not None):
            return False
        value = y.meta["val"]
        return value.ndim == 4 and value.dtype == torch.float32 and int(value.shape[1]) % _BLOCK == 0

    def _call(self, target: Any, *args: Any, like: fx.Node) -> fx.Node:
        made = self.graph.call_function(target, args)
        made.meta["val"] = like.meta["val"]
        return made


def _is_zero(node: Any) -> bool:
    if calls(node, aten.scalar_tensor.default):
        return bool(node.args[0] == 0)
    value = constant_value(node)
    return value is not None and not bool(value.any())


def _bound(y: Any) -> float | None:
    """The upper bound of a bounded ReLU's output."""
    if not (calls(y, aten.hardtanh.default) or calls(y, aten.clamp.default)) or len(y.args) != 3 or y.kwargs:
        return None
    low, high = y.args[1:]
    return float(high) if low == 0 and isinstance(high, int | float) and 2.0**-60 < high < 2**20 else None
