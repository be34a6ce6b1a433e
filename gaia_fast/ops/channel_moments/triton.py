"""`channel_moments` in Triton."""

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
    moments_of,
    program_of,
    store_moments,
    tile_offsets,
    unspecialised,
)


@unspecialised
def channel_moments_kernel(
    g_ptr,
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
    out_moment,
    out_n,
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
    if LAYOUT == "flat":
        inside = inside_map(first_k, 0, channels, end, LAYOUT, VECTOR_K, VECTOR_P, BLOCK_K, BLOCK_P, FLAT)
        at = tile_offsets(n, first_k, 0, width, g_n, g_k, g_h, g_w, LAYOUT, VECTOR_K, VECTOR_P, BLOCK_K, BLOCK_P, FLAT)
        g = by_channel(tl.load(g_ptr + at, mask=inside, other=0).to(tl.float32), positions, BLOCK_K, BLOCK_P, FLAT)
        total, total_abs, nonzero = moments_of(g, 0)
    else:
        sums = tl.zeros([BLOCK_K, BLOCK_P // FOLD], tl.float32)
        sums_abs = tl.zeros([BLOCK_K, BLOCK_P // FOLD], tl.float32)
        counts = tl.zeros([BLOCK_K, BLOCK_P // FOLD], tl.float32)
        for start in range(split * chunk, end, BLOCK_P):
            inside = inside_map(first_k, start, channels, end, LAYOUT, VECTOR_K, VECTOR_P, BLOCK_K, BLOCK_P, FLAT)
            at = tile_offsets(
                n, first_k, start, width, g_n, g_k, g_h, g_w, LAYOUT, VECTOR_K, VECTOR_P, BLOCK_K, BLOCK_P, FLAT
            )
            g = tl.load(g_ptr + at, mask=inside, other=0).to(tl.float32)
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


def channel_moments_triton(g: Tensor, out: Tensor) -> None:
    """Writes sum, abs_sum and nonzero of `g` (N, K, H, W) into `out` (3, N, K); see `channel_moments`."""
    tiling = tiling_for(g)
    sums = partial_sums_for(out, tiling)
    launch(
        channel_moments_kernel,
        grid_of(g.shape, tiling),
        g.shape,
        g,
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
        *out.stride()[:2],
        **constants_of(tiling),
    )
