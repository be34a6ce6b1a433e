"""Marks in a graph: an operator that changes nothing, on what the method reads."""

import torch
from torch import Tensor, fx

from gaia_fast.ops.library import define_op

# What a mark stands on: an inspected map A^l (the only one with an index), a candidate for A_last, and Phi.
MAP, LAST, PHI = 0, 1, 2


def _mark(x: Tensor, place: int, index: int) -> Tensor:
    return x.clone()


def _mark_fake(x: Tensor, place: int, index: int) -> Tensor:
    return torch.empty_like(x)


define_op("mark", _mark, _mark_fake)
MARK = torch.ops.gaia_fast.mark.default


def marks(graph: fx.Graph, place: int) -> list[fx.Node]:
    """The marks of a place, in the order in which the model reaches them."""
    return [node for node in graph.nodes if node.target is MARK and node.args[1] == place]
