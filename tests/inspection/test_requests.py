"""Methods with the layers that each inspects."""

import copy

from gaia_fast.inspection.layers import inspected_layers
from gaia_fast.inspection.requests import Request, all_layers
from gaia_fast.measurement import FeatureMap
from gaia_fast.method import Method

import zoo

Z, A = Method("gaia-z"), Method("gaia-a")


def test_layers_of_several_requests_come_in_the_models_order_each_once() -> None:
    model = zoo.build("strided_shortcut")
    late, early = (tuple(inspected_layers(model, [name])) for name in ("residual.4", "stem.1"))
    every = tuple(inspected_layers(model))
    found = all_layers([Request(Z, late), Request(A, early)], model.modules())
    assert [layer.name for layer in found] == ["stem.1", "residual.4"]
    found = all_layers([Request(Z, every), Request(A, late)], model.modules())
    assert [layer.name for layer in found] == [layer.name for layer in every]
    # What one asks for by name has to give a map, whoever else inspects it.
    assert [layer.name for layer in found if layer.explicit] == ["residual.4"]
    assert all_layers([Request(A, late), Request(Z, every)], model.modules()) == found


def test_places_are_those_of_all_calls_of_its_layers() -> None:
    model = zoo.build("strided_shortcut")
    maps = [FeatureMap(name, 4, 2, 2) for name in ("stem.1", "residual.4", "stem.1 (call 2)", "shortcut.1")]
    request = Request(A, tuple(inspected_layers(model, ["stem.1", "shortcut.1"])))
    assert request.places(maps) == (0, 2, 3)
    assert Request(A, ()).places(maps) == ()


def test_a_request_of_a_copy_is_of_the_copys_modules() -> None:
    model = zoo.build("strided_shortcut")
    other = copy.deepcopy(model)
    for names in (None, ["residual"]):
        request = Request(A, tuple(inspected_layers(model, names)), "gaia_a")
        copied = request.on(other)
        assert copied.layer_names == request.layer_names
        assert (copied.name, copied.method) == ("gaia_a", A)
        assert all(other.get_submodule(layer.name) is layer.module for layer in copied.layers)
