"""What the Triton kernels share: addresses in a tile, the moments of one, the sum of the programs' partial results."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.errors import TritonError

from gaia_fast.errors import BackendError
from gaia_fast.ops.tiling import Tiling


def unspecialised(kernel: Callable[..., None]) -> Any:
    """`triton.jit` that compiles no size and no stride in, so that a network's maps of every size share one kernel.

    Left to itself, Triton compiles anew for each argument that is 1 or a multiple of 16 and was not before.
    """
    sizes = [name for name in signature(kernel).parameters if name.islower() and not name.endswith("_ptr")]
    return triton.jit(do_not_specialize=sizes)(kernel)


@triton.jit
def program_of(channels, BLOCK_K: tl.constexpr):
    """The image, the channels and the split of positions that a program of `grid_of` works on."""
    blocks = tl.cdiv(channels, BLOCK_K)
    program = tl.program_id(0)
    k = program % blocks * BLOCK_K + tl.arange(0, BLOCK_K)
    return (program // blocks).to(tl.int64), k, tl.program_id(1)


@triton.jit
def tile_offsets(
    n,
    k,
    p,
    width,
    stride_n,
    stride_k,
    stride_h,
    stride_w,
    LAYOUT: tl.constexpr,
    VECTOR_K: tl.constexpr,
    VECTOR_P: tl.constexpr,
):
    """Offsets in a map of channels k (down) and positions p (across) of image n.

    What lies side by side is told by LAYOUT, not by a stride of 1: no stride is compiled in (`unspecialised`).
    """
    across = k.to(tl.int64)
    along = p.to(tl.int64)
    if LAYOUT == "strided":
        along = (p // width).to(tl.int64) * stride_h + (p % width).to(tl.int64) * stride_w
    if LAYOUT == "channels":
        along = along * stride_w
    else:
        across = across * stride_k
    return tl.multiple_of(n * stride_n + across[:, None] + along[None, :], [VECTOR_K, VECTOR_P])


@triton.jit
def inside_map(k, p, channels, positions, VECTOR_K: tl.constexpr, VECTOR_P: tl.constexpr):
    """Which elements of a tile belong to the map: whole vectors of them."""
    return tl.max_constancy((k[:, None] < channels) & (p[None, :] < positions), [VECTOR_K, VECTOR_P])


@triton.jit
def store_moments(out, out_moment, total, total_abs, nonzero, inside):
    """Writes the three moments of each channel: sums of a tile along its positions."""
    tl.store(out, tl.sum(total, 1), mask=inside)
    tl.store(out + out_moment, tl.sum(total_abs, 1), mask=inside)
    tl.store(out + 2 * out_moment, tl.sum(nonzero, 1), mask=inside)


@triton.jit
def norm_terms(total, unknown, eps, P: tl.constexpr, NORM: tl.constexpr):
    """What `norm_of` is made of, with the terms of the entries `eps`, not negative, added."""
    if NORM == "1":
        total += eps
    elif NORM == "2":
        total += eps * eps
    elif NORM == "infinity":
        total = tl.where(eps > total, eps, total)
        unknown = tl.where(eps != eps, 1, unknown)
    else:
        total += tl.where(eps == 0, 0.0, tl.exp2(P * tl.log2(eps)))
    return total, unknown


@triton.jit
def norm_of(total, unknown, P: tl.constexpr, NORM: tl.constexpr):
    """The p-norm, of which `norm_terms` are all terms."""
    if NORM == "infinity":
        norm = tl.where(tl.max(unknown, 0) > 0, float("nan"), tl.max(total, 0))
    else:
        norm = tl.sum(total, 0)
        if NORM == "2":
            norm = tl.sqrt(norm)
        elif NORM == "p":
            norm = tl.where(norm == 0, 0.0, tl.exp2(tl.log2(norm) / P))
    return norm


@unspecialised
def _add_partials_kernel(
    partial_ptr, out_ptr, splits, columns, partial_split, partial_row, out_moment, out_n, images, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)  # of (moment, image) pairs
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    total = tl.zeros([BLOCK], tl.float32)
    for split in range(splits):
        total += tl.load(partial_ptr + split * partial_split + row * partial_row + column, mask=inside, other=0)
    tl.store(out_ptr + (row // images) * out_moment + (row % images) * out_n + column, total, mask=inside)


def grid_of(shape: torch.Size, tiling: Tiling) -> tuple[int, int]:
    """Returns the programs for a map: blocks of channels, image by image, as they lie in memory; splits."""
    return shape[0] * triton.cdiv(shape[1], tiling.block_k), tiling.splits


def constants_of(tiling: Tiling) -> dict[str, int | str]:
    """Returns what `tile_offsets` and the kernels have to know when they are compiled."""
    over_channels = tiling.layout == "channels"
    return {
        "LAYOUT": tiling.layout,
        "VECTOR_K": tiling.vector if over_channels else 1,
        "VECTOR_P": 1 if over_channels else tiling.vector,
        "BLOCK_K": tiling.block_k,
        "BLOCK_P": tiling.block_p,
    }


def launch(
    kernel: Any, grid: tuple[int, ...], shape: Sequence[int], first: Tensor, *arguments: Any, **options: Any
) -> None:
    """Launches a kernel on the device of its first argument, on the caller's stream.

    Raises:
        BackendError: it does not compile or cannot be launched; the message names it, and the shape of the map.
    """
    # Triton takes the current device, whatever the tensors are on.
    device: AbstractContextManager[object] = torch.cuda.device(first.device) if first.is_cuda else nullcontext()
    try:
        with device:
            kernel[grid](first, *arguments, **options)
    except (TritonError, RuntimeError) as error:
        name = getattr(kernel, "__name__", "kernel")
        raise BackendError(f"Triton kernel {name} on a map of shape {tuple(shape)}: {error}") from error


def add_partials(partial: Tensor, out: Tensor) -> None:
    """Adds (splits, moments, N, K) partial results up into `out`, in their order; nothing where there is one split."""
    splits, moments, images, channels = partial.shape
    if splits == 1:
        return
    block = min(triton.next_power_of_2(channels), 256)
    launch(
        _add_partials_kernel,
        (moments * images, triton.cdiv(channels, block)),
        partial.shape,
        partial,
        out,
        splits,
        channels,
        partial.stride(0),
        partial.stride(2),
        out.stride(0),
        out.stride(1),
        images,
        BLOCK=block,
    )
