"""What the analysis says of a map: the pattern of its gradient, and what must be true of an image for it to hold."""

from dataclasses import dataclass

from gaia_fast.compiled.sparsity.conditions import Condition
from gaia_fast.compiled.sparsity.patterns import Everywhere, Pattern


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
