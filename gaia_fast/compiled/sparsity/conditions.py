"""What must be true of an image for the patterns of its gradients to hold, checked beside the densities."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from gaia_fast.compiled.geometry import Geometry
from gaia_fast.compiled.sparsity.patterns import Pattern, Values, any_channel, largest_tells


@dataclass(frozen=True)
class Live:
    """What must be true of an image: every position is in a window with a non-zero channel of `of`.

    Where windows overlap, a grid of positions that has one in each window is looked at, a ninth of all for 3x3: an
    image fails where a window is zero, or where its position of the grid is. `thorough` looks at all of them, so that
    images fail that must.
    """

    of: Pattern
    geometry: Geometry
    thorough: bool = False

    def nodes(self) -> set[fx.Node]:
        return self.of.nodes()

    def value(self, values: Values) -> Tensor:
        """(N,), positive where it is true."""
        begin, step = (0, 1) if self.thorough else self.geometry.grid()
        y = largest_tells(self.of, values)
        if y is not None:
            live = y[:, :, begin::step, begin::step].amax(1, keepdim=True)
        else:
            live = any_channel(self.of.mask(values)[:, :, begin::step, begin::step])
        if step == 1 and not self.geometry.needs_each():
            live = self.geometry.reach(live)
        return live.flatten(1).amin(1).to(torch.float32)


@dataclass(frozen=True)
class LiveGroups:
    """What must be true of an image: each of so many groups of channels has a non-zero entry of `of`."""

    of: Pattern
    groups: int

    def nodes(self) -> set[fx.Node]:
        return self.of.nodes()

    def value(self, values: Values) -> Tensor:
        """(N,), positive where it is true."""
        mask = self.of.mask(values).to(torch.float32)
        return mask.reshape(mask.shape[0], self.groups, -1).amax(2).amin(1)


@dataclass(frozen=True)
class OtherClass:
    """What must be true of an image: its top-1 class is none of these, whose weights in the head have exact zeros."""

    logits: fx.Node
    classes: tuple[int, ...]

    def nodes(self) -> set[fx.Node]:
        return {self.logits}

    def value(self, values: Values) -> Tensor:
        """(N,), positive where it is true."""
        top1 = values[self.logits].detach().argmax(1, keepdim=True)
        return (top1 != torch.tensor(self.classes, device=top1.device)).to(torch.float32).amin(1)


@dataclass(frozen=True)
class Same:
    """What must be true of an image: two patterns are the same."""

    one: Pattern
    other: Pattern

    def nodes(self) -> set[fx.Node]:
        return self.one.nodes() | self.other.nodes()

    def value(self, values: Values) -> Tensor:
        """(N,), positive where it is true."""
        same = self.one.mask(values) == self.other.mask(values)
        return same.to(torch.float32).flatten(1).amin(1)


@dataclass(frozen=True)
class Above:
    """What must be true of an image: every value of a node is larger than a bound."""

    of: fx.Node
    bound: float

    def nodes(self) -> set[fx.Node]:
        return {self.of}

    def value(self, values: Values) -> Tensor:
        """(N,), positive where it is true."""
        return (values[self.of].detach().flatten(1).amin(1) > self.bound).to(torch.float32)


Condition = Live | LiveGroups | OtherClass | Same | Above
