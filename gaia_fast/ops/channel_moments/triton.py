"""`channel_moments` in Triton."""

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
    store_moments,
    tile_offsets,
    unspecialised,
)


@unspecialised
def channel_moments_kernel(
    g_ptr,
    out_ptr,
    channels,
    width,
    positions,
    chunk,
    g_n,
    g_k,
    g_h,
    g_w,
    out_split,
    out_moment,
    out_n,
    LAYOUT: tl.constexpr,
    VECTOR_K: tl.constexpr,
    VECTOR_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    n, k, split = program_of(channels, BLOCK_K)
    total = tl.zeros([BLOCK_K, BLOCK_P], tl.float32)
    total_abs = tl.zeros([BLOCK_K, BLOCK_P], tl.float32)
    nonzero = tl.zeros([BLOCK_K, BLOCK_P], tl.float32)
    for start in range(split * chunk, min(split * chunk + chunk, positions), BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        inside = inside_map(k, p, channels, positions, VECTOR_K, VECTOR_P)
        at = tile_offsets(n, k, p, width, g_n, g_k, g_h, g_w, LAYOUT, VECTOR_K, VECTOR_P)
        g = tl.load(g_ptr + at, mask=inside, other=0).to(tl.float32)
        total += g
        total_abs += tl.abs(g)
        nonzero += (g != 0).to(tl.float32)
    out = out_ptr + split.to(tl.int64) * out_split + n * out_n + k
    store_moments(out, out_moment, total, total_abs, nonzero, k < channels)


def channel_moments_triton(g: Tensor, out: Tensor) -> None:
    """Writes sum, abs_sum and nonzero of `g` (N, K, H, W) into `out` (3, N, K); see `channel_moments`."""
    tiling = tiling_for(g)
    partial = partials_for(out, tiling)
    launch(
        channel_moments_kernel,
        grid_of(g.shape, tiling),
        g.shape,
        g,
        partial,
        g.shape[1],
        g.shape[3],
        g.shape[2] * g.shape[3],
        tiling.chunk,
        *strides_of(g),
        *partial.stride()[:3],
        **constants_of(tiling),
    )
    add_partials(partial, out)
