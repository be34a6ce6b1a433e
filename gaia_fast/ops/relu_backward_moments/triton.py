"""`relu_backward_moments` in Triton."""

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
def relu_backward_moments_kernel(
    g_ptr,
    y_ptr,
    scale_ptr,
    grad_in_ptr,
    out_ptr,
    channels,
    width,
    positions,
    chunk,
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
    out_split,
    out_moment,
    out_n,
    HAS_Y: tl.constexpr,
    HAS_SCALE: tl.constexpr,
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
    if HAS_SCALE:
        scale = tl.load(scale_ptr + k, mask=k < channels, other=0)
    for start in range(split * chunk, min(split * chunk + chunk, positions), BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        inside = inside_map(k, p, channels, positions, VECTOR_K, VECTOR_P)
        at = tile_offsets(n, k, p, width, g_n, g_k, g_h, g_w, LAYOUT, VECTOR_K, VECTOR_P)
        g = tl.load(g_ptr + at, mask=inside, other=0).to(tl.float32)
        if HAS_Y:
            at = tile_offsets(n, k, p, width, y_n, y_k, y_h, y_w, LAYOUT, VECTOR_K, VECTOR_P)
            y = tl.load(y_ptr + at, mask=inside, other=0).to(tl.float32)
            g = tl.where(y <= 0, 0.0, g)  # selects: an infinite g behind an inactive unit is 0, and a NaN in y passes g
        total += g
        total_abs += tl.abs(g)
        nonzero += (g != 0).to(tl.float32)
        if HAS_SCALE:
            g = g * scale[:, None]
        at = tile_offsets(n, k, p, width, grad_in_n, grad_in_k, grad_in_h, grad_in_w, LAYOUT, VECTOR_K, VECTOR_P)
        tl.store(grad_in_ptr + at, g.to(grad_in_ptr.dtype.element_ty), mask=inside)
    out = out_ptr + split.to(tl.int64) * out_split + n * out_n + k
    store_moments(out, out_moment, total, total_abs, nonzero, k < channels)


def relu_backward_moments_triton(
    g: Tensor, y: Tensor | None, scale: Tensor | None, grad_in: Tensor, out: Tensor
) -> None:
    """Writes grad_in and the moments `out` (3, N, K); see `relu_backward_moments`."""
    layout = g if y is None else y
    tiling = tiling_for(g, layout, grad_in)
    partial = partials_for(out, tiling)
    launch(
        relu_backward_moments_kernel,
        grid_of(g.shape, tiling),
        g.shape,
        g,
        layout,
        out if scale is None else scale,
        grad_in,
        partial,
        g.shape[1],
        g.shape[3],
        g.shape[2] * g.shape[3],
        tiling.chunk,
        *strides_of(g),
        *strides_of(layout),
        *strides_of(grad_in),
        *partial.stride()[:3],
        HAS_Y=y is not None,
        HAS_SCALE=scale is not None,
        **constants_of(tiling),
    )
    add_partials(partial, out)
