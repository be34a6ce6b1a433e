"""Which feature maps a model makes of images."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from gaia_fast.inspection.forward_hooks import ForwardHooks, in_grad_mode
from gaia_fast.inspection.kept import undisturbed
from gaia_fast.inspection.layers import InspectedLayer, MapNames, is_feature_map
from gaia_fast.inspection.survey import Passes
from gaia_fast.measurement import FeatureMap


@in_grad_mode(False)
def feature_maps(model: nn.Module, layers: Sequence[InspectedLayer], x: Tensor) -> tuple[FeatureMap, ...]:
    """Returns the inspected maps of one forward pass, in the order in which the model makes them.

    Raises:
        LayerError: a layer makes none; see `MapNames.check_called` and `is_feature_map`.
    """
    seen: list[FeatureMap] = []
    names = MapNames()

    def see(layer: InspectedLayer, _: nn.Module, output: Tensor) -> None:
        if is_feature_map(output, layer, x.shape[0]):
            seen.append(FeatureMap(names.next(layer), *output.shape[1:]))

    def watch(hooks: ForwardHooks) -> None:
        nonlocal names
        seen.clear()
        names = MapNames()
        for layer in layers:
            layer.watch(hooks, partial(see, layer))

    _, _, ran = undisturbed(model, lambda: Passes().run(model, x, watch))
    if layers:
        names.check_called(layers, ran)
    return tuple(seen)
