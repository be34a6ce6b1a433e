"""Counts densities and checks conditions while a graph runs."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from gaia_fast.compiled.sparsity.conditions import Condition
from gaia_fast.compiled.sparsity.density import Density
from gaia_fast.compiled.sparsity.patterns import Everywhere, Pattern, Values


class Counter:
    """Counts the densities as soon as a run of the graph has what each needs, so that nothing is kept for long."""

    def __init__(self, densities: Sequence[Density | None], areas: Sequence[tuple[int, int]]) -> None:
        self._densities = densities
        self._areas = areas
        self._values: Values = {}
        self._counts: dict[Pattern, Tensor] = {}
        self._live: dict[Condition, Tensor] = {}
        wanted: list[Pattern | Condition] = []
        for density in densities:
            if density is not None:
                wanted += [density.pattern, *sorted(density.conditions, key=repr)]
        self._pending = {each: each.nodes() for each in dict.fromkeys(wanted) if not isinstance(each, Everywhere)}
        self._needed = set().union(*self._pending.values()) if self._pending else set()
        self._images: Tensor | None = None

    def needs_gradient(self, index: int) -> bool:
        return self._densities[index] is None

    def see(self, node: fx.Node, value: Any) -> None:
        """Takes note of the value of a node."""
        if node.op == "placeholder":
            self._images = value
        if node not in self._needed:
            return
        self._values[node] = value
        for each in [each for each, nodes in self._pending.items() if nodes <= self._values.keys()]:
            del self._pending[each]
            with torch.no_grad():
                if isinstance(each, Condition):
                    self._live[each] = each.value(self._values)
                else:
                    self._counts[each] = each.mask(self._values).to(torch.float32).sum((2, 3))

    def count(self, index: int) -> Tensor:
        """(N, K) float32, the number of non-zeros of a map."""
        density = self._densities[index]
        assert density is not None
        if isinstance(density.pattern, Everywhere):
            assert self._images is not None
            channels, area = self._areas[index]
            return torch.full((self._images.shape[0], channels), float(area), device=self._images.device)
        return self._counts[density.pattern]

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """What the densities need to be true of an image."""
        return tuple(self._live)

    def live(self) -> Tensor | None:
        """(N, conditions), positive where a condition is true; None where there are none."""
        return torch.stack(list(self._live.values()), 1) if self._live else None
