"""Counts non-zeros and checks preconditions while a graph runs."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from gaia_fast.compiler.sparsity.patterns import Dense, Pattern, Values
from gaia_fast.compiler.sparsity.preconditions import Precondition
from gaia_fast.compiler.sparsity.result import Sparsity


class NonZeroCounter:
    """Counts a map's non-zeros as soon as a run of the graph has the values for it, so that none is kept for long.

    Args:
        sparsity: of each inspected map; None for those whose gradient is computed.
        sizes: of each inspected map, its channels and its area.
    """

    def __init__(self, sparsity: Sequence[Sparsity | None], sizes: Sequence[tuple[int, int]]) -> None:
        self._sparsity = sparsity
        self._sizes = sizes
        self._values: Values = {}
        self._counts: dict[Pattern, Tensor] = {}
        self._held: dict[Precondition, Tensor] = {}
        wanted: list[Pattern | Precondition] = []
        for each in sparsity:
            if each is not None:
                wanted += [each.pattern, *sorted(each.preconditions, key=repr)]
        self._pending = {each: each.nodes() for each in dict.fromkeys(wanted) if not isinstance(each, Dense)}
        self._needed = set().union(*self._pending.values()) if self._pending else set()
        self._images: Tensor | None = None

    def counts(self, index: int) -> bool:
        """Whether the non-zeros of a map are counted, so that its gradient is not needed for them."""
        return self._sparsity[index] is not None

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
                if isinstance(each, Precondition):
                    self._held[each] = each.value(self._values)
                else:
                    self._counts[each] = each.mask(self._values).to(torch.float32).sum((2, 3))

    def count(self, index: int) -> Tensor:
        """(N, K) float32, the number of non-zeros of a map."""
        sparsity = self._sparsity[index]
        assert sparsity is not None
        if isinstance(sparsity.pattern, Dense):
            assert self._images is not None
            channels, area = self._sizes[index]
            return torch.full((self._images.shape[0], channels), float(area), device=self._images.device)
        return self._counts[sparsity.pattern]

    @property
    def preconditions(self) -> tuple[Precondition, ...]:
        """What the counts need to be true of an image, in the order of `precondition_values`."""
        return tuple(self._held)

    def precondition_values(self) -> Tensor | None:
        """(N, P), positive where a precondition holds; None where there are none."""
        return torch.stack(list(self._held.values()), 1) if self._held else None
