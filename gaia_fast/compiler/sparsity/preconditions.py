"""Preconditions: what must be true of an image for a sparsity pattern to hold; checked while the image is scored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from gaia_fast.compiler.ir.windows import Geometry
from gaia_fast.compiler.sparsity.patterns import Pattern, Values, positive_where


class Precondition:
    """A property of one image. Prints as the statement that is checked."""

    statement: ClassVar[str]

    def __str__(self) -> str:
        return self.statement

    def nodes(self) -> set[fx.Node]:
        """The nodes whose values it is computed from."""
        raise NotImplementedError

    def value(self, values: Values) -> Tensor:
        """Returns (N,), positive where it holds."""
        raise NotImplementedError


@dataclass(frozen=True)
class EveryWindowNonZero(Precondition):
    """Every position is in a window with a non-zero channel of `of`.

    Where windows overlap, only a grid of positions that has one in each window is read, a ninth of all for 3x3: an
    image then fails, too, where no channel is non-zero at a position of the grid. `thorough` reads all positions, so
    that only images fail that must.
    """

    of: Pattern
    geometry: Geometry
    thorough: bool = False

    statement = "every window has a non-zero channel"

    def nodes(self) -> set[fx.Node]:
        return self.of.nodes()

    def value(self, values: Values) -> Tensor:
        begin, step = (0, 1) if self.thorough else self.geometry.grid()
        y = positive_where(self.of, values)
        if y is not None:
            largest = y[:, :, begin::step, begin::step].amax(1, keepdim=True)
        else:
            mask = self.of.mask(values)[:, :, begin::step, begin::step]
            largest = mask.to(torch.float32).amax(1, keepdim=True)
        if step == 1 and not self.geometry.needs_each():
            largest = self.geometry.reach(largest)
        return largest.flatten(1).amin(1).to(torch.float32)


@dataclass(frozen=True)
class EveryGroupNonZero(Precondition):
    """Each of so many groups of channels has a non-zero entry of `of`."""

    of: Pattern
    groups: int

    statement = "every group of channels has a non-zero entry"

    def nodes(self) -> set[fx.Node]:
        return self.of.nodes()

    def value(self, values: Values) -> Tensor:
        mask = self.of.mask(values).to(torch.float32)
        return mask.reshape(mask.shape[0], self.groups, -1).amax(2).amin(1)


@dataclass(frozen=True)
class Top1NotIn(Precondition):
    """The top-1 class is none of these, whose weights in the head have exact zeros."""

    logits: fx.Node
    classes: tuple[int, ...]

    statement = "the top-1 class has no weight of exactly zero in the head"

    def nodes(self) -> set[fx.Node]:
        return {self.logits}

    def value(self, values: Values) -> Tensor:
        top1 = values[self.logits].detach().argmax(1, keepdim=True)
        return (top1 != torch.tensor(self.classes, device=top1.device)).to(torch.float32).amin(1)


@dataclass(frozen=True)
class EqualPatterns(Precondition):
    """Two patterns are the same: with and without the channels that have weights of exactly zero."""

    one: Pattern
    other: Pattern

    statement = "no entry depends on channels that have weights of exactly zero"

    def nodes(self) -> set[fx.Node]:
        return self.one.nodes() | self.other.nodes()

    def value(self, values: Values) -> Tensor:
        same = self.one.mask(values) == self.other.mask(values)
        return same.to(torch.float32).flatten(1).amin(1)


@dataclass(frozen=True)
class AllGreaterThan(Precondition):
    """Every value of a node is greater than a bound."""

    of: fx.Node
    bound: float

    statement = "no factor is so small that a product with it underflows"

    def nodes(self) -> set[fx.Node]:
        return {self.of}

    def value(self, values: Values) -> Tensor:
        return (values[self.of].detach().flatten(1).amin(1) > self.bound).to(torch.float32)
