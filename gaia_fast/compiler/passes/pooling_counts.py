"""Counts of the positions that max-poolings chose, from what the poolings return alone.

GAIA-Z behind a max-pooling counts the positions that its windows chose (`MaxPoolArgmax`), often those of active units
alone: scattered into a map as large as what is pooled, several times what the pooling gives, and counted there. But a
position is in the count just where some window chose it, and what was chosen is the pooled value itself:

    count = |{windows: in the pattern, its maximum is active, and no window before it in the pattern chose the same}|

What "before" means does not matter where it is the same for all; only windows that can share a position are compared.
Nothing of the full size is written or read, and pointwise operators that a sum ends are one kernel to a compiler.
"""

import operator
from functools import reduce
from itertools import product
from typing import Any

import torch
from torch import fx

from gaia_fast.compiler.ir.counts import counts_of
from gaia_fast.compiler.ir.pooling import pooling_axes, scattered_by_pooling
from gaia_fast.compiler.ir.rewriting import calls

aten = torch.ops.aten

# Windows of 3x3 share positions with 12 others before them in strides of 1, those of 5x5 in strides of 2 with as many.
# From how many comparisons on a scattered map is the faster is not yet measured on a GPU.
_MOST_COMPARED = 12

_COMPARISONS = (
    aten.gt.Scalar,
    aten.ge.Scalar,
    aten.lt.Scalar,
    aten.le.Scalar,
    aten.eq.Scalar,
    aten.ne.Scalar,
)


def count_pooled(module: fx.GraphModule) -> None:
    """Counts in the form above what nothing but counts needs in the other one."""
    graph = module.graph
    found: dict[fx.Node, _Chosen] = {}
    for mask in graph.nodes:
        if calls(mask, aten.gt.Scalar) or calls(mask, aten.bitwise_and.Tensor):
            counts = counts_of(mask)
            chosen = _Chosen.of(mask) if counts else None
            if chosen is not None:
                found.update(dict.fromkeys(counts, chosen))
    # All of them are found before one is replaced: two may be counts of one scattered map.
    counted = set(found)
    for count, chosen in list(found.items()):
        if _ends_in(counted, chosen.scattered):
            with graph.inserting_before(count):
                count.replace_all_uses_with(chosen.count(graph))


def _ends_in(counts: set[fx.Node], node: fx.Node) -> bool:
    """Whether nothing is made of a node but counts."""
    targets = (aten.gt.Scalar, aten.bitwise_and.Tensor, aten._to_copy.default)
    return all(user in counts or (user.target in targets and _ends_in(counts, user)) for user in node.users)


def _conjuncts(mask: fx.Node) -> list[fx.Node]:
    """The masks whose intersection a mask is."""
    if not calls(mask, aten.bitwise_and.Tensor):
        return [mask]
    return [each for operand in mask.args for each in _conjuncts(operand)]


def _is_positive(node: fx.Node) -> bool:
    return calls(node, aten.gt.Scalar) and bool(node.args[1] == 0)


class _Chosen:
    """The positions that windows of a max-pooling chose and at which its input fulfils some conditions.

    Args:
        scattered: the map in which they are marked.
        pool: the pooling.
        windows: a mask of windows; None for all.
        conditions: comparisons of the pooling's input with numbers.
    """

    def __init__(self, scattered: fx.Node, pool: fx.Node, windows: fx.Node | None, conditions: list[fx.Node]) -> None:
        self.scattered, self.pool, self.windows, self.conditions = scattered, pool, windows, conditions
        self.rows, self.columns = pooling_axes(pool)

    @staticmethod
    def of(mask: fx.Node) -> "_Chosen | None":
        """What a mask is; None where it is something else, or is better left as it is."""
        marked = []
        conditions = []
        for each in _conjuncts(mask):
            if _is_positive(each) and (found := scattered_by_pooling(each.args[0])):
                marked.append((each.args[0], *found))
            elif each.target in _COMPARISONS:
                conditions.append(each)
            else:
                return None
        if len(marked) != 1:
            return None
        ((scattered, pool, what),) = marked
        if any(each.args[0] is not pool.args[0] for each in conditions):
            return None
        windows = None
        if not calls(what, aten.ones_like.default):
            if not calls(what, aten._to_copy.default) or what.args[0].meta["val"].dtype != torch.bool:
                return None
            windows = what.args[0]
        chosen = _Chosen(scattered, pool, windows, conditions)
        # The index of an empty window means nothing.
        if chosen.rows.has_empty_windows() or chosen.columns.has_empty_windows():
            return None
        return chosen if len(chosen._before()) <= _MOST_COMPARED else None

    def _before(self) -> list[tuple[int, int]]:
        """Where the windows lie that share a position with one, and come before it: rows and columns away."""
        return [each for each in product(self.rows.sharing(), self.columns.sharing()) if each < (0, 0)]

    def count(self, graph: fx.Graph) -> fx.Node:
        """(N, K) float32: how many there are in each channel of each image.

        Counted are the positive entries of a map, as those of any ReLU's output.
        """
        call = graph.call_function
        pooled = call(operator.getitem, (self.pool, 0))
        index = call(operator.getitem, (self.pool, 1))
        mask = []
        if self.windows is not None:
            mask.append(self.windows)
            index = call(aten.where.ScalarOther, (self.windows, index, -1))  # no window's
        mask += [call(each.target, (pooled, each.args[1])) for each in self.conditions if not _is_positive(each)]
        mask += [call(aten.ne.Tensor, (index, each)) for each in self._moved(graph, index)]
        y = pooled if any(map(_is_positive, self.conditions)) else call(aten.ones_like.default, (pooled,))
        if mask:
            chosen = reduce(lambda one, other: call(aten.bitwise_and.Tensor, (one, other)), mask)
            y = call(aten.where.ScalarOther, (chosen, y, 0))
        numbers = call(aten._to_copy.default, (call(aten.gt.Scalar, (y, 0)),), {"dtype": torch.float32})
        return call(aten.sum.dim_IntList, (numbers, [2, 3]))

    def _moved(self, graph: fx.Graph, index: fx.Node) -> list[fx.Node]:
        """The indices of the windows that come before each, where it has such, else no window's."""
        before = self._before()
        if not before:
            return []
        above = max(-row for row, _ in before)
        left = right = max(abs(column) for _, column in before)
        around: Any = graph.call_function(aten.constant_pad_nd.default, (index, [left, right, above, 0], -1))
        moved = []
        for row, column in before:
            node = around
            for axis, begin, length in (
                (2, above + row, self.rows.out),
                (3, left + column, self.columns.out),
            ):
                node = graph.call_function(aten.slice.Tensor, (node, axis, begin, begin + length))
            moved.append(node)
        return moved
