import pytest
import torch
from torch import Tensor

from gaia_fast.ops import linear_head
from gaia_fast.ops.linear_head import output_component

from cases import TARGETS, Target
from tolerance import assert_close

LEVELS = [target for target in TARGETS if target.backend == "cpu"]
if not LEVELS:
    pytest.skip("the linear head has C++ kernels alone", allow_module_level=True)

each_level = pytest.mark.parametrize("target", LEVELS, indirect=True, ids=str)
# Images, classes, channels; the last has too many channels for the kernel's vectors.
SIZES = [(1, 10, 512), (3, 7, 16), (2, 1, 48), (5, 33, 32), (2, 5, 19)]


def head(images: int, classes: int, channels: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(classes)
    weight = torch.randn(classes, channels, generator=generator)
    return torch.randn(images, classes, generator=generator) * scale, weight


def component_of(logits: Tensor, weight: Tensor, factor: float) -> Tensor:
    """By its definition: through autograd and the map that the head averages."""
    last = torch.zeros(len(logits), weight.shape[1], 1, 1, dtype=logits.dtype, requires_grad=True)
    moved = last.mean((2, 3)) @ weight.t() * factor
    summed = torch.log_softmax(logits + moved, 1).sum()
    (g,) = torch.autograd.grad(summed, last)
    return g.mean((2, 3)).abs().mean(1).sqrt()


@each_level
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("scale", [0.1, 3.0, 200.0])
def test_output_component(target: Target, size: tuple[int, ...], scale: float) -> None:
    logits, weight = head(size[0], size[1], size[2], scale)
    truth = component_of(logits.double(), weight.double(), 0.25)
    found = output_component(logits, weight, 0.25)
    if size[1] == 1:  # one class has no gradient
        assert not found.any()
        return
    assert_close(
        found, truth, component_of(logits, weight, 0.25), "component", count=size[1], typical=truth.max().item()
    )


@each_level
def test_many_are_left_to_matrix_products(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, weight = head(4, 6, 32)
    few = output_component(logits, weight, 0.5)
    monkeypatch.setattr(linear_head, "LINEAR_HEAD_MOST", 4 * 6 * 32 - 1)
    torch.testing.assert_close(few, output_component(logits, weight, 0.5), rtol=1e-5, atol=1e-6)


@each_level
def test_what_is_not_finite_stays_so(target: Target) -> None:
    logits, weight = head(2, 6, 32)
    logits[1, 5] = torch.nan
    component = output_component(logits, weight, 0.25)
    assert component[0] > 0
    assert component[1].isnan()
