"""How counts of active units, and what they rest on, look in a recorded graph; see `gaia_fast.compiler.sparsity`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from gaia_fast.compiler.ir.rewriting import calls

aten = torch.ops.aten


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
    y, begin, step = source(highest.args[0]), 0, 1
    while calls(y, aten.slice.Tensor) and y.args[1] in (2, 3):
        y, _, begin, _, step = [*y.args, 1][:5]
    return y, begin, step
