"""Max-poolings in a graph, and what is scattered by the indices that they return."""

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from gaia_fast.compiler.ir.rewriting import calls, pair

aten = torch.ops.aten

_ZEROS = (aten.new_zeros.default, aten.zeros_like.default, aten.zeros.default)


@dataclass(frozen=True)
class PoolingAxis:
    """How a max-pooling's windows lie on one axis of what it reads."""

    kernel: int
    stride: int
    padding: int
    dilation: int
    size: int
    out: int

    def has_empty_windows(self) -> bool:
        """Whether a window holds no position at all, as gaps as wide as the axis let it."""
        return any(not any(0 <= each < self.size for each in self._window(o)) for o in range(self.out))

    def _window(self, o: int) -> range:
        begin = o * self.stride - self.padding
        return range(begin, begin + self.kernel * self.dilation, self.dilation)

    def sharing(self) -> list[int]:
        """How far apart two windows can lie that share a position, 0 and both signs included, in ascending order."""
        steps = range(1 - self.out, self.out)
        return [
            each
            for each in steps
            if each * self.stride % self.dilation == 0 and abs(each) * self.stride // self.dilation < self.kernel
        ]


def pooling_axes(pool: fx.Node) -> tuple[PoolingAxis, PoolingAxis]:
    """The rows and the columns of a call of `max_pool2d_with_indices`."""
    defaults: list[Any] = [None, None, [], 0, 1]
    x, kernel, stride, padding, dilation = (list(pool.args) + defaults[len(pool.args) :])[:5]
    each = [pair(kernel), pair(stride or kernel), pair(padding), pair(dilation)]
    sizes = x.meta["val"].shape[2:], pool.meta["val"][0].shape[2:]
    rows, columns = (PoolingAxis(*(of[axis] for of in each), *(int(size[axis]) for size in sizes)) for axis in range(2))
    return rows, columns


def scattered_by_pooling(node: Any) -> tuple[fx.Node, fx.Node] | None:
    """Of a map that is zero but where a max-pooling's indices point: the pooling, and what is added for each window.

    None of any other node.
    """
    if not calls(node, aten.reshape.default) or node.meta["val"].ndim != 4:
        return None
    added = node.args[0]
    if not calls(added, aten.scatter_add.default) or added.args[1] != 2:
        return None
    flat, _, where, what = added.args
    if not calls(where, aten.reshape.default) or not calls(what, aten.reshape.default) or flat.target not in _ZEROS:
        return None
    indices, what = where.args[0], what.args[0]
    if not calls(indices, operator.getitem) or indices.args[1] != 1:
        return None
    pool = indices.args[0]
    if not calls(pool, aten.max_pool2d_with_indices.default) or pool.kwargs:
        return None
    if pool.args[0].meta["val"].shape[1:] != node.meta["val"].shape[1:] or what.meta["val"].ndim != 4:
        return None
    return pool, what
