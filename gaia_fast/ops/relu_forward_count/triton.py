"""`relu_forward_count` in Triton."""

import triton.language as tl
from torch import Tensor

from gaia_fast.ops.tiling import partials_for, strides_of, tiling_for
from gaia_fast.ops.triton_tiles import (
    add_partials,
    constants_of,
    grid_of,
    inside_map,
    launch,
    program_of,
    tile_offsets,
    unspecialised,
)


@unspecialised
def relu_forward_count_kernel(
    x_ptr,
    scale_ptr,
    shift_ptr,
    residual_ptr,
    y_ptr,
    out_ptr,
    channels,
    width,
    positions,
    chunk,
    x_n,
    x_k,
    x_h,
    x_w,
    residual_n,
    residual_k,
    residual_h,
    residual_w,
    y_n,
    y_k,
    y_h,
    y_w,
    out_split,
    out_n,
    HAS_SCALE: tl.constexpr,
    HAS_SHIFT: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    LAYOUT: tl.constexpr,
    VECTOR_K: tl.constexpr,
    VECTOR_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    n, k, split = program_of(channels, BLOCK_K)
    nonzero = tl.zeros([BLOCK_K, BLOCK_P], tl.float32)
    if HAS_SCALE:
        scale = tl.load(scale_ptr + k, mask=k < channels, other=0)
    if HAS_SHIFT:
        shift = tl.load(shift_ptr + k, mask=k < channels, other=0)
    for start in range(split * chunk, min(split * chunk + chunk, positions), BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        inside = inside_map(k, p, channels, positions, VECTOR_K, VECTOR_P)
        at = tile_offsets(n, k, p, width, x_n, x_k, x_h, x_w, LAYOUT, VECTOR_K, VECTOR_P)
        v = tl.load(x_ptr + at, mask=inside, other=0).to(tl.float32)
        if HAS_SCALE:
            v = v * scale[:, None]
        if HAS_SHIFT:
            v = v + shift[:, None]
        if HAS_RESIDUAL:
            at = tile_offsets(
                n, k, p, width, residual_n, residual_k, residual_h, residual_w, LAYOUT, VECTOR_K, VECTOR_P
            )
            v = v + tl.load(residual_ptr + at, mask=inside, other=0).to(tl.float32)
        y = tl.where(v <= 0, 0.0, v).to(y_ptr.dtype.element_ty)
        at = tile_offsets(n, k, p, width, y_n, y_k, y_h, y_w, LAYOUT, VECTOR_K, VECTOR_P)
        tl.store(y_ptr + at, y, mask=inside)
        # What was written is counted: rounding to half precision may make a small value zero.
        nonzero += ((y.to(tl.float32) != 0) & inside).to(tl.float32)
    out = out_ptr + split.to(tl.int64) * out_split + n * out_n + k
    tl.store(out, tl.sum(nonzero, 1), mask=k < channels)


def relu_forward_count_triton(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, residual: Tensor | None, y: Tensor, nonzero: Tensor
) -> None:
    """Writes y and the counts `nonzero` (N, K); see `relu_forward_count`."""
    added = x if residual is None else residual
    tiling = tiling_for(x, added, y)
    partial = partials_for(nonzero, tiling)
    launch(
        relu_forward_count_kernel,
        grid_of(x.shape, tiling),
        x.shape,
        x,
        nonzero if scale is None else scale,
        nonzero if shift is None else shift,
        added,
        y,
        partial,
        x.shape[1],
        x.shape[3],
        x.shape[2] * x.shape[3],
        tiling.chunk,
        *strides_of(x),
        *strides_of(added),
        *strides_of(y),
        *partial.stride()[:2],
        HAS_SCALE=scale is not None,
        HAS_SHIFT=shift is not None,
        HAS_RESIDUAL=residual is not None,
        **constants_of(tiling),
        enable_fp_fusion=False,  # a product and a sum, each rounded, as everywhere else
    )
    add_partials(partial.unsqueeze(1), nonzero.unsqueeze(0))
