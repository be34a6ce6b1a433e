"""Sparsity patterns: which entries of a gradient are non-zero, as a function of values of the forward pass.

Each pattern names the nodes whose values it needs, and computes its (N, K, H, W) mask from them. Patterns compare by
value: equal ones are counted once.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, prod
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from gaia_fast.compiler.ir.windows import Geometry

# Of nodes, and the masks of patterns that were computed from them.
Values = dict["fx.Node | Pattern", Any]


class Pattern:
    """A set of entries of a (N, K, H, W) map, image by image. Prints as its label."""

    label: ClassVar[str]

    def __str__(self) -> str:
        return self.label

    def nodes(self) -> set[fx.Node]:
        """The nodes whose values the mask is computed from."""
        return set()

    def mask(self, values: Values) -> Tensor:
        """Returns the set as bools of the map's shape; `Dense` and `ImagesOfClasses` are never asked for it.

        It is computed once: many patterns are made of the same.
        """
        if self not in values:
            values[self] = self._mask(values)
        found: Tensor = values[self]
        return found

    def _mask(self, values: Values) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class Dense(Pattern):
    """Every entry is non-zero."""

    label = "dense"


@dataclass(frozen=True)
class ActiveUnits(Pattern):
    """The entries at which a unit is active: low < its output < high."""

    unit: fx.Node
    low: float = 0.0
    high: float = inf

    label = "active units"

    def nodes(self) -> set[fx.Node]:
        return {self.unit}

    def _mask(self, values: Values) -> Tensor:
        y = values[self.unit].detach()
        active = y > self.low
        return active if self.high == inf else active & (y < self.high)


@dataclass(frozen=True)
class InInterval(Pattern):
    """The entries at which a node's value is in [low, high], bounds included: where the derivative of a clamp is 1."""

    of: fx.Node
    low: float
    high: float

    label = "values in an interval"

    def nodes(self) -> set[fx.Node]:
        return {self.of}

    def _mask(self, values: Values) -> Tensor:
        x = values[self.of].detach()
        return (x >= self.low) & (x <= self.high)


@dataclass(frozen=True)
class NonZero(Pattern):
    """The entries at which a node's value is not zero."""

    of: fx.Node

    label = "non-zero values"

    def nodes(self) -> set[fx.Node]:
        return {self.of}

    def _mask(self, values: Values) -> Tensor:
        return values[self.of].detach() != 0


@dataclass(frozen=True)
class Intersection(Pattern):
    """The entries that are in both patterns."""

    one: Pattern
    other: Pattern

    def __str__(self) -> str:
        return f"{self.one} & {self.other}"

    def nodes(self) -> set[fx.Node]:
        return self.one.nodes() | self.other.nodes()

    def _mask(self, values: Values) -> Tensor:
        return self.one.mask(values) & self.other.mask(values)


@dataclass(frozen=True)
class Union(Pattern):
    """The entries that are in any of the patterns."""

    of: tuple[Pattern, ...]

    label = "union"

    def nodes(self) -> set[fx.Node]:
        return set().union(*(each.nodes() for each in self.of))

    def _mask(self, values: Values) -> Tensor:
        result = self.of[0].mask(values)
        for each in self.of[1:]:
            result = result | each.mask(values)
        return result


@dataclass(frozen=True)
class ChannelSlice(Pattern):
    """The channels [begin, end) of another pattern."""

    of: Pattern
    begin: int
    end: int

    label = "channel slice"

    def nodes(self) -> set[fx.Node]:
        return self.of.nodes()

    def _mask(self, values: Values) -> Tensor:
        return self.of.mask(values)[:, self.begin : self.end]


@dataclass(frozen=True)
class ExcludeChannels(Pattern):
    """Another pattern without some of its channels."""

    of: Pattern
    channels: tuple[int, ...]

    label = "excluded channels"

    def nodes(self) -> set[fx.Node]:
        return self.of.nodes()

    def _mask(self, values: Values) -> Tensor:
        mask = self.of.mask(values)
        kept = torch.ones((1, mask.shape[1], 1, 1), dtype=torch.bool)
        kept[:, list(self.channels)] = False
        return mask & kept.to(mask.device)


@dataclass(frozen=True)
class MaxPoolArgmax(Pattern):
    """The positions of the maxima of a max-pooling's windows, of those windows that are in a pattern."""

    pool: fx.Node
    windows: Pattern

    label = "max-pooling argmax"

    def nodes(self) -> set[fx.Node]:
        return {self.pool} | self.windows.nodes()

    def _mask(self, values: Values) -> Tensor:
        pooled, indices = values[self.pool]
        shape = self.pool.args[0].meta["val"].shape
        nonzero = torch.ones_like(pooled, dtype=torch.float32)
        if not isinstance(self.windows, Dense):
            nonzero = self.windows.mask(values).to(torch.float32)
        images = pooled.shape[0]
        flat = nonzero.new_zeros((images, shape[1], prod(shape[2:])))
        flat = flat.scatter_add(2, indices.reshape(images, shape[1], -1), nonzero.reshape(images, shape[1], -1))
        return flat.reshape(images, *shape[1:]) > 0


@dataclass(frozen=True)
class ReceptiveField(Pattern):
    """The input positions of a convolution's windows that have a channel in a pattern, group by group."""

    of: Pattern
    geometry: Geometry

    label = "receptive field"

    def nodes(self) -> set[fx.Node]:
        return self.of.nodes()

    def _mask(self, values: Values) -> Tensor:
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
class Cropped(Pattern):
    """Another pattern without its outermost rows and columns: so many at the top, the left, the bottom, the right."""

    of: Pattern
    border: tuple[int, int, int, int]

    label = "cropped"

    def nodes(self) -> set[fx.Node]:
        return self.of.nodes()

    def _mask(self, values: Values) -> Tensor:
        mask = self.of.mask(values)
        top, left, bottom, right = self.border
        return mask[:, :, top : mask.shape[2] - bottom, left : mask.shape[3] - right]


@dataclass(frozen=True)
class AnyPosition(Pattern):
    """Whether another pattern has an entry along some axes, kept with size 1: the gradient of a broadcast operand."""

    of: Pattern
    axes: tuple[int, ...]

    label = "any position"

    def nodes(self) -> set[fx.Node]:
        return self.of.nodes()

    def _mask(self, values: Values) -> Tensor:
        return self.of.mask(values).to(torch.float32).amax(self.axes, keepdim=True) > 0


@dataclass(frozen=True)
class Reshaped(Pattern):
    """Another pattern of (N, K, ...), with axes of size 1 added or dropped after the channels."""

    of: Pattern
    sizes: tuple[int, ...]

    label = "reshaped"

    def nodes(self) -> set[fx.Node]:
        return self.of.nodes()

    def _mask(self, values: Values) -> Tensor:
        mask = self.of.mask(values)
        return mask.reshape(mask.shape[0], *self.sizes)


@dataclass(frozen=True)
class Top1Row(Pattern):
    """The row of the top-1 class, of the rows [begin, end) of the logits: (N, end - begin, *positions)."""

    logits: fx.Node
    begin: int
    end: int
    positions: tuple[int, ...] = ()

    label = "row of the top-1 class"

    def nodes(self) -> set[fx.Node]:
        return {self.logits}

    @property
    def has_all_classes(self) -> bool:
        """Whether the row of the top-1 class is among them for every image."""
        return self.begin == 0 and self.end == int(self.logits.meta["val"].shape[1])

    def _mask(self, values: Values) -> Tensor:
        logits = values[self.logits].detach()
        classes = torch.arange(self.begin, self.end, device=logits.device)
        row = classes == logits.argmax(1, keepdim=True)
        return row.reshape(row.shape[0], row.shape[1], *[1] * len(self.positions)).expand(-1, -1, *self.positions)


@dataclass(frozen=True)
class ImagesOfClasses(Pattern):
    """Every entry of the images whose top-1 class is one of [begin, end), and none of the others."""

    logits: fx.Node
    begin: int
    end: int

    label = "images of some classes"


def positive_where(pattern: Pattern, values: Values) -> Tensor | None:
    """Returns a tensor that is positive exactly where the pattern is, if the values have one; it spares the mask."""
    if isinstance(pattern, ChannelSlice):
        whole = positive_where(pattern.of, values)
        return None if whole is None else whole[:, pattern.begin : pattern.end]
    if isinstance(pattern, ActiveUnits) and pattern.low == 0 and pattern.high == inf:
        return values[pattern.unit].detach()
    return None
