"""The backward pass of norm + ReLU fused with the moments of the gradient between the two."""

from collections.abc import Callable

import torch
from torch import Tensor

from gaia_fast.ops import maps, transforms
from gaia_fast.ops.library import define_op, implementation, is_traced


def relu_backward_moments(
    g: Tensor,
    y: Tensor | None,
    scale: Tensor | None = None,
    *,
    out: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The gradient behind a ReLU, its channel moments, and the gradient before the norm, in one pass.

        masked  = where(y <= 0, 0, g)          the gradient at the norm's output, never written
        moments = channel_moments(masked)
        grad_in = masked * scale[k]            the gradient at the norm's input

    Args:
        g: (N, K, H, W) gradient at the ReLU's output; float32, float16 or bfloat16 (float64 with backend "torch"),
            any strides.
        y: the ReLU's output (or its input: the mask is the same), like `g`; None for no mask.
        scale: (K,) float32 (float64 for float64): the derivative of the norm, gamma / sqrt(var + eps); None for 1.
        out: as in `channel_moments`.
        backend: a name of `gaia_fast.backends.BACKENDS`; None picks the fastest.

    Returns:
        grad_in, shaped and typed like `g`, laid out like `y`; and the (3, N, K) moments. The product with `scale` is
        taken in the moments' dtype and rounded once.

    Raises:
        BackendError: wrong shapes or dtypes, or a backend that cannot run here.

    Deterministic, as `channel_moments` is.

    Example:
        >>> g = torch.tensor([[[[1.0, -2.0], [4.0, 3.0]]]])
        >>> y = torch.tensor([[[[0.5, 0.0], [1.0, 2.0]]]])  # the ReLU's output
        >>> grad_in, moments = relu_backward_moments(g, y, scale=torch.tensor([10.0]))
        >>> grad_in.flatten().tolist(), moments.flatten().tolist()
        ([10.0, 0.0, 40.0, 30.0], [8.0, 8.0, 3.0])
    """
    if is_traced(g):
        grad_in, moments = torch.ops.gaia_fast.relu_backward_moments(g, y, scale, backend)
        return grad_in, moments if out is None else out.copy_(moments)
    return _eager(g, y, scale, backend, out)


def _eager(
    g: Tensor,
    y: Tensor | None = None,
    scale: Tensor | None = None,
    backend: str | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    g = maps.check_map(g, "g")
    if y is not None:
        y = maps.check_map(y, "y")
        maps.check_same(y, "y", g.shape, g.dtype, g.device)
    scale = maps.channel_parameter(scale, "scale", g)
    if out is None:
        out = maps.moments_buffer(g)
    else:
        maps.check_moments(out, g)
    run = implementation("relu_backward_moments", maps.backend_name(backend, g))
    grad_in = torch.empty_like(g if y is None else y, requires_grad=False)
    if g.numel() == 0:
        return grad_in, out.zero_()
    run(g, y, scale, grad_in, out)
    return grad_in, out


def _fake(
    g: Tensor, y: Tensor | None = None, scale: Tensor | None = None, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(g if y is None else y), maps.moments_buffer(g)


def _batched(
    op: Callable[..., tuple[Tensor, Tensor]],
    times: int,
    dims: transforms.Dims,
    g: Tensor,
    y: Tensor | None,
    scale: Tensor | None,
    backend: str | None,
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    into = transforms.of_maps(dims[2])
    g, y = transforms.joined(g, dims[0], times, into), transforms.joined(y, dims[1], times, into)
    if into == transforms.CHANNELS:
        scale = transforms.joined(scale, dims[2], times, 0)
    grad_in, moments = op(g, y, scale, backend)
    return (transforms.parted(grad_in, times, into), transforms.parted(moments, times, 1 + into)), (into, 1 + into)


define_op("relu_backward_moments", _eager, _fake, _batched)
