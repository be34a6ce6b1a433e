"""The score of Eq. 12 from packed moments."""

from collections.abc import Callable, Sequence
from itertools import accumulate
from math import inf

import torch
from torch import Tensor

from gaia_fast.errors import BackendError
from gaia_fast.ops import maps, transforms
from gaia_fast.ops.library import define_op, implementation, is_traced


def frobenius(
    moments: Tensor,
    widths: Sequence[int],
    inverse_area: Sequence[float],
    output_component: Tensor | None = None,
    p: float = 2.0,
    *,
    backend: str | None = None,
) -> Tensor:
    """The p-norm of each image's abnormality matrix Lambda (Eq. 12; p = 2 is the Frobenius norm of the paper).

        eps[n, l, k] = |moments[n, offset_l + k]| * inverse_area[l] / output_component[n]
        score[n]     = (sum over l, k of eps[n, l, k]^p)^(1/p)

    Lambda is ragged here: layer l holds the next widths[l] columns, and the paper's zero padding is never stored. Both
    statistics of Eq. 11 have the same norm: `abs_mean` takes the sums, `mean_abs` the sums of absolute values.

    Args:
        moments: (N, sum of widths) float32 (float64 with backend "torch"), one row of `channel_moments` for each
            layer beside the other, columns consecutive; or the padded (N, L, K_max), whose padding is not read.
        widths: K_l, the channels of each layer.
        inverse_area: 1 / (H_l * W_l) of each layer.
        output_component: (N,), the denominator of Eq. 11; None for 1.
        p: the order of the norm, at least 1; infinity gives the largest entry.
        backend: a name of `gaia_fast.backends.BACKENDS`; None picks the fastest.

    Returns:
        (N,) float32 scores (float64 for float64). Accumulates in float64. No layers have the norm 0.

    Raises:
        BackendError: shapes that do not fit together, or a backend that cannot run here.

    Deterministic: the order of summation depends on the widths alone.

    Example:
        >>> moments = torch.tensor([[3.0, 0.0, 16.0]])  # two channels of 1 position, one of 4
        >>> frobenius(moments, widths=[2, 1], inverse_area=[1.0, 0.25]).tolist()
        [5.0]
    """
    if is_traced(moments):
        return torch.ops.gaia_fast.frobenius(moments, widths, inverse_area, output_component, p, backend)
    return _eager(moments, widths, inverse_area, output_component, p, backend)


def _eager(
    moments: Tensor,
    widths: Sequence[int],
    inverse_area: Sequence[float],
    output_component: Tensor | None = None,
    p: float = 2.0,
    backend: str | None = None,
) -> Tensor:
    if any(width < 0 for width in widths):
        raise BackendError(f"widths must not be negative, got {list(widths)}")
    if not all(0 < area < inf for area in inverse_area):
        raise BackendError(f"inverse_area must be positive and finite, got {list(inverse_area)}")
    if not p >= 1:
        raise BackendError(f"p must be at least 1 for a norm, got {p}")
    rows, begins = _rows(moments, widths, inverse_area)
    if rows.dtype not in (torch.float32, torch.float64) or (rows.shape[1] > 1 and rows.stride(1) != 1):
        raise BackendError(f"moments must be float32 with consecutive columns, got {rows.dtype}, {moments.stride()}")
    if output_component is not None:
        maps.check_same(output_component, "output_component", rows.shape[:1], rows.dtype, rows.device)
        output_component = output_component.resolve_neg().contiguous()
    run = implementation("frobenius", maps.backend_name(backend, rows))
    score = rows.new_empty(rows.shape[0], requires_grad=False)
    if rows.numel() == 0:
        return score.zero_()
    run(rows, begins, widths, inverse_area, output_component, p, score)
    return score


def _rows(moments: Tensor, widths: Sequence[int], inverse_area: Sequence[float]) -> tuple[Tensor, list[int]]:
    """Returns the images as rows, and the column at which each layer begins."""
    layers = len(widths)
    if layers == len(inverse_area):
        if moments.ndim == 2 and moments.shape[1] == sum(widths):
            return moments.resolve_neg(), list(accumulate(widths[:-1], initial=0))
        if moments.ndim == 3 and moments.shape[1] == layers and moments.shape[2] >= max(widths, default=0):
            return moments.resolve_neg().flatten(1), [index * moments.shape[2] for index in range(layers)]
    raise BackendError(
        f"moments of shape {tuple(moments.shape)} do not hold {layers} layers of {sum(widths)} channels in all with "
        f"{len(inverse_area)} areas"
    )


def _fake(
    moments: Tensor,
    widths: Sequence[int],
    inverse_area: Sequence[float],
    output_component: Tensor | None = None,
    p: float = 2.0,
    backend: str | None = None,
) -> Tensor:
    return moments.new_empty(moments.shape[0])


def _batched(
    op: Callable[..., Tensor],
    times: int,
    dims: transforms.Dims,
    moments: Tensor,
    widths: Sequence[int],
    inverse_area: Sequence[float],
    output_component: Tensor | None,
    p: float,
    backend: str | None,
) -> tuple[Tensor, int]:
    rows = transforms.joined(moments, dims[0], times, transforms.IMAGES).contiguous()
    output = transforms.joined(output_component, dims[3], times, transforms.IMAGES)
    return transforms.parted(op(rows, widths, inverse_area, output, p, backend), times, 0), 0


define_op("frobenius", _eager, _fake, _batched)
