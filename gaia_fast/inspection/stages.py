"""Names in `layers=` whose layers are seen on images: stages, of maps of one size; convolutions; maps of tokens."""

from collections.abc import Sequence

from torch import Tensor, nn

from gaia_fast.errors import LayerError
from gaia_fast.inspection.feature_maps import check_images_first, feature_maps
from gaia_fast.inspection.layers import InspectedLayer, inspected_layers
from gaia_fast.inspection.proposals import CONVOLUTIONS, convolutions
from gaia_fast.inspection.token_maps import TOKEN_MAPS, check_order, token_norms, width
from gaia_fast.measurement import FeatureMap

# By the names that `layers=` takes: how many stages, counted from the smallest maps.
LAST = {"last_stage": 1, "last_two_stages": 2}
NAMES = (*LAST, CONVOLUTIONS, TOKEN_MAPS)


def stages(maps: Sequence[FeatureMap]) -> list[tuple[str, tuple[int, ...]]]:
    """Returns the stages, "HxW" and the places of the maps of that size; the largest first.

    Example:
        >>> stages([FeatureMap("bn1", 8, 4, 4), FeatureMap("shortcut", 8, 2, 2), FeatureMap("bn2", 8, 4, 4)])
        [('4x4', (0, 2)), ('2x2', (1,))]
    """
    places: dict[tuple[int, int], list[int]] = {}
    for place, each in enumerate(maps):
        places.setdefault((each.height, each.width), []).append(place)
    by_area = sorted(places.items(), key=lambda item: -item[0][0] * item[0][1])
    return [(f"{height}x{width}", tuple(found)) for (height, width), found in by_area]


def asked_for(layers: str | Sequence[str] | None, model: nn.Module) -> str | None:
    """Returns the name in `NAMES` that `layers` is, alone, unless the model has a module of that name."""
    if layers is not None and not isinstance(layers, Sequence):
        raise LayerError(f"layers={layers!r} names no modules; give a list of names, one name, or None for all norms")
    names = [layers] if isinstance(layers, str) else list(layers or ())
    if len(names) != 1 or not isinstance(names[0], str) or names[0] not in NAMES:
        return None
    return None if names[0] in dict(model.named_modules()) else names[0]


def layers_of(name: str, maps: Sequence[FeatureMap]) -> list[str]:
    """Returns the layers whose maps are in the stages that a name in `LAST` stands for, in their order, each once."""
    last = sorted(place for _, places in stages(maps)[-LAST[name] :] for place in places)
    return list(dict.fromkeys(maps[place].layer for place in last))


def candidates(name: str, model: nn.Module) -> list[InspectedLayer]:
    """Returns the layers among which are those that a name in `NAMES` stands for.

    Raises:
        LayerError: there are none. ModelError: as `inspected_layers`.
    """
    if name in LAST:
        return inspected_layers(model)
    names = token_norms(model) if name == TOKEN_MAPS else convolutions(model)
    if not names:
        what = "norm over the last axis (nn.LayerNorm(C))" if name == TOKEN_MAPS else "convolution before an activation"
        raise LayerError(f"{type(model).__name__} has no {what}, which layers={name!r} stands for; name other layers")
    if name == TOKEN_MAPS:
        check_order(model)
    modules = dict(model.named_modules())
    return [InspectedLayer(each, modules[each]) for each in names]


def found_on(name: str, model: nn.Module, x: Tensor) -> list[str]:
    """Returns the layers that a name in `NAMES` stands for, as images `x` show it.

    Raises:
        LayerError: as `candidates`, `feature_maps` and `check_images_first`. ModelError: as `candidates`.
    """
    layers = candidates(name, model)
    maps = feature_maps(model, layers, x)
    check_images_first(model, layers, x)
    if name in LAST:
        return layers_of(name, maps)
    # A convolution whose map has one position weighs channels, and comes before no activation of a feature map.
    found = [each.layer for each in maps if each.area > 1 or name == TOKEN_MAPS]
    if not found:
        raise LayerError(
            f"no convolution of {type(model).__name__} makes a map of more than one position of images of shape "
            f"{tuple(x.shape)}; give larger ones, or name the layers"
        )
    return list(dict.fromkeys(found))


def resolved(layers: str | Sequence[str] | None, model: nn.Module, x: Tensor) -> str | Sequence[str] | None:
    """Returns `layers`, or for a name in `NAMES` what is `found_on` images `x`.

    Raises:
        LayerError: as `found_on`, and for layers that are named as `inspected_layers`.
    """
    name = asked_for(layers, model)
    if name is not None:
        return found_on(name, model, x)
    if layers is not None:
        check_images_first(model, inspected_layers(model, layers), x)
    return layers


def described(name: str | None, layers: Sequence[InspectedLayer]) -> str:
    """Returns what a plan says of layers: the name in `NAMES` that they were asked for by, and that tokens are new."""
    if any(width(layer.module) for layer in layers):
        return f"{name or 'maps of tokens'}: experimental, see docs/transformers.md"
    return name or ""
