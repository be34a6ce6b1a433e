"""`relu_backward_moments` in Triton."""

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
    moments_of,
    program_of,
    store_moments,
    tile_offsets,
    unspecialised,
)


@triton.jit
def masked_tile(
    g_ptr,
    y_ptr,
    grad_in_ptr,
    scale,
    n,
    first_k,
    start,
    channels,
    end,
    width,
    g_n,
    g_k,
    g_h,
    g_w,
    y_n,
    y_k,
    y_h,
    y_w,
    grad_in_n,
    grad_in_k,
    grad_in_h,
    grad_in_w,
    HAS_Y: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    LAYOUT: tl.constexpr,
    VECTOR_K: tl.constexpr,
    VECTOR_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_P: tl.constexpr,
    FLAT: tl.constexpr,
):
    """A tile of the gradient behind the mask; the gradient before the norm is written."""
    inside = inside_map(first_k, start, channels, end, LAYOUT, VECTOR_K, VECTOR_P, BLOCK_K, BLOCK_P, FLAT)
    at = tile_offsets(n, first_k, start, width, g_n, g_k, g_h, g_w, LAYOUT, VECTOR_K, VECTOR_P, BLOCK_K, BLOCK_P, FLAT)
    g = tl.load(g_ptr + at, mask=inside, other=0).to(tl.float32)
    if HAS_Y:
        at = tile_offsets(
            n, first_k, start, width, y_n, y_k, y_h, y_w, LAYOUT, VECTOR_K, VECTOR_P, BLOCK_K, BLOCK_P, FLAT
        )
        y = tl.load(y_ptr + at, mask=inside, other=0).to(tl.float32)
        g = tl.where(y <= 0, 0.0, g)  # selects: an infinite g behind an inactive unit is 0, and a NaN in y passes g
    grad_in = g
    if HAS_SCALE:
        grad_in = g * scale
    at = tile_offsets(
        n,
        first_k,
        start,
        width,
        grad_in_n,
        grad_in_k,
        grad_in_h,
        grad_in_w,
        LAYOUT,
        VECTOR_K,
        VECTOR_P,
        BLOCK_K,
        BLOCK_P,
        FLAT,
    )
    tl.store(grad_in_ptr + at, grad_in.to(grad_in_ptr.dtype.element_ty), mask=inside)
    return g


@unspecialised
def relu_backward_moments_kernel(
    g_ptr,
    y_ptr,
    scale_ptr,
    grad_in_ptr,
    out_ptr,
    partial_ptr,
    ticket_ptr,
    images,
    channels,
    width,
    positions,
    chunk,
    splits,
    g_n,
    g_k,
    g_h,
    g_w,
    y_n,
    y_k,
    y_h,
    y_w,
    grad_in_n,
    grad_in_k,
    grad_in_h,
    grad_in_w,
    out_moment,
    out_n,
    HAS_Y: tl.constexpr,
    HAS_SCALE: tl.constexpr,
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
    scale = 1.0
    if HAS_SCALE:
        scale = load_parameter(scale_ptr, first_k, channels, positions, LAYOUT, BLOCK_K, FLAT)
    if LAYOUT == "flat":
        g = masked_tile(
            g_ptr,
            y_ptr,
            grad_in_ptr,
            scale,
            n,
            first_k,
            0,
            channels,
            end,
            width,
            g_n,
            g_k,
            g_h,
            g_w,
            y_n,
            y_k,
            y_h,
            y_w,
            grad_in_n,
            grad_in_k,
            grad_in_h,
            grad_in_w,
            HAS_Y,
            HAS_SCALE,
            LAYOUT,
            VECTOR_K,
            VECTOR_P,
            BLOCK_K,
            BLOCK_P,
            FLAT,
        )
        total, total_abs, nonzero = moments_of(by_channel(g, positions, BLOCK_K, BLOCK_P, FLAT), 0)
    else:
        sums = tl.zeros([BLOCK_K, BLOCK_P // FOLD], tl.float32)
        sums_abs = tl.zeros([BLOCK_K, BLOCK_P // FOLD], tl.float32)
        counts = tl.zeros([BLOCK_K, BLOCK_P // FOLD], tl.float32)
        for start in range(split * chunk, end, BLOCK_P):
            g = masked_tile(
                g_ptr,
                y_ptr,
                grad_in_ptr,
                scale,
                n,
                first_k,
                start,
                channels,
                end,
                width,
                g_n,
                g_k,
                g_h,
                g_w,
                y_n,
                y_k,
                y_h,
                y_w,
                grad_in_n,
                grad_in_k,
                grad_in_h,
                grad_in_w,
                HAS_Y,
                HAS_SCALE,
                LAYOUT,
                VECTOR_K,
                VECTOR_P,
                BLOCK_K,
                BLOCK_P,
                FLAT,
            )
            sums += folded(g, LAYOUT, BLOCK_K, BLOCK_P, FOLD)
            sums_abs += folded(tl.abs(g), LAYOUT, BLOCK_K, BLOCK_P, FOLD)
            counts += folded((g != 0).to(tl.float32), LAYOUT, BLOCK_K, BLOCK_P, FOLD)
        total, total_abs, nonzero = tl.sum(sums, 1), tl.sum(sums_abs, 1), tl.sum(counts, 1)
    store_moments(
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
        out_moment,
        out_n,
        total,
        total_abs,
        nonzero,
        BLOCK_K,
        SHARED,
    )


def relu_backward_moments_triton(
    g: Tensor, y: Tensor | None, scale: Tensor | None, grad_in: Tensor, out: Tensor
) -> None:
    """Writes grad_in and the moments `out` (3, N, K); see `relu_backward_moments`."""
    layout = g if y is None else y
    tiling = tiling_for(g, layout, grad_in)
    sums = partial_sums_for(out, tiling)
    launch(
        relu_backward_moments_kernel,
        grid_of(g.shape, tiling),
        g.shape,
        g,
        layout,
        out if scale is None else scale,
        grad_in,
        out,
        out if sums is None else sums.partial,
        out if sums is None else sums.tickets,
        g.shape[0],
        g.shape[1],
        g.shape[3],
        g.shape[2] * g.shape[3],
        tiling.chunk,
        tiling.splits,
        *strides_of(g),
        *strides_of(layout),
        *strides_of(grad_in),
        *out.stride()[:2],
        HAS_Y=y is not None,
        HAS_SCALE=scale is not None,
        **constants_of(tiling),
    )
