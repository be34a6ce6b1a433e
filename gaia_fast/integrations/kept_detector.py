"""A detector that follows what a library changes under it: its network and its hyperparameters."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from gaia_fast.detector import GaiaA, GaiaZ
from gaia_fast.errors import ArgumentError
from gaia_fast.inspection import checks


def search_space() -> dict[str, list[Any]]:
    """Returns what a search by these libraries tries: layers, and the order of the norm; the defaults among them."""
    return {"layers": [None, "last_two_stages", "last_stage"], "p": [1.5, 2.0, 4.0]}


class KeptDetector:
    """GaiaA or GaiaZ of the network and options last asked for; made anew only where either is another.

    Args:
        kind: GaiaA or GaiaZ.

    Attributes:
        defaults: of its options, by name.
    """

    def __init__(self, kind: type[GaiaA] | type[GaiaZ]) -> None:
        parameters = inspect.signature(kind).parameters.values()
        self.defaults = {each.name: each.default for each in parameters if each.name != "model"}
        self._kind = kind
        self._options: dict[str, Any] = {}
        self._detector: GaiaA | GaiaZ | None = None

    def check_names(self, names: Iterable[str], where: str) -> None:
        """Raises ArgumentError, which says `where` they stand, unless all are options of GaiaA or GaiaZ."""
        for name in names:
            if name not in self.defaults:
                raise ArgumentError(
                    f"{where}: {self._kind.__name__} has no option {name!r}; choose from {tuple(self.defaults)}"
                )

    def of(self, model: nn.Module, options: Mapping[str, Any]) -> GaiaA | GaiaZ:
        """Returns the detector of a network, with the options of GaiaA or GaiaZ.

        Raises:
            GaiaError: as GaiaA and GaiaZ; what was kept is kept.
        """
        # Copied, so that a list of layers that is changed in place counts as another.
        asked: dict[str, Any] = {
            name: list(each) if isinstance(each, (list, tuple)) else each for name, each in options.items()
        }
        kept = self._detector
        if kept is not None and kept.model is checks.unwrap(model) and self._options == asked:
            return kept
        self._detector = self._kind(model, **asked)
        self._options = asked
        return self._detector
