import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
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


def test_stages_are_maps_of_one_size() -> None:
    assert stages(MAPS) == [("32x32", (0,)), ("16x16", (1, 2)), ("8x8", (3, 4))]
    assert layers_of("last_stage", MAPS) == ["b.bn1", "shared"]
    assert layers_of("last_two_stages", MAPS) == ["a.bn1", "shared", "b.bn1"]
    assert layers_of("last_two_stages", MAPS[:1]) == ["bn1"]


def test_a_shortcut_that_comes_before_its_block_is_of_its_own_stage() -> None:
    """As in RegNet: the sizes of maps come and go."""
    sizes = [("stem", 8), ("a.shortcut", 4), ("a.bn1", 8), ("a.bn2", 4), ("b.shortcut", 2), ("b.bn1", 4), ("b.bn2", 2)]
    maps = [FeatureMap(name, 8, side, side) for name, side in sizes]
    assert stages(maps) == [("8x8", (0, 2)), ("4x4", (1, 3, 5)), ("2x2", (4, 6))]
    assert layers_of("last_stage", maps) == ["b.shortcut", "b.bn2"]
    assert layers_of("last_two_stages", maps) == ["a.shortcut", "a.bn2", "b.shortcut", "b.bn1", "b.bn2"]


def test_names_of_modules_come_first() -> None:
    model = nn.ModuleDict({"last_stage": nn.BatchNorm2d(3)})
    assert asked_for("last_stage", model) is None
    assert asked_for("last_stage", nn.Identity()) == asked_for(["last_stage"], nn.Identity()) == "last_stage"
    others: tuple[Any, ...] = (None, [], "layer4", ["last_stage", "layer4"], [["a"]])
    for other in others:
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
        assert (len(names), len(maps)) == ({"last_stage": 3, "last_two_stages": 4}[name], 4)
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
    model.bn = copy.deepcopy(model.bn) if hasattr(model, "bn") else nn.BatchNorm2d(3).eval()
    assert torch.allclose(detector(x), before, rtol=1e-4)
    assert len(detector.plan(x).maps) < len(GaiaZ(model).plan(x).maps)


def test_a_stage_stays_what_it_was_whatever_images_come() -> None:
    """Under another size other layers might be the smallest, and the threshold would be theirs."""
    model: Any = zoo.build("strided_shortcut")
    detector = GaiaZ(model, layers="last_stage")
    names = [each.name for each in detector.plan(zoo.images(2)).maps]
    loaded = pickle.loads(pickle.dumps(detector))
    assert loaded._pending is False
    assert [each.name for each in loaded.plan(zoo.images(2, 40)).maps] == names


def test_a_stage_is_found_once_by_many_threads() -> None:
    model, x = zoo.build("strided_shortcut"), zoo.images(2)
    expected = GaiaZ(model, layers="last_stage")(x)
    for _ in range(5):
        detector = GaiaZ(model, layers="last_stage")
        with ThreadPoolExecutor(4) as pool:
            for found in pool.map(lambda _, detector=detector: detector(x), range(8)):
                assert torch.equal(found, expected)


def test_a_stage_among_other_names_is_a_name_of_a_module() -> None:
    with pytest.raises(LayerError, match="no module named 'last_stage'"):
        GaiaZ(zoo.build("strided_shortcut"), layers=["last_stage", "fc"])
    assert GaiaA(zoo.build("strided_shortcut"), layers="last_stage", fusion="output")(zoo.images(2)).shape == (2,)
