"""How often a call of the hooks engine waits for a device: once, at its end. The CPU is taken for a device here."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gaia_fast import Gaia, GaiaA, GaiaZ
from gaia_fast.engines import hooks
from gaia_fast.errors import InputError, LayerError, NonFiniteError
from gaia_fast.inspection import checks

import zoo
from looks import Looks

MAKE: dict[str, Callable[[nn.Module], Any]] = {
    "gaia-z": lambda model: GaiaZ(model, engine="hooks"),
    "gaia-a": lambda model: GaiaA(model, engine="hooks"),
    "output": lambda model: GaiaA(model, engine="hooks", fusion="output"),
    "both": lambda model: Gaia(model, scores=("gaia-z", "gaia-a", "energy"), engine="hooks"),
}
each_kind = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)


@pytest.fixture(autouse=True)
def a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "_waits", lambda x: True)


@each_kind
def test_one_look_where_all_is_well(make: Callable[[nn.Module], Any]) -> None:
    detector, x = make(zoo.build("strided_shortcut")), zoo.images(3)
    detector(x)
    with Looks() as looks:
        detector(x)
    assert looks.waited == ["_local_scalar_dense"]


@each_kind
def test_pixels_are_named_before_what_comes_of_them(make: Callable[[nn.Module], Any]) -> None:
    detector, x = make(zoo.build("strided_shortcut")), zoo.images(3)
    expected = detector(x)
    bad = x.clone()
    bad[1, 0, 3, 3] = torch.nan
    with pytest.raises(InputError, match="images 1 of the batch hold infinite or NaN pixels") as raised:
        detector(bad)
    assert raised.value.__cause__ is None
    for each in (expected, detector(x)):
        torch.testing.assert_close(each, expected, rtol=0, atol=0)


@each_kind
def test_logits_that_overflow(make: Callable[[nn.Module], Any]) -> None:
    detector, x = make(zoo.build("strided_shortcut")), zoo.images(3)
    detector(x)
    x[2].fill_(3e38)
    with pytest.raises(NonFiniteError, match="of images 2 of the batch") as late:
        detector(x)
    with pytest.raises(NonFiniteError) as at_once:
        make(zoo.build("strided_shortcut"))(x)
    assert str(late.value) == str(at_once.value)


def test_an_output_component_of_zero() -> None:
    model: Any = zoo.build("strided_shortcut")
    detector, x = GaiaA(model, engine="hooks"), zoo.images(3)
    detector(x)
    with torch.no_grad():
        model.fc.weight.zero_()
        model.fc.bias.zero_()
    with pytest.raises(NonFiniteError, match="the output component of images 0, 1, 2 of the batch is zero"):
        detector(x)


calls: list[str] = []  # a count in the model would be something kept


class Kept(nn.Module):
    """Writes what it sees, one way or another; or refuses it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.inner, self.how = zoo.build("strided_shortcut"), how
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(()))
        self.kept: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        calls.append(self.how)
        if self.how == "in a list":
            self.kept = [x.mean()]
        elif self.how == "in a buffer":
            with torch.no_grad():
                self.mean.mul_(0.9).add_(x.mean())
        elif self.how == "refused" and not x.isfinite().all():
            raise LayerError("of its own")
        return self.inner(x)


@pytest.mark.parametrize("how", ["in a list", "in a buffer"])
def test_a_model_that_keeps_something_never_sees_bad_pixels(how: str) -> None:
    model, x = Kept(how), zoo.images(2)
    detector = GaiaZ(model.eval(), engine="hooks")
    detector(x)
    detector(x)
    x[0, 0, 0, 0] = torch.inf
    calls.clear()
    with pytest.raises(InputError, match="images 0 of"):
        detector(x)
    assert not calls
    assert model.mean.isfinite()


def test_a_size_that_is_new_is_checked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    detector, x = GaiaZ(zoo.build("strided_shortcut"), engine="hooks"), zoo.images(2)
    monkeypatch.setattr(hooks, "measure", None)
    x[0, 0, 0, 0] = torch.inf
    with pytest.raises(InputError, match="images 0 of"):
        detector(x)


def test_what_the_model_raises_on_bad_pixels_gives_way_to_them() -> None:
    model, x = Kept("refused"), zoo.images(2)
    detector = GaiaZ(model.eval(), engine="hooks")
    detector(x)
    x[1, 0, 0, 0] = torch.nan
    calls.clear()
    with pytest.raises(InputError, match="images 1 of"):
        detector(x)
    assert calls == ["refused"]


def deferring(error: BaseException | None, *values: Tensor) -> None:
    with checks.DeferredChecks() as deferred:
        for index, each in enumerate(values):
            deferred.finite(each, f"value {index}", "")
        if error is not None:
            raise error


def test_deferred_checks_are_made_in_their_order() -> None:
    good, bad = torch.ones(2), torch.tensor([1.0, torch.nan])
    deferring(None, good, good)
    with pytest.raises(NonFiniteError, match="^value 1 of images 1 of"):
        deferring(None, good, bad, bad)
    with pytest.raises(NonFiniteError, match="^value 1 of"):
        deferring(ValueError(), good, bad)
    with pytest.raises(KeyError):
        deferring(KeyError(), good)
    with pytest.raises(KeyboardInterrupt):
        deferring(KeyboardInterrupt(), bad)
