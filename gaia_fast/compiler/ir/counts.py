"""How counts of active units, and what they rest on, look in a recorded graph; see `gaia_fast.compiler.sparsity`."""

from collections.abc import Callable
from sys import maxsize
from typing import Any

import torch
from torch import fx

from gaia_fast.compiler.ir.rewriting import calls

aten = torch.ops.aten


def over_space(node: fx.Node) -> bool:
    """Whether a node is the float32 sums of maps over space, one for each channel of each image."""
    if node.target is not aten.sum.dim_IntList or list(node.args[1]) not in ([2, 3], [-2, -1], [-1, -2]):
        return False
    value = node.meta["val"]
    return value.ndim == 2 and value.dtype == torch.float32  # axes may be kept, and another dtype asked for


def counts_of(mask: fx.Node) -> list[fx.Node]:
    """The numbers of a mask's entries in each channel of each image, where they are counted."""
    copies = [copy for copy in mask.users if copy.target is aten._to_copy.default]
    return [each for copy in copies for each in copy.users if over_space(each)]


def bounded(both: fx.Node) -> float | None:
    """The bound of a node that is (0 < y) & (y < bound) of some y; None of any other."""
    if both.target is not aten.bitwise_and.Tensor:
        return None
    above, below = both.args
    if not calls(above, aten.gt.Scalar) or not calls(below, aten.lt.Scalar) or above.args[1] != 0:
        return None
    return float(below.args[1]) if above.args[0] is below.args[0] else None


def grid_of(node: fx.Node, source: Callable[[Any], Any] = lambda y: y) -> tuple[Any, int, int] | None:
    """Of a least value over positions of what is largest over channels: of which map, and a grid's begin and step.

    Args:
        source: what the map is a copy of.
    """
    highest = node.args[0]
    if not calls(highest, aten.reshape.default) or list(node.args[1:]) != [[1]] or node.meta["val"].ndim != 1:
        return None
    highest = highest.args[0]
    if not calls(highest, aten.amax.default) or list(highest.args[1]) != [1]:
        return None
    y = source(highest.args[0])
    if not _slices_space(y):
        return y, 0, 1
    # Rows, then columns. Other slices cut a border off, which is no grid.
    rows = y.args[0]
    if not _slices_space(rows):
        return None
    (_, columns_axis, *columns), (inner, rows_axis, *others) = ([*each.args, 1][:5] for each in (y, rows))
    if (rows_axis, columns_axis) != (2, 3) or _slices_space(inner):
        return None
    if columns[0] != others[0] or columns[2] != others[2] or columns[1] < maxsize or others[1] < maxsize:
        return None
    return inner, columns[0], columns[2]


def _slices_space(node: Any) -> bool:
    return calls(node, aten.slice.Tensor) and node.args[1] in (2, 3)
