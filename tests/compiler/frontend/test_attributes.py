import dataclasses
from collections import OrderedDict, defaultdict, deque, namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gaia_fast import GaiaZ
from gaia_fast.compiler.frontend.attributes import put_back

import zoo

Options = namedtuple("Options", ["kernel", "strides"])


@dataclasses.dataclass
class Registered:
    sizes: list[int]


torch.export.register_dataclass(Registered)

HELD: dict[str, Any] = {
    "a list": [1, 2],
    "a named tuple": Options(3, [1, 2]),
    "a default dictionary": defaultdict(list, a=[1]),
    "an ordered dictionary": OrderedDict(a=1),
    "a queue": deque([1]),
    "what PyTorch was told of": Registered([1]),
    "a tuple of PyTorch's": torch.max(torch.ones(2, 2), 0),
}


@pytest.mark.parametrize("what", HELD)
def test_the_exporter_leaves_modules_what_they_held(what: str) -> None:
    """A program of such a model was taken for one of another model, and made anew at every call."""
    model, x = zoo.build("strided_shortcut"), zoo.images(2)
    first, second = list(model.modules())[1:3]
    first.held = second.held = HELD[what]
    detector = GaiaZ(model, engine="compiled", runtime="eager").prepare(x)
    assert first.held is second.held is HELD[what]
    assert detector.program(x) is not None


def test_what_others_write_meanwhile_stays() -> None:
    model: Any = nn.Sequential(nn.Linear(2, 2))
    model.sizes, model.name, model.gone, model.kept = [1, 2], "a", [3], [4]
    kept = model.kept
    with put_back(model):
        model.sizes = [1, 3]
        model.name = "b"
        del model.gone
        model.new = [5]
        model.kept = list(kept)
    assert (model.sizes, model.name, model.new) == ([1, 3], "b", [5])
    assert not hasattr(model, "gone")
    assert model.kept is kept


def test_it_puts_back_after_an_error() -> None:
    model: Any = nn.Module()
    model.sizes = sizes = [1]

    def fail() -> None:
        with put_back(model):
            model.sizes = [1]
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert model.sizes is sizes


def test_a_tensor_that_was_replaced_stays_replaced() -> None:
    model: Any = nn.Module()
    model.table = [torch.ones(2)]
    other: Tensor = torch.ones(2)
    with put_back(model):
        model.table = [other]
    assert model.table[0] is other


def test_a_container_that_contains_itself() -> None:
    model: Any = nn.Module()
    model.loop, model.sizes = [1], [2]
    sizes = model.sizes
    model.loop.append(model.loop)
    with put_back(model):
        other: list[Any] = [1]
        other.append(other)
        model.loop, model.sizes = other, [2]
    assert model.loop is other
    assert model.sizes is sizes
