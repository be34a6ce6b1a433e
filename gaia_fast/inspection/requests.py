"""What is asked of an engine: methods, each with the layers whose maps it inspects."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from gaia_fast.inspection.layers import InspectedLayer, explicit_names, inspected_layers
from gaia_fast.measurement import FeatureMap
from gaia_fast.method import Method

SCORE = "score"


@dataclass(frozen=True)
class Request:
    """One method on the layers that it inspects.

    Attributes:
        method: what to measure.
        layers: the modules whose maps are inspected, in the model's order; none where the method needs none.
        name: what its score is called among others.
    """

    method: Method
    layers: tuple[InspectedLayer, ...]
    name: str = SCORE

    @property
    def layer_names(self) -> list[str] | None:
        """The names of its layers; None for those that are inspected by default."""
        return explicit_names(self.layers)

    def places(self, maps: Sequence[FeatureMap]) -> tuple[int, ...]:
        """Returns which of the maps that a model makes are inspected for it."""
        names = {layer.name for layer in self.layers}
        return tuple(place for place, each in enumerate(maps) if each.layer in names)

    def on(self, model: nn.Module) -> "Request":
        """Returns the same request of a copy of the model."""
        layers = inspected_layers(model, self.layer_names) if self.layers else []
        return replace(self, layers=tuple(layers))


def all_layers(requests: Sequence[Request], modules: Iterable[nn.Module]) -> list[InspectedLayer]:
    """Returns the layers of several requests, in the model's order, each once; explicit where it is so for one.

    Args:
        requests: of one model.
        modules: all of the model's, in its order.
    """
    if len(requests) == 1:
        return list(requests[0].layers)
    found: dict[nn.Module, InspectedLayer] = {}
    for request in requests:
        for layer in request.layers:
            if layer.explicit or layer.module not in found:
                found[layer.module] = layer
    return [found[module] for module in modules if module in found]
