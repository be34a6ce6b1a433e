"""The C++ kernels against the same reductions in PyTorch, at sizes that networks have."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gaia_fast import ops

SHAPES = [(32, 64, 32, 32), (32, 256, 8, 8), (32, 512, 4, 4), (8, 64, 112, 112)]
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
GOAL: dict[tuple[tuple[int, ...], str, torch.dtype], float] = {((32, 256, 8, 8), "nchw", torch.float32): 1 / 8}


def gradient(shape: tuple[int, ...], layout: str, dtype: torch.dtype, seed: int) -> Tensor:
    g = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(g.abs() < 0.5, 0, g).to(dtype).contiguous(memory_format=LAYOUTS[layout])


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_channel_moments(shape: tuple[int, ...], layout: str, dtype: torch.dtype, against: Callable[..., None]) -> None:
    """Bytes: one read of g. Baseline: sum, abs().sum and (g != 0).sum."""
    g = gradient(shape, layout, dtype, 0)
    out = torch.empty(3, *shape[:2])
    against(
        lambda: (g.sum((2, 3)), g.abs().sum((2, 3)), (g != 0).sum((2, 3))),
        lambda: ops.channel_moments(g, out=out, backend="cpu"),
        rounds=50,
        goal=GOAL.get((shape, layout, dtype)),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_relu_backward_moments(
    shape: tuple[int, ...], layout: str, dtype: torch.dtype, against: Callable[..., None]
) -> None:
    """Bytes: one read each of g and y, one write of grad_in. Baseline: threshold_backward, reductions, a product."""
    g, y = gradient(shape, layout, dtype, 0), gradient(shape, layout, dtype, 1)
    scale = torch.rand(shape[1])
    typed = scale.to(dtype).view(1, -1, 1, 1)
    out = torch.empty(3, *shape[:2])

    def eager() -> Tensor:
        masked = torch.ops.aten.threshold_backward(g, y, 0)
        masked.sum((2, 3)), masked.abs().sum((2, 3)), (masked != 0).sum((2, 3))
        return masked * typed

    against(eager, lambda: ops.relu_backward_moments(g, y, scale, out=out, backend="cpu"), rounds=50)


@pytest.mark.parametrize("batch", [1, 32, 128])
def test_frobenius(batch: int, against: Callable[..., None]) -> None:
    """ResNet34's 36 layers. Baseline: the zero-padded matrix and its norm, as the paper writes it."""
    widths = [64] * 7 + [128] * 9 + [256] * 13 + [512] * 7
    inverse_area = [1 / 1024] * 7 + [1 / 256] * 9 + [1 / 64] * 13 + [1 / 16] * 7
    packed = torch.rand(batch, sum(widths))
    layers = [each / area for each, area in zip(packed.split(widths, 1), inverse_area, strict=True)]

    def padded() -> Tensor:
        rows = [torch.nn.functional.pad(each, (0, 512 - each.shape[1])) for each in layers]
        return torch.linalg.matrix_norm(torch.stack(rows, 1))

    against(padded, lambda: ops.frobenius(packed, widths, inverse_area, backend="cpu"), rounds=50)
