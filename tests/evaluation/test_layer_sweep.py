import numpy as np
import pytest
import torch
from torch import nn

from gaia_fast import GaiaA, GaiaZ
from gaia_fast.data.digits import digits_sources
from gaia_fast.errors import ArgumentError
from gaia_fast.evaluation.image_sets import evaluate, score_set
from gaia_fast.evaluation.layer_sweep import (
    GroupResult,
    LayerGroup,
    group_scores,
    layer_groups,
    proposal,
    sweep_layers,
)
from gaia_fast.evaluation.metrics import ood_metrics
from gaia_fast.measurement import FeatureMap
from gaia_fast.models import digits_resnet

MAPS = [
    FeatureMap("bn1", 8, 32, 32),
    FeatureMap("a.bn1", 8, 16, 16),
    FeatureMap("a.bn2", 16, 16, 16),
    FeatureMap("b.bn1", 16, 8, 8),
]


def test_groups_are_all_stages_what_follows_them_and_layers() -> None:
    found = {group.name: group.layers for group in layer_groups(MAPS)}
    assert found == {
        "all": (0, 1, 2, 3),
        "32x32": (0,),
        "16x16": (1, 2),
        "8x8": (3,),
        "16x16 and smaller": (1, 2, 3),
        "a.bn1": (1,),
        "a.bn2": (2,),
    }
    assert [group.name for group in layer_groups(MAPS[:1])] == ["all"]
    assert [group.name for group in layer_groups(MAPS[1:3])] == ["all", "a.bn1", "a.bn2"]


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, float("inf")])
def test_the_norm_of_norms_is_the_norm(p: float) -> None:
    parts = torch.randn(5, 3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = torch.linalg.vector_norm(parts, p, dim=2).numpy()
    whole = torch.linalg.vector_norm(parts[:, [0, 2]].flatten(1), p, dim=1).numpy()
    assert np.allclose(group_scores(rows, LayerGroup("two", (0, 2)), p), whole)


def test_the_best_on_average_comes_first() -> None:
    inside = np.array([[1.0, 5.0, 1.0, 1.0]] * 4)
    outside = {"far": np.array([[0.0, 0.0, 2.0, 0.5]] * 3), "near": np.array([[1.0, 5.0, 3.0, 0.5]] * 3)}
    found = sweep_layers(MAPS, inside, outside)
    best, group = next(iter(found.items()))
    assert best == "a.bn2"
    assert group.names == ("a.bn2",)
    assert (group.auroc, group.fpr95_id_positive) == (1.0, 0.0)
    assert found["8x8"].auroc == 0.0
    assert found["8x8"].metrics["near"] == ood_metrics(inside[:, 3], outside["near"][:, 3])
    assert [each.auroc for each in found.values()] == sorted((each.auroc for each in found.values()), reverse=True)


def test_sizes_that_come_back_are_one_stage_and_calls_cannot_be_asked_for_one_by_one() -> None:
    maps = [
        FeatureMap("a", 8, 8, 8),
        FeatureMap("b", 8, 4, 4),
        FeatureMap("c", 8, 8, 8),
        FeatureMap("b (call 2)", 8, 2, 2),
    ]
    assert {group.name: group.layers for group in layer_groups(maps)} == {
        "all": (0, 1, 2, 3),
        "8x8": (0, 2),
        "4x4": (1,),
        "2x2": (3,),
        "4x4 and smaller": (1, 3),
        "a": (0,),
        "c": (2,),
    }
    found = sweep_layers(maps, np.ones((2, 4)), {"far": np.ones((2, 4))})
    assert {name: group.names for name, group in found.items()} == {
        "all": ("a", "b", "c"),
        "8x8": ("a", "c"),
        "4x4": (),
        "2x2": (),
        "4x4 and smaller": ("b",),
        "a": ("a",),
        "c": ("c",),
    }
    assert found["4x4 and smaller"].count == 2
    with pytest.raises(ArgumentError, match="for 4 maps"):
        sweep_layers(maps, np.ones((2, 1)), {"far": np.ones((2, 4))})


def test_what_inspects_no_layers_is_not_swept() -> None:
    id_source, ood_sources = digits_sources()
    detector = GaiaA(digits_resnet(pretrained=True), fusion="output")
    assert not evaluate({"gaia-a": detector}, id_source, ood_sources, by_layers=True).by_layers


def test_every_group_is_what_a_detector_on_its_layers_finds() -> None:
    model: nn.Module = digits_resnet(pretrained=True)
    id_source, ood_sources = digits_sources()
    name, ood_source = next(iter(ood_sources.items()))
    for method, kind in (("gaia-z", GaiaZ), ("gaia-a", GaiaA)):
        found = evaluate({method: kind(model)}, id_source, {name: ood_source}, by_layers=True)
        groups = found.by_layers[method]
        assert groups["all"].metrics[name].auroc == pytest.approx(found.results[method].metrics[name].auroc, abs=1e-4)
        assert {"32x32", "16x16", "16x16 and smaller", "layer2.0.bn1"} <= groups.keys()
        for group in list(groups.values())[:4]:
            alone = kind(model, layers=list(group.names))
            inside, outside = (score_set({method: alone}, source) for source in (id_source, ood_source))
            expected = ood_metrics(inside.scores[method], outside.scores[method])
            assert group.metrics[name].auroc == pytest.approx(expected.auroc, abs=1e-4)
            assert group.metrics[name].fpr95_id_positive == pytest.approx(expected.fpr95_id_positive, abs=5e-3)
    assert not evaluate({"gaia-z": GaiaZ(model)}, id_source, {name: ood_source}).by_layers


def test_the_proposal_is_the_best_of_all_methods_that_can_be_asked_for() -> None:
    def group(auroc: float, *names: str) -> GroupResult:
        inside = [0.0] * 100
        return GroupResult(
            names, 1, {"far": ood_metrics(inside, [1.0] * int(auroc * 100) + [-1.0] * int(100 - auroc * 100))}
        )

    z = {"8x8": group(0.99), "all": group(0.9, "a", "b"), "a": group(0.7, "a")}
    a = {"b": group(0.95, "b"), "all": group(0.5, "a", "b")}
    assert proposal({"gaia-z": z, "gaia-a": a}) == ("gaia-a", "b")
    assert proposal({"gaia-z": z}) == ("gaia-z", "all")
    assert proposal({}) is None
