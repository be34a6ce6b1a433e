"""Patterns of zeros against the gradients themselves, in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gaia_fast import reference
from gaia_fast.compiler.frontend.capture import capture
from gaia_fast.compiler.ir.windows import Geometry
from gaia_fast.compiler.program import build
from gaia_fast.compiler.sparsity import Sparsity, analyse
from gaia_fast.compiler.sparsity.transfer.registry import transfer_rule
from gaia_fast.inspection import layers
from gaia_fast.inspection.requests import Request
from gaia_fast.method import Method

import zoo
from graphs import fold


def counted(model: nn.Module, x: Tensor, thorough: bool = False) -> tuple[list[Sparsity | str], dict[str, Tensor]]:
    """What the analysis says of each map, and what the program that believes it gives."""
    inspected = layers.inspected_layers(model)
    found = capture(model, x, inspected, None)
    fold(found.graph)
    sparsity = analyse(found.graph.graph, thorough)
    proven = [each if isinstance(each, Sparsity) else None for each in sparsity]
    program = build(found, [Request(Method("gaia-z"), tuple(inspected))], None, proven)
    with torch.no_grad():
        return sparsity, dict(zip(program.outputs, program.graph(x), strict=True))


def trunk(*modules: nn.Module, channels: int = 8) -> nn.Module:
    torch.manual_seed(1)
    return zoo.Pooled(nn.Sequential(*modules), channels).double().eval()


def block(inputs: int = 8, outputs: int = 8, **options: Any) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, **options), nn.BatchNorm2d(outputs)]


class Excited(nn.Module):
    """Squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.inner(x)


# What the analysis is meant to see, and a network for each rule; what plans print of every map.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "relu": (lambda: trunk(*block(3), nn.ReLU()), ["active units"]),
    "relu6": (lambda: trunk(*block(3), nn.ReLU6()), ["active units"]),
    "leaky": (lambda: trunk(*block(3), nn.LeakyReLU(), *block(), nn.ReLU()), ["dense", "active units"]),
    "no activation": (lambda: trunk(*block(3), *block(), nn.ReLU()), ["dense", "active units"]),
    "max-pooling": (
        lambda: trunk(*block(3), nn.ReLU(), nn.MaxPool2d(3, 2, 1), *block(), nn.ReLU()),
        ["active units & max-pooling argmax", "active units"],
    ),
    "pooled before": (
        lambda: trunk(*block(3), nn.MaxPool2d(2), nn.ReLU(), *block(), nn.ReLU()),
        ["max-pooling argmax", "active units"],
    ),
    "strided": (lambda: trunk(*block(3), nn.ReLU(), *block(stride=2), nn.ReLU()), ["active units", "active units"]),
    "grouped": (
        lambda: trunk(*block(3), nn.ReLU(), *block(groups=4), nn.ReLU()),
        ["active units & receptive field", "active units"],
    ),
    "depthwise, strided": (
        lambda: trunk(*block(3), nn.ReLU(), *block(groups=8, stride=2), nn.ReLU()),
        ["active units & receptive field", "active units"],
    ),
    "average pooling": (
        lambda: trunk(*block(3), nn.ReLU(), nn.AvgPool2d(2), *block(), nn.ReLU()),
        ["active units", "active units"],
    ),
    "group norm": (
        lambda: trunk(
            nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.GroupNorm(2, 8), nn.ReLU()
        ),
        ["active units", "active units"],
    ),
    "excitation": (lambda: trunk(*block(3), Excited(), nn.ReLU(), *block(), nn.ReLU()), ["dense", "active units"]),
    "smooth": (
        lambda: trunk(*block(3), nn.SiLU(), *block(), nn.ReLU()),
        ["the derivative of silu has a zero, and rounds to zero for large negative inputs", "active units"],
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("thorough", [False, True])
def test_counts_are_those_of_the_gradient(name: str, thorough: bool) -> None:
    make, expected = NETWORKS[name]
    model, x = make(), zoo.images(6, 12, torch.float64)
    sparsity, outputs = counted(model, x, thorough)
    assert [str(each).partition(".")[0] if isinstance(each, str) else str(each) for each in sparsity] == expected
    holds = (outputs["preconditions"] > 0).all(1) if "preconditions" in outputs else torch.ones(6, dtype=torch.bool)
    assert holds.sum() >= 3
    truth = reference.gaia_z(model, x).score
    assert torch.allclose(outputs["score"].double()[holds], truth[holds], rtol=1e-6)


def test_images_with_an_inactive_window_are_told() -> None:
    """One position of one map is inactive in every channel, and the convolution before it reads no other there."""
    model: Any = trunk(*block(3, 4), nn.ReLU(), nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8), nn.ReLU())
    norm = model.trunk[4]
    nn.init.zeros_(model.trunk[3].bias)
    norm.bias.data.fill_(-0.05)
    x = zoo.images(4, 12, torch.float64)
    _, outputs = counted(model, x)
    holds = (outputs["preconditions"] > 0).all(1)
    truth = reference.gaia_z(model, x).score
    same = (outputs["score"].double() / truth - 1).abs() < 1e-9
    assert not bool(same.all())  # the case is a case
    assert bool(same[holds].all())
    assert not bool(holds.all())


def test_weights_that_are_exactly_zero_are_not_relied_upon() -> None:
    model: Any = trunk(*block(3), nn.ReLU(), *block(), nn.ReLU())
    model.trunk[3].weight.data[:, 2] = 0  # nothing reads channel 2: its gradient is zero
    x = zoo.images(3, 12, torch.float64)
    sparsity, outputs = counted(model, x)
    assert sparsity[0] == "conv2d.default has weights that are exactly zero"
    assert torch.allclose(outputs["score"].double(), reference.gaia_z(model, x).score, rtol=1e-6)


def test_single_zero_weights_are_borne() -> None:
    """Random weights have some: channels with such weights show nothing, and the others suffice."""
    model: Any = trunk(*block(3), nn.ReLU(), *block(), nn.ReLU())
    model.trunk[3].weight.data[5, 2, 1, 1] = 0
    x = zoo.images(3, 12, torch.float64)
    sparsity, outputs = counted(model, x)
    assert isinstance(sparsity[0], Sparsity)
    holds = (outputs["preconditions"] > 0).all(1)
    assert holds.any()
    assert torch.allclose(outputs["score"].double()[holds], reference.gaia_z(model, x).score[holds], rtol=1e-6)


def test_a_class_whose_weights_in_the_head_are_zero_is_told() -> None:
    model: Any = trunk(*block(3), nn.ReLU())
    model.fc.weight.data[1, 3] = 0
    model.fc.bias.data[1] = 100
    x = zoo.images(3, 12, torch.float64)
    _, outputs = counted(model, x)
    assert not (outputs["preconditions"] > 0).any()


@pytest.mark.parametrize(
    ("activation", "why"),
    [
        (nn.Hardswish(), "the derivative of hardswish can be zero on an interval"),
        (nn.GELU(), "the derivative of gelu has a zero, and rounds to zero for large negative inputs"),
        (nn.Tanh(), "the derivative of tanh rounds to zero where it saturates"),
        (nn.Softmax(1), "there is no transfer rule for softmax.int"),
    ],
    ids=["hardswish", "gelu", "tanh", "softmax"],
)
def test_why_nothing_is_proven_is_said(activation: nn.Module, why: str) -> None:
    sparsity, _ = counted(trunk(*block(3), activation, *block(), nn.ReLU()), zoo.images(3, 12, torch.float64))
    assert sparsity[0] == why


def test_an_operator_has_one_transfer_rule() -> None:
    with pytest.raises(AssertionError, match=r"aten\.relu\.default has two transfer rules"):
        transfer_rule(torch.ops.aten.relu.default)(lambda op, operand, upstream, thorough: upstream)


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("size", range(1, 20))
def test_a_grid_has_a_position_in_every_window(kernel: int, size: int) -> None:
    p = kernel // 2
    geometry = Geometry((kernel,) * 2, (1, 1), (p, p), (1, 1), 1, 4, (size, size), (size, size))
    begin, step = geometry.grid()
    grid = set(range(begin, size, step))
    assert all(grid & set(range(position - p, position + p + 1)) for position in range(size))
    assert step in (1, kernel)


@pytest.mark.parametrize(
    "options", [(3, 1, 1, 1), (3, 2, 1, 1), (1, 2, 0, 1), (3, 1, 2, 2), (2, 2, 0, 1), (5, 3, 1, 1)]
)
def test_reach_and_cover_are_those_of_a_convolution(options: tuple[int, int, int, int]) -> None:
    kernel, stride, padding, dilation = options
    x = torch.zeros(1, 1, 9, 8, requires_grad=True)
    windows = nn.functional.conv2d(x, torch.ones(1, 1, kernel, kernel), None, stride, padding, dilation)
    chosen = (torch.rand(windows.shape, generator=torch.Generator().manual_seed(2)) > 0.7).float()
    (expected,) = torch.autograd.grad(windows, x, chosen, retain_graph=True)
    geometry = Geometry(
        (kernel,) * 2,
        (stride,) * 2,
        (padding,) * 2,
        (dilation,) * 2,
        1,
        1,
        (9, 8),
        (windows.shape[2], windows.shape[3]),
    )
    assert torch.equal(geometry.reach(chosen) > 0, expected > 0)
    (everywhere,) = torch.autograd.grad(windows, x, torch.ones_like(windows))
    assert geometry.covers() == bool((everywhere > 0).all())
