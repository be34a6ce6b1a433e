"""Which model it is, told in another process."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from gaia_fast.inspection.fingerprint import Fingerprint, code_digest

import zoo


def test_the_same_model_made_again_has_the_same_fingerprint() -> None:
    one, other = (zoo.build("small_bit") for _ in range(2))
    assert not Fingerprint.of(one).difference(Fingerprint.of(other))
    assert Fingerprint.of(one).digest() == Fingerprint.of(copy.deepcopy(other)).digest()
    assert code_digest(one) == code_digest(other)


def test_layout_and_buffers_that_are_not_saved_do_not_matter() -> None:
    model = zoo.build("parallel")
    before = Fingerprint.of(model)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.register_buffer("seen", torch.zeros(3), persistent=False)
    assert not before.difference(Fingerprint.of(model))


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


def test_code_and_plain_attributes_are_seen() -> None:
    def model(factor: float, twice: bool) -> nn.Module:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.factor = factor

        def once_(self: Any, x: torch.Tensor) -> torch.Tensor:
            return x * self.factor

        def twice_(self: Any, x: torch.Tensor) -> torch.Tensor:
            return x * self.factor * self.factor

        Net.forward = twice_ if twice else once_
        return Net()

    digests = {code_digest(model(factor, twice)) for factor in (1.0, 2.0) for twice in (False, True)}
    assert len(digests) == 4
    assert code_digest(model(1.0, True)) in digests


@pytest.mark.parametrize(
    "data", [None, {}, {"modules": {}}, {"modules": [], "tensors": {}}, {"modules": {"a": 1}, "tensors": {}}]
)
def test_what_is_no_fingerprint_is_refused(data: Any) -> None:
    with pytest.raises(ValueError, match="fingerprint"):
        Fingerprint.read(data)
