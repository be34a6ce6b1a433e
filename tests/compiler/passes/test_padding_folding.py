"""Zeros around a convolution's input, folded into it or read as such."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gaia_fast import GaiaA, GaiaZ
from gaia_fast.compiler.passes.padding_folding import fold_padding
from gaia_fast.options import RuntimeOption

import zoo
from graphs import captured, targets

aten = torch.ops.aten


class Padded(nn.Module):
    """A convolution of what something pads, and a norm behind it."""

    def __init__(self, around: Callable[[Tensor], Tensor], stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.around = around
        self.stem = nn.Sequential(*zoo.conv_norm(3, 16), nn.ReLU())
        self.conv = nn.Conv2d(16, 16, 3, stride, padding=1 if groups == 1 else 0, groups=groups, bias=False)
        self.norm, self.act, self.fc = nn.BatchNorm2d(16), nn.ReLU6(), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm(self.conv(self.around(self.stem(x)))))
        return self.fc(y.mean((2, 3)))


def pad(*widths: int, **how: object) -> Callable[[Tensor], Tensor]:
    return lambda x: nn.functional.pad(x, widths, **how)  # type: ignore[arg-type]


EVEN = {"both axes": pad(1, 1, 2, 2), "one axis": pad(1, 1), "nothing": pad(0, 0, 0, 0)}
OTHERS = {
    "uneven": pad(0, 1, 0, 1),
    "reflected": pad(1, 1, 1, 1, mode="reflect"),
    "ones": pad(1, 1, 1, 1, value=1.0),
    "cut off": pad(-1, -1, -1, -1),
    "channels": pad(0, 0, 0, 0, 0, 0),
}


def pads(model: nn.Module) -> int:
    found = captured(model, zoo.images(2), with_head=False)
    fold_padding(found.graph)
    return sum(each in (aten.pad.default, aten.constant_pad_nd.default) for each in targets(found.graph))


@pytest.mark.parametrize("name", EVEN)
def test_even_zeros_are_the_convolutions_own_padding(name: str) -> None:
    assert pads(Padded(EVEN[name]).eval()) == 0


@pytest.mark.parametrize("name", ["uneven", "ones", "cut off"])
def test_anything_else_is_left(name: str) -> None:
    assert pads(Padded(OTHERS[name]).eval()) == 1


@pytest.mark.parametrize("name", [*EVEN, *OTHERS])
@pytest.mark.parametrize("runtime", ["eager", "native"])
@pytest.mark.parametrize("detector", [GaiaA, GaiaZ])
def test_scores_are_the_references(detector: type[GaiaA] | type[GaiaZ], runtime: RuntimeOption, name: str) -> None:
    model, x = Padded({**EVEN, **OTHERS}[name]).eval(), zoo.images(3)
    found = detector(model, engine="compiled", runtime=runtime).score(x)
    torch.testing.assert_close(found.logits, model(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.score, detector(model, engine="reference")(x), rtol=2e-5, atol=0)


@pytest.mark.parametrize("size", [16, 17])
@pytest.mark.parametrize("groups", [1, 2, 16])
def test_padding_as_tensorflow_does_it_is_counted_forward(groups: int, size: int) -> None:
    """In strides of 2, over even sizes, more at the right and the bottom."""
    model, x = Padded(pad(0, 1, 0, 1), 2, groups).eval(), zoo.images(3, size)
    det = GaiaZ(model, engine="compiled", runtime="native").prepare(x)
    program = det.program(x)
    assert program is not None
    assert not any("adjoint" in each for each in program.derivations)
    matrix, truth = (each.score(x, return_matrix=True).matrix for each in (det, GaiaZ(model, engine="reference")))
    assert matrix is not None
    assert truth is not None
    assert torch.equal(matrix, truth)
