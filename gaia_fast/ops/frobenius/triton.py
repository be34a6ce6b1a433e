"""`frobenius` in Triton: one launch for all layers."""

from collections.abc import Sequence
from math import inf

import torch
import triton.language as tl
from torch import Tensor

from gaia_fast.ops.triton_tiles import kept_on_device, launch, norm_of, norm_terms, unspecialised

BLOCK = 1024


@unspecialised
def frobenius_kernel(
    moments_ptr,
    factor_ptr,
    output_ptr,
    score_ptr,
    columns,
    stride_n,
    P: tl.constexpr,
    HAS_OUTPUT: tl.constexpr,
    NORM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    total = tl.zeros([BLOCK], tl.float64)
    unknown = tl.zeros([BLOCK], tl.int32)
    for start in range(0, columns, BLOCK):
        j = start + tl.arange(0, BLOCK)
        factor = tl.load(factor_ptr + j, mask=j < columns, other=-1.0)
        inside = factor >= 0  # what a padded matrix holds beside its layers is never read
        moment = tl.load(moments_ptr + n * stride_n + j, mask=inside, other=0).to(tl.float64)
        eps = tl.abs(moment * factor)
        if HAS_OUTPUT:
            eps = tl.abs(eps / tl.load(output_ptr + n).to(tl.float64))
        eps = tl.where(inside, eps, 0.0)
        total, unknown = norm_terms(total, unknown, eps, P, NORM)
    tl.store(score_ptr + n, norm_of(total, unknown, P, NORM).to(tl.float32))


@kept_on_device
def _column_factors(
    begins: tuple[int, ...], widths: tuple[int, ...], inverse_area: tuple[float, ...], device: torch.device
) -> Tensor:
    """The factor of each column, on the device, and -1 for padding: a model's layers do not change between calls."""
    factors = torch.full((begins[-1] + widths[-1],), -1.0, dtype=torch.float64)
    for begin, width, factor in zip(begins, widths, inverse_area, strict=True):
        factors[begin : begin + width] = factor
    return factors.to(device)


def frobenius_triton(
    moments: Tensor,
    begins: Sequence[int],
    widths: Sequence[int],
    inverse_area: Sequence[float],
    output_component: Tensor | None,
    p: float,
    score: Tensor,
) -> None:
    """Writes the (N,) p-norms of the rows; see `frobenius`."""
    factors = _column_factors(tuple(begins), tuple(widths), tuple(inverse_area), moments.device)
    launch(
        frobenius_kernel,
        (moments.shape[0],),
        moments.shape,
        moments,
        factors,
        score if output_component is None else output_component,
        score,
        factors.shape[0],
        moments.stride(0),
        P=float(p) if p < inf else 0.0,  # a constant: as an argument it would be rounded to float32
        HAS_OUTPUT=output_component is not None,
        NORM={1.0: "1", 2.0: "2", inf: "infinity"}.get(p, "p"),
        BLOCK=BLOCK,
    )
