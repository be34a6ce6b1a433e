"""The score of Eq. 12 from packed moments."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gaia_fast.errors import BackendError
from gaia_fast.ops import maps
from gaia_fast.ops.frobenius.cpu import frobenius_cpu
from gaia_fast.ops.frobenius.reference import frobenius_reference

IMPLEMENTATIONS = {"torch": frobenius_reference, "cpu": frobenius_cpu}


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

    Lambda is ragged here: layer l holds the next widths[l] columns, and the paper's zero padding is never stored.

    Args:
        moments: (N, sum of widths) float32 (float64 with backend "torch"), one row of `channel_moments` for each
            layer beside the other, columns consecutive.
        widths: K_l, the channels of each layer.
        inverse_area: 1 / (H_l * W_l) of each layer.
        output_component: (N,), the denominator of Eq. 11; None for 1.
        p: the order of the norm, at least 1; infinity gives the largest entry.
        backend: a name of `gaia_fast.backends.BACKENDS`; None picks the fastest.

    Returns:
        (N,) float32 scores (float64 for float64). Accumulates in float64.

    Raises:
        BackendError: shapes that do not fit together, or a backend that cannot run here.

    Deterministic: summed in the order of the columns.
    """
    total = sum(widths)
    if any(width < 0 for width in widths):
        raise BackendError(f"widths must not be negative, got {list(widths)}")
    if moments.ndim != 2 or moments.shape[1] != total or len(widths) != len(inverse_area):
        raise BackendError(
            f"moments of shape {tuple(moments.shape)} do not hold {len(widths)} layers of {total} channels in all with "
            f"{len(inverse_area)} areas"
        )
    if moments.dtype not in (torch.float32, torch.float64) or (total > 1 and moments.stride(1) != 1):
        raise BackendError(f"moments must be float32 with consecutive columns, got {moments.dtype}, {moments.stride()}")
    if not p >= 1:
        raise BackendError(f"p must be at least 1 for a norm, got {p}")
    if output_component is not None:
        maps.check_same(output_component, "output_component", moments.shape[:1], moments.dtype, moments.device)
        output_component = output_component.resolve_neg().contiguous()
    moments = moments.resolve_neg()
    implementation = IMPLEMENTATIONS[maps.backend_name(backend, moments)]
    return implementation(moments, widths, inverse_area, output_component, p)
