import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from gaia_fast import GaiaA, GaiaZ
from gaia_fast.errors import LayerError
from gaia_fast.inspection.stages import asked_for, layers_of, stages
from gaia_fast.measurement import FeatureMap

import zoo

MAPS = [
    FeatureMap("bn1", 8, 32, 32),
    FeatureMap("a.bn1", 8, 16, 16),
    FeatureMap("shared", 16, 16, 16),
    FeatureMap("b.bn1", 16, 8, 8),
    FeatureMap("shared (call 2)", 16, 8, 8),
]
DETECTORS = [GaiaZ, GaiaA]


def test_stages_are_maps_of_one_size_one_after_the_other() -> None:
    assert stages(MAPS) == [("32x32", (0,)), ("16x16", (1, 2)), ("8x8", (3, 4))]
    assert stages([*MAPS, MAPS[0]])[-1] == ("32x32", (5,))
    assert layers_of("last_stage", MAPS) == ["b.bn1", "shared"]
    assert layers_of("last_two_stages", MAPS) == ["a.bn1", "shared", "b.bn1"]
    assert layers_of("last_two_stages", MAPS[:1]) == ["bn1"]


def test_names_of_modules_come_first() -> None:
    model = nn.ModuleDict({"last_stage": nn.BatchNorm2d(3)})
    assert asked_for("last_stage", model) is None
    assert asked_for("last_stage", nn.Identity()) == asked_for(["last_stage"], nn.Identity()) == "last_stage"
    for other in (None, [], "layer4", ["last_stage", "layer4"]):
        assert asked_for(other, nn.Identity()) is None


@pytest.mark.parametrize("engine", ["hooks", "reference", "compiled"])
@pytest.mark.parametrize("detector", DETECTORS)
def test_a_stage_is_its_layers(detector: Any, engine: str) -> None:
    model, x = zoo.build("strided_shortcut"), zoo.images(3)
    runtime = {"runtime": "native"} if engine == "compiled" else {}
    for name in ("last_stage", "last_two_stages"):
        by_stage = detector(model, layers=name, engine=engine, **runtime)
        found = by_stage.score(x, return_matrix=True)
        maps = detector(model).plan(x).maps
        names = layers_of(name, maps)
        assert 0 < len(names) < len(maps) or name == "last_two_stages"
        expected = detector(model, layers=names, engine=engine, **runtime).score(x, return_matrix=True)
        assert torch.equal(found.score, expected.score)
        assert found.matrix is not None
        assert found.matrix.shape[1] == len(names)
        plan = by_stage.plan(x)
        assert [each.name for each in plan.maps] == names
        assert f"layers   {name}" in str(plan)


def test_what_a_stage_is_is_seen_on_the_first_images_and_again_where_the_model_changes() -> None:
    model: Any = zoo.build("strided_shortcut")
    x = zoo.images(3)
    detector = GaiaZ(model, layers="last_stage")
    assert detector.score(x[:0]).score.shape == (0,)
    before = detector(x)
    assert torch.equal(pickle.loads(pickle.dumps(detector))(x), before)
    assert torch.equal(copy.deepcopy(detector)(x), before)
    assert torch.equal(detector.prepare(x)(x), before) or torch.allclose(detector(x), before, rtol=1e-4)
    model.added = nn.BatchNorm2d(3).eval()
    assert torch.allclose(detector(x), before, rtol=1e-4)


def test_a_stage_among_other_names_is_a_name_of_a_module() -> None:
    with pytest.raises(LayerError, match="no module named 'last_stage'"):
        GaiaZ(zoo.build("strided_shortcut"), layers=["last_stage", "fc"])
    assert GaiaA(zoo.build("strided_shortcut"), layers="last_stage", fusion="output")(zoo.images(2)).shape == (2,)
