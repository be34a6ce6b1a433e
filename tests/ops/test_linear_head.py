import pytest
import torch
from torch import Tensor

from gaia_fast.ops import linear_head
from gaia_fast.ops.linear_head import output_component, pooled_logits

from cases import TARGETS, Target
from tolerance import assert_close

LEVELS = [target for target in TARGETS if target.backend == "cpu"]
if not LEVELS:
    pytest.skip("the linear head has C++ kernels alone", allow_module_level=True)

each_level = pytest.mark.parametrize("target", LEVELS, indirect=True, ids=str)
# Images, classes, channels, height, width; the last has too many channels for the kernel's vectors.
SIZES = [(1, 10, 512, 4, 4), (3, 7, 16, 1, 1), (2, 1, 48, 3, 5), (5, 33, 32, 2, 7), (2, 5, 19, 3, 3)]


def head(images: int, classes: int, channels: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(classes)
    x = torch.randn(images, channels, height, width, generator=generator)
    weight = torch.randn(classes, channels, generator=generator)
    return x, weight, torch.randn(classes, generator=generator)


def logits_of(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.nn.functional.linear(x.mean((2, 3)), weight, bias)


def component_of(logits: Tensor, weight: Tensor, factor: float) -> Tensor:
    """By its definition: through autograd and the map that the head averages."""
    last = torch.zeros(len(logits), weight.shape[1], 1, 1, dtype=logits.dtype, requires_grad=True)
    moved = last.mean((2, 3)) @ weight.t() * factor
    summed = torch.log_softmax(logits + moved, 1).sum()
    (g,) = torch.autograd.grad(summed, last)
    return g.mean((2, 3)).abs().mean(1).sqrt()


@each_level
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_logits(target: Target, size: tuple[int, ...], layout: torch.memory_format) -> None:
    x, weight, bias = head(*size)
    x = x.contiguous(memory_format=layout)
    for shift in (bias, torch.zeros_like(bias)):
        truth = logits_of(x.double(), weight.double(), shift.double())
        found = pooled_logits(x, weight, shift if shift.any() else None)
        typical = x.mean((2, 3)).abs().mean().item()
        assert_close(found, truth, logits_of(x, weight, shift), "logits", count=x.shape[1], typical=typical)


@each_level
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("scale", [0.1, 3.0, 200.0])
def test_output_component(target: Target, size: tuple[int, ...], scale: float) -> None:
    _, weight, _ = head(*size)
    logits = torch.randn(size[0], size[1], generator=torch.Generator().manual_seed(1)) * scale
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
    x, weight, bias = head(4, 6, 32, 2, 2)
    few = pooled_logits(x, weight, bias), output_component(bias.expand(4, -1), weight, 0.5)
    monkeypatch.setattr(linear_head, "LINEAR_HEAD_MOST", 4 * 6 * 32 - 1)
    many = pooled_logits(x, weight, bias), output_component(bias.expand(4, -1), weight, 0.5)
    for a, b in zip(few, many, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@each_level
def test_what_is_not_finite_stays_so(target: Target) -> None:
    x, weight, bias = head(2, 6, 32, 2, 2)
    x[1, 5, 1, 0] = torch.nan
    logits = pooled_logits(x, weight, bias)
    assert logits[0].isfinite().all()
    assert logits[1].isnan().all()
    component = output_component(logits, weight, 0.25)
    assert component[0] > 0
    assert component[1].isnan()
