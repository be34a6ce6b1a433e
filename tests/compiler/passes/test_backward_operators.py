"""Each backward operator, written as forward operators, against autograd."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from gaia_fast.compiler.passes.backward_operators import DECOMPOSITIONS
from gaia_fast.compiler.pipeline import DECOMPOSE_BACKWARD

W = torch.randn(8, 6, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
GROUPED = torch.randn(12, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
POINTWISE = torch.randn(8, 6, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
WIDE = torch.randn(8, 6, 1, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(6))

OPERATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "convolution": lambda x: F.conv2d(x, W, padding=1),
    "convolution, no padding": lambda x: F.conv2d(x, W),
    "convolution, padding beyond the kernel": lambda x: F.conv2d(x, POINTWISE, padding=1),
    "convolution, strided": lambda x: F.conv2d(x, W, stride=2, padding=1),
    "convolution, strided, rows left over": lambda x: F.conv2d(x, W, stride=3),
    "convolution, dilated": lambda x: F.conv2d(x, W, padding=2, dilation=2),
    "convolution, strided and dilated": lambda x: F.conv2d(x, W, stride=2, padding=2, dilation=2),
    "convolution, grouped": lambda x: F.conv2d(x, GROUPED, padding=1, groups=3),
    "convolution, grouped and strided": lambda x: F.conv2d(x, GROUPED, stride=2, padding=1, groups=3),
    "convolution, pointwise": lambda x: F.conv2d(x, POINTWISE),
    "convolution, pointwise and strided": lambda x: F.conv2d(x, POINTWISE, stride=2),
    "convolution, not square": lambda x: F.conv2d(x, WIDE, padding=(0, 2)),
    "relu": F.relu,
    "relu6": lambda x: F.relu6(4 * x),
    "hardtanh": F.hardtanh,
    "max-pooling": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max-pooling, windows that overlap": lambda x: F.max_pool2d(x, 3, 1),
    "average pooling": lambda x: F.avg_pool2d(x, 2),
    "average pooling, padded": lambda x: F.avg_pool2d(x, 3, 1, 1),
    "average pooling, rows left over": lambda x: F.avg_pool2d(x, 3, 3),
    "average pooling, rounded up": lambda x: F.avg_pool2d(x, 2, 2, 0, True, False),
    "average pooling, borders not counted": lambda x: F.avg_pool2d(x, 3, 1, 1, False, False),
    "adaptive pooling to fewer": lambda x: F.adaptive_avg_pool2d(x, (3, 5)),
    "adaptive pooling to more": lambda x: F.adaptive_avg_pool2d(x, 11),
    "group norm": lambda x: F.group_norm(x, 3),
    "silu": F.silu,
    "gelu": F.gelu,
    "hardswish": F.hardswish,
}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("size", [(8, 8), (9, 7)])
def test_adjoint_equals_autograd(name: str, size: tuple[int, int]) -> None:
    operator = OPERATORS[name]
    x = torch.randn(2, 6, *size, dtype=torch.float64)

    def backward(x: Tensor, g: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(operator(x), x, g)
        return grad

    g = torch.randn_like(operator(x))
    graph = make_fx(backward, decomposition_table=DECOMPOSITIONS, tracing_mode="fake", _allow_non_fake_inputs=True)(
        x, g
    )
    DECOMPOSE_BACKWARD(graph)
    left = [str(node.target) for node in graph.graph.nodes if "backward" in str(node.target)]
    if size == (8, 8):
        assert bool(left) == (name == "average pooling, borders not counted")
    torch.testing.assert_close(graph(x, g), backward(x, g), rtol=1e-12, atol=1e-12)


def test_a_closed_unit_stops_an_infinite_gradient() -> None:
    def backward(y: Tensor, g: Tensor) -> Tensor:
        return torch.ops.aten.threshold_backward(g, y, 0)

    y, g = torch.tensor([[-1.0, 0.0, 2.0, float("nan")]]), torch.full((1, 4), float("inf"))
    graph = DECOMPOSE_BACKWARD(make_fx(backward)(y, g))
    assert "backward" not in graph.code
    assert torch.equal(graph(y, g), torch.ops.aten.threshold_backward(g, y, 0))
