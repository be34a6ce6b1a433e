"""Channel moments of a gradient: what Eq. 10 and 11 of the paper reduce each map to."""

from collections.abc import Callable

import torch
from torch import Tensor

from gaia_fast.ops import maps, transforms
from gaia_fast.ops.library import define_op, implementation, is_traced


def channel_moments(g: Tensor, *, out: Tensor | None = None, backend: str | None = None) -> Tensor:
    """Sum, sum of absolute values and count of non-zeros of each channel of each image, in one read of `g`.

        sum[n, k]     = sum over i, j of g[n, k, i, j]            (H*W times the mean of Eq. 11)
        abs_sum[n, k] = sum over i, j of |g[n, k, i, j]|
        nonzero[n, k] = |{(i, j) : g[n, k, i, j] != 0}|           (H*W times the density of Eq. 10)

    Args:
        g: (N, K, H, W), float32, float16 or bfloat16 (float64 with backend "torch"), any strides.
        out: optional (3, N, K) tensor to write to, channels consecutive; may be a slice of a wider buffer.
        backend: a name of `gaia_fast.backends.BACKENDS`; None picks the fastest.

    Returns:
        (3, N, K) float32 (float64 for float64): sum, abs_sum, nonzero, in this order.

    Raises:
        BackendError: wrong shapes or dtypes, or a backend that cannot run here.

    Deterministic: the order of summation depends on shape and strides alone.

    Example:
        >>> g = torch.tensor([[[[1.0, -2.0], [0.0, 3.0]]]])
        >>> channel_moments(g).flatten().tolist()  # sum, sum of absolute values, non-zeros
        [2.0, 6.0, 3.0]
    """
    if is_traced(g):
        moments = torch.ops.gaia_fast.channel_moments(g, backend)
        return moments if out is None else out.copy_(moments)
    return _eager(g, backend, out)


def _eager(g: Tensor, backend: str | None = None, out: Tensor | None = None) -> Tensor:
    g = maps.check_map(g, "g")
    if out is None:
        out = maps.moments_buffer(g)
    else:
        maps.check_moments(out, g)
    run = implementation("channel_moments", maps.backend_name(backend, g))
    if g.numel() == 0:
        return out.zero_()
    run(g, out)
    return out


def _fake(g: Tensor, backend: str | None = None) -> Tensor:
    return maps.moments_buffer(g)


def _batched(
    op: Callable[..., Tensor], times: int, dims: transforms.Dims, g: Tensor, backend: str | None
) -> tuple[Tensor, int]:
    return transforms.parted(op(transforms.joined(g, dims[0], times, transforms.IMAGES), backend), times, 1), 1


define_op("channel_moments", _eager, _fake, _batched)
