"""Which entries of a gradient are non-zero, as a function of values of the forward pass.

Each pattern names the nodes whose values it needs, and makes its (N, K, H, W) mask of them. Patterns are values: equal
ones are counted once.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, prod
from typing import Any

import torch
from torch import Tensor, fx

from gaia_fast.compiled.geometry import Geometry

Values = dict[fx.Node, Any]


class Pattern:
    """A set of entries of a (N, K, H, W) map, image by image."""

    def nodes(self) -> set[fx.Node]:
        """The nodes whose values tell the set."""
        return set()

    def mask(self, values: Values) -> Tensor:
        """The set as bools; `Everywhere` alone has no need of it."""
        raise NotImplementedError


@dataclass(frozen=True)
class Everywhere(Pattern):
    """Every entry is non-zero."""


@dataclass(frozen=True)
class Open(Pattern):
    """The entries at which a unit is open: low < its output < high."""

    unit: fx.Node
    low: float = 0.0
    high: float = inf

    def nodes(self) -> set[fx.Node]:
        return {self.unit}

    def mask(self, values: Values) -> Tensor:
        y = values[self.unit].detach()
        open_ = y > self.low
        return open_ if self.high == inf else open_ & (y < self.high)


@dataclass(frozen=True)
class Slice(Pattern):
    """A slice of channels of another pattern."""

    of: Pattern
    begin: int
    end: int

    def nodes(self) -> set[fx.Node]:
        return self.of.nodes()

    def mask(self, values: Values) -> Tensor:
        return self.of.mask(values)[:, self.begin : self.end]


@dataclass(frozen=True)
class Both(Pattern):
    """The entries that are in both patterns."""

    one: Pattern
    other: Pattern

    def nodes(self) -> set[fx.Node]:
        return self.one.nodes() | self.other.nodes()

    def mask(self, values: Values) -> Tensor:
        return self.one.mask(values) & self.other.mask(values)


@dataclass(frozen=True)
class Union(Pattern):
    """The entries that are in any of the patterns."""

    of: tuple[Pattern, ...]

    def nodes(self) -> set[fx.Node]:
        return set().union(*(each.nodes() for each in self.of))

    def mask(self, values: Values) -> Tensor:
        result = self.of[0].mask(values)
        for each in self.of[1:]:
            result = result | each.mask(values)
        return result


@dataclass(frozen=True)
class Chosen(Pattern):
    """The positions that the windows of a max-pooling chose, of those windows that are in a pattern."""

    pool: fx.Node
    windows: Pattern

    def nodes(self) -> set[fx.Node]:
        return {self.pool} | self.windows.nodes()

    def mask(self, values: Values) -> Tensor:
        pooled, indices = values[self.pool]
        shape = self.pool.args[0].meta["val"].shape
        chosen = torch.ones_like(pooled, dtype=torch.float32)
        if not isinstance(self.windows, Everywhere):
            chosen = self.windows.mask(values).to(torch.float32)
        images = pooled.shape[0]
        flat = chosen.new_zeros((images, shape[1], prod(shape[2:])))
        flat = flat.scatter_add(2, indices.reshape(images, shape[1], -1), chosen.reshape(images, shape[1], -1))
        return flat.reshape(images, *shape[1:]) > 0


@dataclass(frozen=True)
class Windows(Pattern):
    """Which positions a convolution's windows reach that hold a non-zero channel of a pattern, group by group."""

    of: Pattern
    geometry: Geometry

    def nodes(self) -> set[fx.Node]:
        return self.of.nodes()

    def mask(self, values: Values) -> Tensor:
        mask = self.of.mask(values).to(torch.float32)
        geometry = self.geometry
        images, channels, height, width = mask.shape
        groups = geometry.groups
        if channels != groups:
            mask = mask.reshape(images, groups, channels // groups, height, width).amax(2)
        reached = geometry.reach(mask)
        each = geometry.inputs // groups
        return (reached if each == 1 else reached.repeat_interleave(each, 1)) > 0


@dataclass(frozen=True)
class Within(Pattern):
    """The entries at which a node's value is in [low, high], ends included: where a clamp lets a gradient through."""

    of: fx.Node
    low: float
    high: float

    def nodes(self) -> set[fx.Node]:
        return {self.of}

    def mask(self, values: Values) -> Tensor:
        x = values[self.of].detach()
        return (x >= self.low) & (x <= self.high)


@dataclass(frozen=True)
class NonZero(Pattern):
    """The entries at which a node's value is not zero."""

    of: fx.Node

    def nodes(self) -> set[fx.Node]:
        return {self.of}

    def mask(self, values: Values) -> Tensor:
        return values[self.of].detach() != 0


@dataclass(frozen=True)
class Reduced(Pattern):
    """Where another pattern has an entry along some axes, which keep a size of 1: what a broadcast value gets back."""

    of: Pattern
    axes: tuple[int, ...]

    def nodes(self) -> set[fx.Node]:
        return self.of.nodes()

    def mask(self, values: Values) -> Tensor:
        return self.of.mask(values).to(torch.float32).amax(self.axes, keepdim=True) > 0


@dataclass(frozen=True)
class Reshaped(Pattern):
    """Another pattern of (N, K, ...), with axes of size 1 added or dropped behind the channels."""

    of: Pattern
    sizes: tuple[int, ...]

    def nodes(self) -> set[fx.Node]:
        return self.of.nodes()

    def mask(self, values: Values) -> Tensor:
        mask = self.of.mask(values)
        return mask.reshape(mask.shape[0], *self.sizes)


@dataclass(frozen=True)
class Top1(Pattern):
    """The row of the top-1 class, of the rows [begin, end) of the logits: (N, end - begin, *positions)."""

    logits: fx.Node
    begin: int
    end: int
    positions: tuple[int, ...] = ()

    def nodes(self) -> set[fx.Node]:
        return {self.logits}

    @property
    def of_all(self) -> bool:
        """Whether the row is among them for every image."""
        return self.begin == 0 and self.end == int(self.logits.meta["val"].shape[1])

    def mask(self, values: Values) -> Tensor:
        logits = values[self.logits].detach()
        classes = torch.arange(self.begin, self.end, device=logits.device)
        row = classes == logits.argmax(1, keepdim=True)
        return row.reshape(row.shape[0], row.shape[1], *[1] * len(self.positions)).expand(-1, -1, *self.positions)


@dataclass(frozen=True)
class OfClasses(Pattern):
    """Every entry of the images whose top-1 class is one of [begin, end), and none of the others."""

    logits: fx.Node
    begin: int
    end: int


@dataclass(frozen=True)
class Without(Pattern):
    """A pattern less some channels."""

    of: Pattern
    channels: tuple[int, ...]

    def nodes(self) -> set[fx.Node]:
        return self.of.nodes()

    def mask(self, values: Values) -> Tensor:
        mask = self.of.mask(values)
        kept = torch.ones((1, mask.shape[1], 1, 1), dtype=torch.bool)
        kept[:, list(self.channels)] = False
        return mask & kept.to(mask.device)


def largest_tells(pattern: Pattern, values: Values) -> Tensor | None:
    """A tensor that is positive just where the pattern is, which saves making the pattern; None where there is none."""
    if isinstance(pattern, Slice):
        whole = largest_tells(pattern.of, values)
        return None if whole is None else whole[:, pattern.begin : pattern.end]
    if isinstance(pattern, Open) and pattern.low == 0 and pattern.high == inf:
        return values[pattern.unit].detach()
    return None


def any_channel(mask: Tensor) -> Tensor:
    return mask.to(torch.float32).amax(1, keepdim=True)
