"""A program rewritten for runtimes whose max-pooling with indices is slow: OpenVINO's takes a hundred times as long.

What a program does with the indices is to add something of each window at the position of its first maximum. For each
tap of the windows that is

    first = [x at the tap = maximum] and no tap before it was;  add first * what, at the tap's positions

Positions of one remainder of the stride are one map, in which a tap is moved by whole positions; the maps of all
remainders interleave.
"""

from itertools import product
from math import inf
from typing import Any

import torch
from torch import fx

from gaia_fast.compiler.ir.passes import clean_up
from gaia_fast.compiler.ir.pooling import scattered_by_pooling
from gaia_fast.compiler.ir.rewriting import pair

aten = torch.ops.aten


def expand_pooling_argmax(module: fx.GraphModule) -> None:
    """Writes what is scattered by the indices of max-poolings in the form above; these then return maxima alone."""
    for node in [node for node in module.graph.nodes if node.target is aten.reshape.default]:
        found = scattered_by_pooling(node)
        if found is None:
            continue
        pool, what = found
        if len(pool.args) > 5:  # windows over the edge
            continue
        with module.graph.inserting_before(node):
            node.replace_all_uses_with(_Expansion(module.graph, pool).sum(what))
    clean_up(module)
    for node in [node for node in module.graph.nodes if node.target is aten.max_pool2d_with_indices.default]:
        if [each.args[1] for each in node.users] == [0]:
            (y,) = node.users
            with module.graph.inserting_before(node):
                alone = module.graph.call_function(aten.max_pool2d.default, node.args, node.kwargs)
            alone.meta["val"] = y.meta["val"]
            y.replace_all_uses_with(alone)
    clean_up(module)


class _Expansion:
    def __init__(self, graph: fx.Graph, pool: fx.Node) -> None:
        self.graph, self.pool = graph, pool
        defaults: list[Any] = [None, None, [], 0, 1]
        x, kernel, stride, padding, dilation = list(pool.args) + defaults[len(pool.args) :]
        self.x, self.kernel = x, pair(kernel)
        self.stride, self.padding, self.dilation = pair(stride or kernel), pair(padding), pair(dilation)
        self.size = [int(size) for size in x.meta["val"].shape[2:]]
        self.y = next(each for each in pool.users if each.args[1] == 0)
        self.out = [int(size) for size in self.y.meta["val"].shape[2:]]

    def sum(self, what: fx.Node) -> fx.Node:
        """(N, C, H, W): what is added at each position."""
        reach = [
            (o - 1) * s + d * (k - 1) + 1
            for o, s, d, k in zip(self.out, self.stride, self.dilation, self.kernel, strict=True)
        ]
        beyond = [max(0, r - p - size) for r, p, size in zip(reach, self.padding, self.size, strict=True)]
        (top, left), (bottom, right) = self.padding, beyond
        around = self._call(aten.constant_pad_nd.default, self.x, [left, right, top, bottom], -inf)
        taken: fx.Node | None = None
        parts: dict[tuple[int, int], fx.Node] = {}
        for a, b in product(range(self.kernel[0]), range(self.kernel[1])):
            first = self._indicator(self._tap(around, a, b))
            if taken is not None:
                first = self._call(aten.mul.Tensor, first, self._call(aten.rsub.Scalar, taken, 1))
            taken = first if taken is None else self._call(aten.add.Tensor, taken, first)
            (row, rows), (column, columns) = self._moved(0, a), self._moved(1, b)
            moved = self._move(self._call(aten.mul.Tensor, first, what), (rows, columns), (row, column))
            known = parts.get((row, column))
            parts[row, column] = moved if known is None else self._call(aten.add.Tensor, known, moved)
        return self._interleave(parts)

    def _indicator(self, tap: fx.Node) -> fx.Node:
        equal = self._call(aten.eq.Tensor, tap, self.y)
        made = self.graph.call_function(aten._to_copy.default, (equal,), {"dtype": torch.float32})
        made.meta["val"] = equal.meta["val"].to(torch.float32)
        return made

    def _tap(self, around: fx.Node, a: int, b: int) -> fx.Node:
        """What a tap of each window sees."""
        node = around
        for axis, tap in enumerate((a, b)):
            begin = tap * self.dilation[axis]
            end = begin + (self.out[axis] - 1) * self.stride[axis] + 1
            node = self._call(aten.slice.Tensor, node, 2 + axis, begin, end, self.stride[axis])
        return node

    def _moved(self, axis: int, tap: int) -> tuple[int, int]:
        """The remainder of the positions that a tap sees, and by how many of them it is moved."""
        offset = tap * self.dilation[axis] - self.padding[axis]
        return offset % self.stride[axis], offset // self.stride[axis]

    def _length(self, axis: int) -> int:
        return -(-self.size[axis] // self.stride[axis])

    def _move(self, node: fx.Node, by: tuple[int, int], remainder: tuple[int, int]) -> fx.Node:
        """Entry o to place o + by; as long as the positions of a remainder, zeros elsewhere."""
        pads: list[int] = []
        for axis in (0, 1):
            begin, end = max(0, -by[axis]), min(self.out[axis], self._length(axis) - by[axis])
            if (begin, end) != (0, self.out[axis]):
                node = self._call(aten.slice.Tensor, node, 2 + axis, begin, end, 1)
            before = begin + by[axis]
            pads = [before, self._length(axis) - before - (end - begin), *pads]
        return self._call(aten.constant_pad_nd.default, node, pads, 0.0) if any(pads) else node

    def _interleave(self, parts: dict[tuple[int, int], fx.Node]) -> fx.Node:
        (rows, columns), some = self.stride, next(iter(parts.values()))
        if (rows, columns) == (1, 1):
            return some
        zero = self._call(aten.mul.Scalar, some, 0.0)
        lines = []
        for row in range(rows):
            line = [parts.get((row, column), zero) for column in range(columns)]
            stacked = self._call(aten.stack.default, line, 4)
            lines.append(stacked)
        all_of = self._call(aten.stack.default, lines, 3)  # (N, C, H / s, s, W / s, s)
        images = self.graph.call_function(aten.sym_size.int, (self.x, 0))
        images.meta["val"] = self.x.meta["val"].shape[0]
        channels = int(self.x.meta["val"].shape[1])
        shape = [images, channels, self._length(0) * rows, self._length(1) * columns]
        whole = self.graph.call_function(aten.reshape.default, (all_of, shape))
        whole.meta["val"] = all_of.meta["val"].reshape(images.meta["val"], *shape[1:])
        for axis in (0, 1):
            whole = self._call(aten.slice.Tensor, whole, 2 + axis, 0, self.size[axis], 1)
        return whole

    def _call(self, target: Any, *arguments: Any) -> fx.Node:
        made = self.graph.call_function(target, arguments)
        made.meta["val"] = target(*fx.node.map_arg(arguments, lambda each: each.meta["val"]))
        return made
