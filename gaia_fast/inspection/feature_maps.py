"""Which feature maps a model makes of images."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from gaia_fast.errors import LayerError
from gaia_fast.inspection import token_maps
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


def check_images_first(model: nn.Module, layers: Sequence[InspectedLayer], x: Tensor) -> None:
    """Raises LayerError where the first axis of a map of tokens is not that of the images, so that no map can be read.

    Where a map has as many tokens, or columns, as there are images, it looks again with one image less.

    Args:
        model: the classifier.
        layers: those that are inspected; of these the ones with maps of tokens are looked at.
        x: (N, C, H, W) images.
    """
    images = x.shape[0]
    of_tokens = [layer for layer in layers if token_maps.width(layer.module)]
    if images == 1 or not of_tokens:  # with one image the axes hold the same either way
        return
    alike = [each for each in feature_maps(model, of_tokens, x) if images in (each.height, each.width)]
    if not alike:
        return
    try:
        fewer = {each.name for each in feature_maps(model, of_tokens, x[:-1])}
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise LayerError(f"{_unread(alike[0].name, images)}, and {images - 1} images cannot show it") from error
    for each in alike:
        if each.name not in fewer:
            raise LayerError(_unread(each.name, images))


def _unread(name: str, images: int) -> str:
    return (
        f"layer {name!r} gives a map of tokens with as many tokens as there are images, {images}, and its first axis "
        "is not known to be that of the images; name other layers, or have the model keep tokens as (N, T, C)"
    )
