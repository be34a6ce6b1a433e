"""Derives the pattern of every inspected map, backwards through a captured graph."""

import operator
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor, fx

from gaia_fast.compiled.capture import MAP, MARK, logits_node, marks
from gaia_fast.compiled.fold import CONVOLUTIONS, constant_value
from gaia_fast.compiled.geometry import Geometry
from gaia_fast.compiled.nodes import pair, same_shape
from gaia_fast.compiled.zero_density.conditions import Condition, Live, LiveGroups, OtherClass, Same
from gaia_fast.compiled.zero_density.patterns import (
    Both,
    Chosen,
    Everywhere,
    Open,
    Pattern,
    Slice,
    Somewhere,
    Union,
    Windows,
    Without,
)

aten = torch.ops.aten


@dataclass(frozen=True)
class Density:
    """The pattern of one map, and what must be true of an image for it to hold."""

    pattern: Pattern
    conditions: frozenset[Condition] = frozenset()

    def __str__(self) -> str:
        if isinstance(self.pattern, Everywhere):
            return "dense"
        return {"Open": "open units", "Chosen": "chosen by max-pooling"}.get(type(self.pattern).__name__, "pattern")


class Unknown(Exception):
    """The pattern of a node is not known, and why."""


def analyse(graph: fx.Graph, thorough: bool = False) -> list[Density | str]:
    """Returns the density of every inspected map of a captured graph, or why there is none.

    Args:
        graph: as captured, constants and norms folded.
        thorough: whether conditions fail for as few images as possible, rather than take as little time as possible.
    """
    analysis = _Analysis(graph, thorough)
    found: list[Density | str] = []
    for mark in marks(graph, MAP):
        try:
            found.append(analysis.behind(mark))
        except Unknown as why:
            found.append(str(why))
    return found


# Operators that change where entries stand, or what they are, but not which of them are non-zero.
_TRANSPARENT = {
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.neg.default,
    aten.clone.default,
    aten.alias.default,
    aten.contiguous.default,
    aten.dropout.default,
    aten.feature_dropout.default,
    aten.leaky_relu.default,
    aten.detach_.default,
    MARK,
}
# Operators whose result mixes or moves entries: known only where every entry behind them is non-zero.
_RESHAPING = {
    aten.view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten._unsafe_view.default,
    aten.permute.default,
    aten.transpose.int,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    aten.channel_shuffle.default,
}
_AVERAGING = {aten.mean.dim, aten.adaptive_avg_pool2d.default}
_SMOOTH = {aten.softmax.int, aten._softmax.default}


class _Analysis:
    def __init__(self, graph: fx.Graph, thorough: bool) -> None:
        self._thorough = thorough
        self._result = logits_node(graph)
        self._known: dict[fx.Node, Density | Unknown] = {}
        for node in reversed(graph.nodes):  # readers first, so that no recursion is deep
            if isinstance(node.meta.get("val"), (Tensor, tuple, list)):
                try:
                    self._known[node] = self._derive(node)
                except Unknown as why:
                    self._known[node] = why

    def behind(self, node: fx.Node) -> Density:
        """The pattern of the gradient at a node's result."""
        found = self._known.get(node)
        if found is None:
            raise Unknown(f"{node} is no tensor")
        if isinstance(found, Unknown):
            raise found
        return found

    def _derive(self, node: fx.Node) -> Density:
        if node is self._result:
            # The top-1 logit alone: what the head makes of one row, `_linear` says.
            return Density(Everywhere())
        found: list[Density] = []
        unknown: Unknown | None = None
        for user in node.users:
            if user.op == "output":
                continue
            try:
                each = self._through(user, node)
            except Unknown as why:
                unknown = why
                continue
            if each is not None:
                found.append(each)
        dense = [each for each in found if isinstance(each.pattern, Everywhere)]
        if dense:  # whatever else comes, sums of such gradients are not zero
            return min(dense, key=lambda each: len(each.conditions))
        if unknown is not None:
            raise unknown
        if not found:
            raise Unknown("nothing reads it")
        patterns = tuple(dict.fromkeys(each.pattern for each in found))
        conditions = frozenset().union(*(each.conditions for each in found))
        return Density(patterns[0] if len(patterns) == 1 else Union(patterns), conditions)

    def _through(self, user: fx.Node, node: fx.Node) -> Density | None:
        """What comes back to `node` from one of its readers; None where no gradient does."""
        target = user.target
        if target in (aten.sym_size.int, aten.zeros_like.default, aten.ones_like.default):
            return None
        if target in _TRANSPARENT:
            return self.behind(user)
        if target in (aten.relu.default, aten.relu_.default):
            return self._gate(user, 0.0, inf)
        if target is aten.sigmoid.default:  # flat where it is 0 or 1 to rounding
            return self._gate(user, 0.0, 1.0)
        if target is aten.relu6.default:
            return self._gate(user, 0.0, 6.0)
        if target in (aten.hardtanh.default, aten.clamp.default):
            low, high = ([*user.args[1:], None, None])[:2]
            if target is aten.hardtanh.default and low is None:
                low, high = -1.0, 1.0
            return self._gate(user, -inf if low is None else float(low), inf if high is None else float(high))
        if target in (aten.mul.Tensor, aten.div.Tensor):
            return self._product(user, node)
        if target in CONVOLUTIONS:
            return self._convolution(user, node)
        if target in (aten.linear.default, aten.addmm.default, aten.mm.default):
            return self._linear(user, node)
        if target is aten.group_norm.default:
            return self._group_norm(user)
        if target is aten.cat.default:
            return self._concatenation(user, node)
        if target in (aten.max_pool2d_with_indices.default,):
            return self._max_pool(user)
        if target is operator.getitem:
            return self._known_item(user)
        if target in _AVERAGING or target is aten.avg_pool2d.default:
            return self._average(user, node)
        if target in _RESHAPING or (target is aten.select.int and node.meta["val"].shape[user.args[1]] == 1):
            behind = self.behind(user)
            if isinstance(behind.pattern, Everywhere):
                return behind
            raise Unknown(f"{_name(user)} moves the entries of a map that is zero in places")
        if target in _SMOOTH:
            behind = self.behind(user)
            if isinstance(behind.pattern, Everywhere):
                return behind
        raise Unknown(f"{_name(user)} may be flat where nothing tells")

    def _gate(self, user: fx.Node, low: float, high: float) -> Density:
        behind = self.behind(user)
        unit = Open(user, low, high)
        if isinstance(behind.pattern, (Everywhere, Open)) and behind.pattern in (Everywhere(), unit):
            return Density(unit, behind.conditions)
        return Density(Both(unit, behind.pattern), behind.conditions)

    def _product(self, user: fx.Node, node: fx.Node) -> Density:
        behind = self.behind(user)
        others = [each for each in user.args[:2] if each is not node]
        if len(others) != 1:
            raise Unknown(f"{_name(user)} multiplies a map by itself")
        other = others[0]
        if isinstance(other, (int, float)):
            if other == 0:
                raise Unknown("a product with zero")
            return behind
        value = constant_value(other)
        if value is not None:
            if bool((value == 0).any()):
                raise Unknown(f"{_name(user)} multiplies by exact zeros")
            return behind
        if not isinstance(other, fx.Node) or user.target is not aten.mul.Tensor:
            raise Unknown(f"{_name(user)} by a value that may be zero")
        if other.target is not aten.sigmoid.default and node.target is not aten.sigmoid.default:
            raise Unknown(f"{_name(user)} by a map that may be zero")
        if same_shape(node, user):
            return behind  # a sigmoid beside it is never zero
        # A factor a channel: it gets the sum over the positions of that channel, of gradient times map.
        if isinstance(behind.pattern, Everywhere):
            return behind
        if node.meta["val"].ndim == 4 and tuple(node.meta["val"].shape[2:]) == (1, 1):
            return Density(Somewhere(behind.pattern), behind.conditions)
        raise Unknown(f"{_name(user)} sums over a map that is zero in places")

    def _convolution(self, user: fx.Node, node: fx.Node) -> Density:
        if user.args[0] is not node:
            raise Unknown(f"{_name(user)} with weights made from the images")
        weight = constant_value(user.args[1])
        if weight is None:
            raise Unknown(f"{_name(user)} with weights made from the images")
        geometry = _geometry(user, node, weight)
        behind = self.behind(user)
        covered = geometry.covers()
        zero = weight == 0
        if geometry.groups == 1 and covered:
            if isinstance(behind.pattern, Everywhere) and not zero.all(0).any():
                return behind
            if not isinstance(behind.pattern, Everywhere):
                live = _thin(behind.pattern, zero.flatten(1).any(1))
                if live is not None:
                    return Density(Everywhere(), behind.conditions | {Live(live, geometry, self._thorough)})
        if geometry.groups == 1 and bool(zero.flatten(1).any(1).all()):
            raise Unknown(f"{_name(user)} has weights that are exactly zero")
        unusable = tuple(zero.flatten(1).any(1).nonzero().flatten().tolist())
        if isinstance(behind.pattern, Everywhere):
            if not covered or unusable:
                raise Unknown(f"{_name(user)} skips positions, or has weights that are exactly zero")
            return behind
        windows = Windows(behind.pattern, geometry)
        if not unusable:
            return Density(windows, behind.conditions)
        # As long as nothing hangs on the channels that have such weights.
        same = Same(windows, Windows(Without(behind.pattern, unusable), geometry))
        return Density(windows, behind.conditions | {same})

    def _linear(self, user: fx.Node, node: fx.Node) -> Density:
        index, at = (1, 2) if user.target is aten.addmm.default else (0, 1)
        if user.args[index] is not node:
            raise Unknown(f"{_name(user)} with weights made from the images")
        weight = constant_value(user.args[at])
        if weight is None:
            raise Unknown(f"{_name(user)} with weights made from the images")
        behind = self.behind(user)
        # (outputs, inputs), as the linear operator has it and the products have not.
        zero = (weight if user.target is aten.linear.default else weight.t()) == 0
        if user is self._result:
            classes = tuple(zero.any(1).nonzero().flatten().tolist())
            if len(classes) == zero.shape[0]:
                raise Unknown(f"{_name(user)} has weights that are exactly zero for every class")
            return Density(Everywhere(), frozenset([OtherClass(user, classes)]) if classes else frozenset())
        if isinstance(behind.pattern, Everywhere):
            if bool(zero.all(0).any()):
                raise Unknown(f"{_name(user)} has inputs whose weights are all exactly zero")
            return behind
        live = _thin(behind.pattern, zero.any(1))
        if live is None:
            raise Unknown(f"{_name(user)} has weights that are exactly zero")
        return Density(Everywhere(), behind.conditions | {LiveGroups(live, 1)})

    def _group_norm(self, user: fx.Node) -> Density:
        """Each entry's gradient has a part of every other's of its group, through their mean and variance."""
        behind = self.behind(user)
        if isinstance(behind.pattern, Everywhere):
            return behind
        return Density(Everywhere(), behind.conditions | {LiveGroups(behind.pattern, int(user.args[1]))})

    def _concatenation(self, user: fx.Node, node: fx.Node) -> Density:
        tensors = user.args[0]
        axis = user.args[1] if len(user.args) > 1 else 0
        behind = self.behind(user)
        if isinstance(behind.pattern, Everywhere):
            return behind
        if axis not in (1, 1 - user.meta["val"].ndim) or sum(each is node for each in tensors) != 1:
            raise Unknown(f"{_name(user)} is not along the channels, or takes a map twice")
        begin = 0
        for each in tensors:
            if each is node:
                break
            begin += each.meta["val"].shape[1]
        return Density(Slice(behind.pattern, begin, begin + node.meta["val"].shape[1]), behind.conditions)

    def _max_pool(self, user: fx.Node) -> Density:
        behind = self._known_item(next(each for each in user.users if each.args[1] == 0))
        return Density(Chosen(user, behind.pattern), behind.conditions)

    def _known_item(self, user: fx.Node) -> Density:
        if user.args[1] != 0:
            raise Unknown(f"{_name(user)} is no map")
        return self.behind(user)

    def _average(self, user: fx.Node, node: fx.Node) -> Density:
        behind = self.behind(user)
        if user.target is aten.avg_pool2d.default:
            value, result = node.meta["val"].shape, user.meta["val"].shape
            kernel = pair(user.args[1])
            stride = pair(user.args[2]) if len(user.args) > 2 and user.args[2] else kernel
            padding = pair(user.args[3]) if len(user.args) > 3 else (0, 0)
            channels, size, out = int(value[1]), pair(value[2:]), pair(result[2:])
            geometry = Geometry(kernel, stride, padding, (1, 1), channels, channels, size, out)
            if isinstance(behind.pattern, Everywhere) and not geometry.covers():
                raise Unknown(f"{_name(user)} skips positions")
            if not isinstance(behind.pattern, Everywhere):
                return Density(Windows(behind.pattern, geometry), behind.conditions)
        elif not isinstance(behind.pattern, Everywhere):
            raise Unknown(f"{_name(user)} over a map that is zero in places")
        return behind


def _thin(pattern: Pattern, unusable: Tensor) -> Pattern | None:
    """A part of a pattern that is enough to show that something is there, and cheaper to look at.

    `unusable` are the channels whose weights have exact zeros: the longest run of others is looked at; None if none.
    """
    while isinstance(pattern, Union):
        pattern = next((each for each in pattern.of if isinstance(each, Open)), pattern.of[0])
    if not bool(unusable.any()):
        return pattern
    runs, begin = [], 0
    for index in [*unusable.nonzero().flatten().tolist(), len(unusable)]:
        runs.append((index - begin, begin))
        begin = index + 1
    length, begin = max(runs)
    return Slice(pattern, begin, begin + length) if length else None


def _geometry(user: fx.Node, node: fx.Node, weight: Tensor) -> Geometry:
    if weight.ndim != 4 or not isinstance(user.meta["val"], Tensor):
        raise Unknown(f"{_name(user)} is not over two axes")
    defaults: list[Any] = [None, None, None, [1, 1], [0, 0], [1, 1], 1]
    if user.target is aten.convolution.default:
        _, _, _, stride, padding, dilation, transposed, _, groups = user.args
        if transposed:
            raise Unknown(f"{_name(user)} is transposed")
    else:
        given = list(user.args)
        stride, padding, dilation, groups = (given + defaults[len(given) :])[3:]
    value, result = node.meta["val"].shape, user.meta["val"].shape
    return Geometry(
        pair(weight.shape[2:]),
        pair(stride),
        pair(padding),
        pair(dilation),
        int(groups),
        int(value[1]),
        (int(value[2]), int(value[3])),
        (int(result[2]), int(result[3])),
    )


def _name(node: fx.Node) -> str:
    return str(node.target).removeprefix("aten.")
