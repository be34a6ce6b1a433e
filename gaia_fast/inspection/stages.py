"""Stages of a network: what it makes of one size, before the next one."""

from collections.abc import Sequence
from itertools import groupby

from torch import nn

from gaia_fast.measurement import FeatureMap

# By the names that `layers=` takes: how many stages, counted from the last.
LAST = {"last_stage": 1, "last_two_stages": 2}


def stages(maps: Sequence[FeatureMap]) -> list[tuple[str, tuple[int, ...]]]:
    """Returns the stages, "HxW" and the places of their maps: those that follow each other in one size.

    Example:
        >>> stages([FeatureMap("bn1", 8, 4, 4), FeatureMap("bn2", 8, 2, 2), FeatureMap("bn3", 8, 2, 2)])
        [('4x4', (0,)), ('2x2', (1, 2))]
    """
    sized = [(f"{each.height}x{each.width}", place) for place, each in enumerate(maps)]
    parts = groupby(sized, key=lambda each: each[0])
    return [(size, tuple(place for _, place in part)) for size, part in parts]


def asked_for(layers: str | Sequence[str] | None, model: nn.Module) -> str | None:
    """Returns the name in `LAST` that `layers` is, alone, unless the model has a module of that name."""
    names = [layers] if isinstance(layers, str) else list(layers or ())
    if len(names) != 1 or names[0] not in LAST or names[0] in dict(model.named_modules()):
        return None
    return names[0]


def layers_of(name: str, maps: Sequence[FeatureMap]) -> list[str]:
    """Returns the layers whose maps are in the stages that a name in `LAST` stands for, each once."""
    last = stages(maps)[-LAST[name] :]
    return list(dict.fromkeys(maps[place].layer for _, places in last for place in places))
