"""`relu_forward_count` in Triton."""

import triton
import triton.language as tl
from torch import Tensor

from gaia_fast.ops.partial_sums import partial_sums_for
from gaia_fast.ops.tiling import strides_of, tiling_for
from gaia_fast.ops.triton_tiles import (
    by_channel,
    constants_of,
    folded,
    grid_of,
    inside_map,
    launch,
    load_parameter,
    program_of,
    store_counts,
    tile_offsets,
    unspecialised,
)


@triton.jit
def active_tile(
    x_ptr,
    residual_ptr,
    y_ptr,
    scale,
    shift,
    n,
    first_k,
    start,
    channels,
    end,
    width,
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
    HAS_SCALE: tl.constexpr,
    HAS_SHIFT: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    LAYOUT: tl.constexpr,
    VECTOR_K: tl.constexpr,
    VECTOR_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_P: tl.constexpr,
    FLAT: tl.constexpr,
):
    """Which elements of a tile of y are not zero, as float32; y is written."""
    inside = inside_map(first_k, start, channels, end, LAYOUT, VECTOR_K, VECTOR_P, BLOCK_K, BLOCK_P, FLAT)
    at = tile_offsets(n, first_k, start, width, x_n, x_k, x_h, x_w, LAYOUT, VECTOR_K, VECTOR_P, BLOCK_K, BLOCK_P, FLAT)
    v = tl.load(x_ptr + at, mask=inside, other=0).to(tl.float32)
    if HAS_SCALE:
        v = v * scale
    if HAS_SHIFT:
        v = v + shift
    if HAS_RESIDUAL:
        at = tile_offsets(
            n,
            first_k,
            start,
            width,
            residual_n,
            residual_k,
            residual_h,
            residual_w,
            LAYOUT,
            VECTOR_K,
            VECTOR_P,
            BLOCK_K,
            BLOCK_P,
            FLAT,
        )
        v = v + tl.load(residual_ptr + at, mask=inside, other=0).to(tl.float32)
    y = tl.where(v <= 0, 0.0, v).to(y_ptr.dtype.element_ty)
    at = tile_offsets(n, first_k, start, width, y_n, y_k, y_h, y_w, LAYOUT, VECTOR_K, VECTOR_P, BLOCK_K, BLOCK_P, FLAT)
    tl.store(y_ptr + at, y, mask=inside)
    # What was written is counted: rounding to half precision may make a small value zero.
    return ((y.to(tl.float32) != 0) & inside).to(tl.float32)


@unspecialised
def relu_forward_count_kernel(
    x_ptr,
    scale_ptr,
    shift_ptr,
    residual_ptr,
    y_ptr,
    out_ptr,
    partial_ptr,
    ticket_ptr,
    images,
    channels,
    width,
    positions,
    chunk,
    splits,
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
    out_n,
    HAS_SCALE: tl.constexpr,
    HAS_SHIFT: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    LAYOUT: tl.constexpr,
    VECTOR_K: tl.constexpr,
    VECTOR_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_P: tl.constexpr,
    FLAT: tl.constexpr,
    FOLD: tl.constexpr,
    SHARED: tl.constexpr,
):
    n, first_k, split, group = program_of(channels, splits, BLOCK_K)
    end = min(split * chunk + chunk, positions)
    scale, shift = 1.0, 0.0
    if HAS_SCALE:
        scale = load_parameter(scale_ptr, first_k, channels, positions, LAYOUT, BLOCK_K, FLAT)
    if HAS_SHIFT:
        shift = load_parameter(shift_ptr, first_k, channels, positions, LAYOUT, BLOCK_K, FLAT)
    if LAYOUT == "flat":
        active = active_tile(
            x_ptr,
            residual_ptr,
            y_ptr,
            scale,
            shift,
            n,
            first_k,
            0,
            channels,
            end,
            width,
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
            HAS_SCALE,
            HAS_SHIFT,
            HAS_RESIDUAL,
            LAYOUT,
            VECTOR_K,
            VECTOR_P,
            BLOCK_K,
            BLOCK_P,
            FLAT,
        )
        nonzero = tl.sum(by_channel(active, positions, BLOCK_K, BLOCK_P, FLAT), 0)
    else:
        counts = tl.zeros([BLOCK_K, BLOCK_P // FOLD], tl.float32)
        for start in range(split * chunk, end, BLOCK_P):
            active = active_tile(
                x_ptr,
                residual_ptr,
                y_ptr,
                scale,
                shift,
                n,
                first_k,
                start,
                channels,
                end,
                width,
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
                HAS_SCALE,
                HAS_SHIFT,
                HAS_RESIDUAL,
                LAYOUT,
                VECTOR_K,
                VECTOR_P,
                BLOCK_K,
                BLOCK_P,
                FLAT,
            )
            counts += folded(active, LAYOUT, BLOCK_K, BLOCK_P, FOLD)
        nonzero = tl.sum(counts, 1)
    store_counts(
        out_ptr,
        partial_ptr,
        ticket_ptr,
        n,
        first_k,
        split,
        group,
        images,
        channels,
        splits,
        out_n,
        nonzero,
        BLOCK_K,
        SHARED,
    )


def relu_forward_count_triton(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, residual: Tensor | None, y: Tensor, nonzero: Tensor
) -> None:
    """Writes y and the counts `nonzero` (N, K); see `relu_forward_count`."""
    added = x if residual is None else residual
    tiling = tiling_for(x, added, y)
    sums = partial_sums_for(nonzero, tiling)
    launch(
        relu_forward_count_kernel,
        grid_of(x.shape, tiling),
        x.shape,
        x,
        nonzero if scale is None else scale,
        nonzero if shift is None else shift,
        added,
        y,
        nonzero,
        nonzero if sums is None else sums.partial,
        nonzero if sums is None else sums.tickets,
        x.shape[0],
        x.shape[1],
        x.shape[3],
        x.shape[2] * x.shape[3],
        tiling.chunk,
        tiling.splits,
        *strides_of(x),
        *strides_of(added),
        *strides_of(y),
        nonzero.stride(0),
        HAS_SCALE=scale is not None,
        HAS_SHIFT=shift is not None,
        HAS_RESIDUAL=residual is not None,
        **constants_of(tiling),
        enable_fp_fusion=False,  # a product and a sum, each rounded, as everywhere else
    )
