"""That every kind of change is seen, by the extension and by Python alike, and nothing else is taken for one."""

import copy
import threading
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from gaia_fast import backends, fingerprint
from gaia_fast.capture import ForwardHooks
from gaia_fast.fingerprint import Fingerprint, settled

import zoo
from changes import GLOBAL, NOTHING, PREPARED, STRUCTURE, VALUES, subject


@pytest.fixture(params=["extension", "python"], autouse=True)
def asked_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "python":
        monkeypatch.setattr(fingerprint, "kernels", None)
    else:
        assert backends.kernels is not None, "the tests need the extension"
    return request.param


def look(model: nn.Module, **options: bool) -> Fingerprint:
    return Fingerprint(list(model.modules()), **options)


def images() -> Tensor:
    return torch.rand(2, 3, 16, 16)


def test_nothing_changed() -> None:
    model = zoo.build("vgg_like")
    modules = list(model.modules())
    before, structure = look(model), fingerprint.structure(modules)
    with torch.no_grad():
        model(zoo.images(2))
    assert before.holds()
    assert not before.changes()
    assert fingerprint.structure(modules) == structure


@pytest.mark.parametrize("change", [*STRUCTURE.values(), *VALUES.values()], ids=[*STRUCTURE, *VALUES])
def test_changes_are_seen(change: Callable[[nn.Module], object]) -> None:
    model = subject()
    before = look(model)
    assert before.holds()
    change(model)
    assert not before.holds()
    assert look(model).holds()


@pytest.mark.parametrize(("prepare", "change"), PREPARED.values(), ids=PREPARED)
def test_changes_to_what_was_put_there_are_seen(prepare: Callable, change: Callable) -> None:
    model = subject()
    held = prepare(model)
    before = settled(list(model.modules()), lambda: model(images()))
    assert before.holds()
    change(model, held)
    assert not before.holds()


@pytest.mark.parametrize("hooked", GLOBAL.values(), ids=GLOBAL)
def test_hooks_on_all_modules_are_seen(hooked: Callable) -> None:
    model = subject()
    before = look(model)
    with hooked():
        assert not before.holds()
        assert not look(model, values=False).changes()
    assert before.holds()


@pytest.mark.parametrize("change", STRUCTURE.values(), ids=STRUCTURE)
def test_structure_is_seen_without_values(change: Callable) -> None:
    model = subject()
    before = look(model, values=False)
    change(model)
    assert not before.holds()


@pytest.mark.parametrize("change", VALUES.values(), ids=VALUES)
def test_a_change_in_one_pass_alone_is_no_work_of_the_models(change: Callable) -> None:
    """Another thread may change the model while it is prepared."""
    model, passes = subject(), []

    def run() -> None:
        passes.append(None)
        if len(passes) == 2:
            change(model)

    before = look(model)
    settled(list(model.modules()), run)
    assert not before.holds()


@pytest.mark.parametrize("nothing", NOTHING.values(), ids=NOTHING)
@pytest.mark.parametrize("values", [True, False], ids=["everything", "structure"])
def test_what_changes_nothing(nothing: Callable, values: bool) -> None:
    model = subject()
    before = look(model, values=values)
    nothing(model)
    assert before.holds()
