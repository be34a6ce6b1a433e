"""Which model it is, told in another process."""

import copy
import os
import subprocess
import sys
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from gaia_fast.inspection import guards
from gaia_fast.inspection.fingerprint import Fingerprint, code_digest

import zoo


def test_the_same_model_made_again_has_the_same_fingerprint() -> None:
    one, other = (zoo.build("small_bit") for _ in range(2))
    assert not Fingerprint.of(one).difference(Fingerprint.of(other))
    assert Fingerprint.of(one).digest() == Fingerprint.of(copy.deepcopy(other)).digest()
    assert code_digest(one) == code_digest(other)


def test_layout_does_not_matter() -> None:
    model = zoo.build("parallel")
    before = Fingerprint.of(model)
    assert not before.difference(Fingerprint.of(model.to(memory_format=torch.channels_last)))  # type: ignore[call-overload]


class Bounded(nn.Module):
    """What it does hangs on an attribute, of any kind."""

    def __init__(self, bound: Any) -> None:
        super().__init__()
        self.bound = bound

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.clamp(max=float(self.bound))


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls, self.sizes = 0, dict[Any, int]()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.sizes[x.shape] = self.calls
        self.get_buffer("seen").add_(1)
        return x


@pytest.mark.parametrize(
    "bound",
    [
        float,
        torch.tensor,
        lambda n: {"a": [n]},
        lambda n: SimpleNamespace(n=n),
        lambda n: partial(max, n),
        lambda n: {n},
    ],
    ids=["number", "tensor", "dict", "namespace", "partial", "set"],
)
def test_attributes_are_seen(bound: Any) -> None:
    assert not Fingerprint.of(Bounded(bound(6.0))).difference(Fingerprint.of(Bounded(bound(6.0))))
    assert "bound=" in Fingerprint.of(Bounded(bound(6.0))).difference(Fingerprint.of(Bounded(bound(4.0))))


def test_hooks_own_forwards_and_buffers_that_are_not_saved_are_seen() -> None:
    plain = Fingerprint.of(Bounded(1.0))
    hooked, own, buffered = Bounded(1.0), Bounded(1.0), Bounded(1.0)
    hooked.register_forward_hook(lambda module, args, output: output * 2)
    own.forward = lambda x: x * 2  # type: ignore[method-assign]
    buffered.register_buffer("more", torch.ones(1), persistent=False)
    for each in (hooked, own, buffered):
        assert plain.difference(Fingerprint.of(each))
        assert code_digest(each) != code_digest(Bounded(1.0)) or each is buffered


def test_what_a_forward_pass_writes_is_left_out() -> None:
    model, x = Counting(), torch.zeros(1, 3, 4, 4)
    state = guards.settled(list(model.modules()), lambda: model(x))
    found = Fingerprint.of(model, state.but_for)
    assert found.left_out == (".calls", ".seen", ".sizes")
    assert not found.difference(Fingerprint.of(Counting(), left_out=found.left_out))
    assert Fingerprint.of(model).difference(Fingerprint.of(Counting()))


def test_another_order_of_hashes_is_no_other_model() -> None:
    code = (
        "import torch\nfrom gaia_fast.inspection.fingerprint import Fingerprint, code_digest\n"
        "class Net(torch.nn.Module):\n"
        "    kinds = {'a', 'b', 'c', 'd'}\n"
        "    def forward(self, x):\n        return x if 'e' in {'e', 'f', 'g', 'h'} else -x\n"
        "net = Net()\nnet.names = frozenset('xyzuvw')\n"
        "print(Fingerprint.of(net).digest(), code_digest(net))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in "12"
    }
    assert len(said) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.fc.bias.data.add_(1e-6),
        lambda model: model.bfloat16(),
        lambda model: setattr(model.norm, "eps", 1e-4),
        lambda model: setattr(model, "fc", nn.Linear(8, 11)),
        lambda model: model.norm.running_var.mul_(2),
    ],
    ids=["bias", "dtype", "eps", "classes", "statistics"],
)
def test_what_differs_is_seen(change: Any) -> None:
    def made() -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential()
        model.add_module("norm", nn.BatchNorm2d(8))
        model.add_module("fc", nn.Linear(8, 10))
        return model

    model = made()
    change(model)
    assert Fingerprint.of(made()).difference(Fingerprint.of(model))


SCALE = 2.0


def helper(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def _net(change: str) -> nn.Module:
    factor = 3.0 if change == "closure" else 2.0

    def scaled(self: Any, x: torch.Tensor, by: float = 3.0 if change == "default" else 2.0) -> torch.Tensor:
        return helper(x) * factor * by * SCALE

    def other(self: Any, x: torch.Tensor, by: float = 2.0) -> torch.Tensor:
        return helper(x) + factor * by * SCALE

    class Net(nn.Module):
        bound = 5.0 if change == "class attribute" else 6.0
        forward = other if change == "code" else scaled

    return Net()


@pytest.mark.parametrize("change", ["code", "default", "closure", "class attribute", "helper", "global"])
def test_code_and_what_it_reads_are_seen(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = code_digest(_net(""))
    assert code_digest(_net("")) == before
    here = sys.modules[__name__]
    if change == "helper":
        monkeypatch.setattr(here, "helper", lambda x: x * 3)
    elif change == "global":
        monkeypatch.setattr(here, "SCALE", 3.0)
    assert code_digest(_net(change)) != before


@pytest.mark.parametrize(
    "data", [None, {}, {"modules": {}}, {"modules": [], "tensors": {}}, {"modules": {"a": 1}, "tensors": {}}]
)
def test_what_is_no_fingerprint_is_refused(data: Any) -> None:
    with pytest.raises(ValueError, match="fingerprint"):
        Fingerprint.read(data)
