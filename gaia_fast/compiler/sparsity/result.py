"""What the analysis says of a gradient: its sparsity pattern with its preconditions, or that nothing is proven."""

from dataclasses import dataclass

from gaia_fast.compiler.sparsity.patterns import Pattern
from gaia_fast.compiler.sparsity.preconditions import Precondition


@dataclass(frozen=True)
class Sparsity:
    """The sparsity pattern of a gradient, and what must be true of an image for it to hold."""

    pattern: Pattern
    preconditions: frozenset[Precondition] = frozenset()

    def __str__(self) -> str:
        return str(self.pattern)


class Unproven(Exception):
    """No pattern is known for a gradient, and why. Never leaves the analysis: the map's gradient is computed."""
