"""Which layers to inspect: how well each layer, each stage, and each with all smaller ones tell OOD images.

One pass over the images gives them all: the score is a norm of the rows of Lambda, one a layer (Eq. 12), so that the
score of some of them is the norm of the norms of their rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gaia_fast.errors import ArgumentError
from gaia_fast.evaluation.metrics import OodMetrics, average, ood_metrics
from gaia_fast.inspection.stages import stages
from gaia_fast.measurement import FeatureMap


@dataclass(frozen=True)
class LayerGroup:
    """Some of the inspected layers.

    Attributes:
        name: "all", "HxW" for a stage, "HxW and smaller", or the layer's own.
        layers: their places, in the order in which the model makes them.
    """

    name: str
    layers: tuple[int, ...]


@dataclass(frozen=True)
class GroupResult:
    """What one group of layers does.

    Attributes:
        names: of its layers, as `layers=` of a detector takes them; none where they have other maps besides, of further
            calls, so that they cannot be asked for.
        count: of its maps.
        metrics: by the name of the OOD set.
    """

    names: tuple[str, ...]
    count: int
    metrics: dict[str, OodMetrics]

    @property
    def auroc(self) -> float:
        """The average over the OOD sets."""
        return average(self.metrics, "auroc")

    @property
    def fpr95_id_positive(self) -> float:
        """The average over the OOD sets."""
        return average(self.metrics, "fpr95_id_positive")


def layer_groups(maps: Sequence[FeatureMap]) -> list[LayerGroup]:
    """Returns all layers, each stage (maps of one size), each with all smaller ones, and each layer.

    Groups that are the same are listed once.

    Example:
        >>> maps = [FeatureMap("bn1", 8, 4, 4), FeatureMap("bn2", 8, 2, 2), FeatureMap("bn3", 8, 2, 2)]
        >>> [group.name for group in layer_groups(maps)]
        ['all', '4x4', '2x2', 'bn2', 'bn3']
    """
    parts = stages(maps)
    smaller = [
        (f"{size} and smaller", tuple(sorted(place for _, more in parts[index:] for place in more)))
        for index, (size, _) in enumerate(parts[1:-1], start=1)
    ]
    every = tuple(range(len(maps)))
    found: dict[tuple[int, ...], str] = {}
    single = [(each.name, (place,)) for place, each in enumerate(maps)]
    for name, places in (("all", every), *parts, *smaller, *single):
        found.setdefault(places, name)
    return [LayerGroup(name, places) for places, name in found.items()]


def group_scores(rows: np.ndarray, group: LayerGroup, p: float = 2.0) -> np.ndarray:
    """Returns the (N,) scores of a group of layers.

    Args:
        rows: (N, L), the p-norms of the rows of Lambda.
        group: of the L layers.
        p: the order of the method's norm.
    """
    return np.linalg.norm(rows[:, list(group.layers)], ord=p, axis=1)


def sweep_layers(
    maps: Sequence[FeatureMap], id_rows: np.ndarray, ood_rows: Mapping[str, np.ndarray], p: float = 2.0
) -> dict[str, GroupResult]:
    """Returns what every group of layers does, by its name; the best on average first.

    Args:
        maps: the inspected maps.
        id_rows: (N, L) of the in-distribution images, as in `group_scores`.
        ood_rows: the same of each OOD set, by name.
        p: the order of the method's norm.

    Raises:
        ArgumentError: not a row for each map. CalibrationError: as `ood_metrics`.
    """
    if any(rows.shape[1] != len(maps) for rows in (id_rows, *ood_rows.values())):
        raise ArgumentError(f"rows of Lambda for {len(maps)} maps are needed, one for each")
    found = {}
    for group in layer_groups(maps):
        inside = group_scores(id_rows, group, p)
        metrics = {name: ood_metrics(inside, group_scores(rows, group, p)) for name, rows in ood_rows.items()}
        names = dict.fromkeys(maps[place].layer for place in group.layers)
        others = {each.layer for place, each in enumerate(maps) if place not in group.layers}
        askable = tuple(names) if others.isdisjoint(names) else ()
        found[group.name] = GroupResult(askable, len(group.layers), metrics)
    return dict(sorted(found.items(), key=lambda item: -item[1].auroc))


def proposal(by_layers: Mapping[str, Mapping[str, GroupResult]]) -> tuple[str, str] | None:
    """Returns the method and the name of its group of layers with the largest average AUROC; None without groups.

    Args:
        by_layers: by method, what `sweep_layers` found. Groups that cannot be asked for are left out.
    """
    groups = [
        (group.auroc, method, name)
        for method, found in by_layers.items()
        for name, group in found.items()
        if group.names
    ]
    return max(groups, key=lambda each: each[0])[1:] if groups else None
