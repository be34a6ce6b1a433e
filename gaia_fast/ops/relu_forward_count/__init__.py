"""Norm, residual add and ReLU in the forward direction, fused with the count of active units."""

from collections.abc import Callable

import torch
from torch import Tensor

from gaia_fast.ops import maps, transforms
from gaia_fast.ops.library import define_op, implementation, is_traced


def relu_forward_count(
    x: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """A ReLU's output and the number of its non-zeros in each channel of each image, in one pass.

        y[n, k, i, j] = max(x[n, k, i, j] * scale[k] + shift[k] + residual[n, k, i, j], 0)
        nonzero[n, k] = |{(i, j) : y[n, k, i, j] != 0}|

    Where the structure of a network proves that the gradient behind this ReLU vanishes just where the ReLU is inactive,
    nonzero / (H*W) is the density of Eq. 10, with no backward pass.

    Args:
        x: (N, K, H, W), float32, float16 or bfloat16 (float64 with backend "torch"), any strides.
        scale, shift: (K,) float32 (float64 for float64), the norm folded to two numbers a channel; None for 1 and 0.
        residual: like `x`; None for 0.
        backend: a name of `gaia_fast.backends.BACKENDS`; None picks the fastest.

    Returns:
        y, shaped, typed and laid out like `x`; and nonzero, (N, K) float32 (float64 for float64), the count of what was
        written: a value that rounds to zero counts as zero. Every operation rounds in the counts' dtype, y once at the
        end. A NaN stays NaN, and counts.

    Raises:
        BackendError: wrong shapes or dtypes, or a backend that cannot run here.

    Deterministic, as `channel_moments` is.

    Example:
        >>> x = torch.tensor([[[[1.0, -2.0], [0.0, 3.0]]]])
        >>> y, nonzero = relu_forward_count(x, shift=torch.tensor([1.0]))
        >>> y.flatten().tolist(), nonzero.tolist()
        ([2.0, 0.0, 1.0, 4.0], [[3.0]])
    """
    if is_traced(x):
        return torch.ops.gaia_fast.relu_forward_count(x, scale, shift, residual, backend)
    return _eager(x, scale, shift, residual, backend)


def _eager(
    x: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    x = maps.check_map(x, "x")
    if residual is not None:
        residual = maps.check_map(residual, "residual")
        maps.check_same(residual, "residual", x.shape, x.dtype, x.device)
    scale = maps.channel_parameter(scale, "scale", x)
    shift = maps.channel_parameter(shift, "shift", x)
    nonzero = _counts_buffer(x)
    run = implementation("relu_forward_count", maps.backend_name(backend, x))
    y = torch.empty_like(x, requires_grad=False)
    if x.numel() == 0:
        return y, nonzero.zero_()
    run(x, scale, shift, residual, y, nonzero)
    return y, nonzero


def _counts_buffer(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[:2], dtype=maps.accumulator_dtype(x.dtype))


def _fake(
    x: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), _counts_buffer(x)


def _batched(
    op: Callable[..., tuple[Tensor, Tensor]],
    times: int,
    dims: transforms.Dims,
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    backend: str | None,
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    into = transforms.of_maps(dims[1], dims[2])
    x, residual = transforms.joined(x, dims[0], times, into), transforms.joined(residual, dims[3], times, into)
    if into == transforms.CHANNELS:
        scale, shift = transforms.joined(scale, dims[1], times, 0), transforms.joined(shift, dims[2], times, 0)
    y, nonzero = op(x, scale, shift, residual, backend)
    return (transforms.parted(y, times, into), transforms.parted(nonzero, times, into)), (into, into)


define_op("relu_forward_count", _eager, _fake, _batched)
