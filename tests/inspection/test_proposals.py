"""A network without norms is refused with layers that work: what the message proposes is taken out of it and used."""

import ast
import copy
import re
from typing import Any

import pytest
import torch
from torch import nn

from gaia_fast import GaiaA, GaiaZ, reference
from gaia_fast.errors import LayerError
from gaia_fast.inspection.proposals import MOST, convolutions
from gaia_fast.options import EngineOption
from gaia_fast.reference import relative_error

from deployed import WITHOUT_NORMS, VitLike, built
from zoo import images

HEADS = {"squeezenet": "classifier.1"}  # nothing but a view may follow a head that is found


def proposed(model: nn.Module) -> list[str]:
    with pytest.raises(LayerError, match="has no normalisation layer") as refused:
        GaiaZ(model)
    found = re.search(r"layers=(\[.*?\])", str(refused.value))
    assert found is not None, refused.value
    return ast.literal_eval(found[1])


@pytest.mark.parametrize("name", WITHOUT_NORMS)
def test_convolutions_before_an_activation_are_proposed(name: str) -> None:
    make, expected = WITHOUT_NORMS[name]
    model = built(make)
    assert proposed(model) == convolutions(model) == expected


@pytest.mark.parametrize("engine", ["hooks", "reference", "compiled"])
@pytest.mark.parametrize("name", WITHOUT_NORMS)
def test_what_is_proposed_is_scored_right(name: str, engine: EngineOption) -> None:
    model, x = built(WITHOUT_NORMS[name][0]), images(3)
    double, layers = copy.deepcopy(model).double(), proposed(model)
    options: Any = {"engine": engine, "runtime": "native"} if engine == "compiled" else {"engine": engine}
    own: dict[Any, dict[str, Any]] = {GaiaZ: {}, GaiaA: {"head": HEADS.get(name)}}
    for detector, method in ((GaiaZ, reference.gaia_z), (GaiaA, reference.gaia_a)):
        truth = method(double, x.double(), layers, **own[detector]).score
        plain = relative_error(method(model, x, layers, **own[detector]).score, truth)
        error = relative_error(detector(model, layers=layers, **own[detector], **options)(x), truth)
        assert error <= max(1e-5, 2 * plain)


@pytest.mark.parametrize("engine", ["hooks", "reference"])
def test_maps_lie_before_the_activation_in_place(engine: EngineOption) -> None:
    """By hand: the density at the last convolution is that of the units behind it which the pool passes on."""
    model, x = built(WITHOUT_NORMS["repvgg"][0]), images(2)
    matrix = GaiaZ(model, layers=proposed(model), engine=engine).score(x, return_matrix=True).matrix
    assert matrix is not None
    active = model.trunk(x) > 0  # type: ignore[operator]
    torch.testing.assert_close(matrix[:, 1], active.float().mean((2, 3)))


def test_a_long_list_is_shortened_to_the_last_ones() -> None:
    model = nn.Sequential(*(each for _ in range(20) for each in (nn.Conv2d(3, 3, 1), nn.ReLU())), nn.Conv2d(3, 2, 1))
    assert proposed(model.eval()) == [str(2 * at) for at in range(20 - MOST, 20)]
    with pytest.raises(LayerError, match=rf"layers='convolutions', or the last {MOST} of the 20, layers="):
        GaiaZ(model)


@pytest.mark.parametrize("name", WITHOUT_NORMS)
def test_convolutions_by_one_word(name: str) -> None:
    model, x = built(WITHOUT_NORMS[name][0]), images(2)
    by_word, by_name = GaiaZ(model, layers="convolutions"), GaiaZ(model, layers=convolutions(model))
    assert torch.equal(by_word(x), by_name(x))
    plan = by_word.plan(x)
    assert [each.name for each in plan.maps] == WITHOUT_NORMS[name][1]
    assert "layers   convolutions\n" in str(plan)


def test_convolutions_whose_map_has_one_position_are_left_out_where_images_show_it() -> None:
    first = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    model = nn.Sequential(*first, nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)).eval()
    assert proposed(model) == ["0", "3"]
    assert [each.name for each in GaiaZ(model, layers="convolutions").plan(images(2)).maps] == ["0"]
    with pytest.raises(LayerError, match=r"no convolution of Sequential makes a map of more than one position.*3, 3"):
        GaiaZ(model, layers="convolutions")(images(2, 3))


def test_a_network_without_convolutions_has_none_to_propose() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    with pytest.raises(LayerError, match=r"Name the modules .* layers=\[\.\.\.\]; it has: '0', '1'"):
        GaiaZ(model)
    with pytest.raises(LayerError, match="has no convolution before an activation, which layers='convolutions'"):
        GaiaZ(model, layers="convolutions")


def test_a_transformer_s_patches_are_no_feature_maps() -> None:
    assert convolutions(VitLike()) == []
    with pytest.raises(LayerError, match=r"Name the maps of tokens .* layers='token_maps', which is experimental"):
        GaiaZ(built(VitLike))
