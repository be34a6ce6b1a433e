"""What the Triton kernels share: addresses in a tile, the moments of one, the sum of what programs share."""

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from inspect import signature
from typing import Any, TypeVar

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.errors import TritonError

from gaia_fast.errors import BackendError
from gaia_fast.ops.partial_sums import is_everyones
from gaia_fast.ops.tiling import Tiling

M = TypeVar("M")

_THREADS = 128  # of a program, by Triton's default


def kept_on_device(make: Callable[..., M]) -> Callable[..., M]:
    """`make`, which gives a tensor or a tuple with one in front, asked once for the same arguments.

    What it gave stays for good: a CUDA graph that was recorded goes on reading it.
    """
    lock, kept = threading.Lock(), dict[Any, M]()

    @wraps(make)
    def kept_or_made(*arguments: Any) -> M:
        with lock:
            if arguments in kept:
                return kept[arguments]
            made = make(*arguments)
            first: Any = made if isinstance(made, Tensor) else made[0]  # type: ignore[index]
            if not first.is_cuda or is_everyones(first):
                kept[arguments] = made
            return made

    return kept_or_made


def unspecialised(kernel: Callable[..., None]) -> Any:
    """`triton.jit` that compiles no size and no stride in, so that a network's maps of every size share one kernel.

    Left to itself, Triton compiles anew for each argument that is 1 or a multiple of 16 and was not before.
    """
    sizes = [name for name in signature(kernel).parameters if name.islower() and not name.endswith("_ptr")]
    return triton.jit(do_not_specialize=sizes)(kernel)


@triton.jit
def program_of(channels, splits, BLOCK_K: tl.constexpr):
    """What a program of `grid_of` works on: image, first channel, split; and the group of programs that share these."""
    program = tl.program_id(0)
    group = program // splits
    blocks = tl.cdiv(channels, BLOCK_K)
    return (group // blocks).to(tl.int64), group % blocks * BLOCK_K, program % splits, group


@triton.jit
def tile_offsets(
    n,
    first_k,
    start,
    width,
    stride_n,
    stride_k,
    stride_h,
    stride_w,
    LAYOUT: tl.constexpr,
    VECTOR_K: tl.constexpr,
    VECTOR_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_P: tl.constexpr,
    FLAT: tl.constexpr,
):
    """Offsets in a map of channels from first_k on (down) and positions from `start` on (across) of image n.

    What lies side by side is told by LAYOUT, not by a stride of 1: no stride is compiled in (`unspecialised`). Where it
    is "flat", whole channels follow each other in one row of FLAT elements.
    """
    first = n * stride_n
    if LAYOUT == "flat":
        at = first + first_k.to(tl.int64) * stride_k + tl.arange(0, FLAT)[None, :]
    else:
        across = (first_k + tl.arange(0, BLOCK_K)).to(tl.int64)
        p = start + tl.arange(0, BLOCK_P)
        along = p.to(tl.int64)
        if LAYOUT == "strided":
            along = (p // width).to(tl.int64) * stride_h + (p % width).to(tl.int64) * stride_w
        if LAYOUT == "channels":
            along = along * stride_w
        else:
            across = across * stride_k
        at = first + across[:, None] + along[None, :]
    return tl.multiple_of(at, [VECTOR_K, VECTOR_P])


@triton.jit
def inside_map(
    first_k,
    start,
    channels,
    end,
    LAYOUT: tl.constexpr,
    VECTOR_K: tl.constexpr,
    VECTOR_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_P: tl.constexpr,
    FLAT: tl.constexpr,
):
    """Which elements of a tile belong to the map's positions before `end`: whole vectors of them."""
    if LAYOUT == "flat":
        inside = tl.arange(0, FLAT)[None, :] < tl.minimum(channels - first_k, BLOCK_K) * end
    else:
        k = first_k + tl.arange(0, BLOCK_K)
        p = start + tl.arange(0, BLOCK_P)
        inside = (k[:, None] < channels) & (p[None, :] < end)
    return tl.max_constancy(inside, [VECTOR_K, VECTOR_P])


@triton.jit
def load_parameter(ptr, first_k, channels, positions, LAYOUT: tl.constexpr, BLOCK_K: tl.constexpr, FLAT: tl.constexpr):
    """A (K,) parameter for the elements of a tile: one value a row or, where it is flat, an element."""
    k = first_k + tl.arange(0, BLOCK_K)
    values = tl.load(ptr + k, mask=k < channels, other=0)
    if LAYOUT == "flat":
        # Rounded down exactly, without an integer division for each element: a tile has less than 2**20 of them.
        i = tl.arange(0, FLAT).to(tl.float32)
        of = ((i + 0.5) * (1.0 / positions.to(tl.float32))).to(tl.int32)
        values = tl.gather(values, tl.minimum(of, BLOCK_K - 1), 0)[None, :]
    else:
        values = values[:, None]
    return values


@triton.jit
def by_channel(tile, positions, BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr, FLAT: tl.constexpr):
    """A flat tile with a column for each channel, zeros below its positions: each thread adds up what it has."""
    p = tl.arange(0, BLOCK_P)[:, None]
    at = tl.minimum(tl.arange(0, BLOCK_K)[None, :] * positions + p, FLAT - 1)
    gathered = tl.gather(tl.reshape(tile, [FLAT]), tl.reshape(at, [BLOCK_P * BLOCK_K]), 0)
    return tl.where(p < positions, tl.reshape(gathered, [BLOCK_P, BLOCK_K]), 0.0)


@triton.jit
def folded(tile, LAYOUT: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr, FOLD: tl.constexpr):
    """A tile's sums of FOLD values each, which one thread has: less to carry along than the tile itself."""
    if FOLD == 1:
        sums = tile
    elif LAYOUT == "rows":
        sums = tl.sum(tl.reshape(tile, [BLOCK_K, BLOCK_P // FOLD, FOLD]), 2)
    else:
        sums = tl.sum(tl.reshape(tile, [BLOCK_K, FOLD, BLOCK_P // FOLD]), 1)
    return sums


@triton.jit
def moments_of(tile, AXIS: tl.constexpr):
    """Sum, sum of absolute values and count of non-zeros along an axis."""
    return tl.sum(tile, AXIS), tl.sum(tl.abs(tile), AXIS), tl.sum((tile != 0).to(tl.float32), AXIS)


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


@triton.jit
def is_last(ticket_ptr, splits):
    """Whether all other programs of this one's group have stored their shares; the ticket is zero again then."""
    tl.debug_barrier()  # every thread's share is stored before one of them says so
    last = tl.atomic_add(ticket_ptr, 1, sem="acq_rel") == splits - 1
    tl.debug_barrier()
    if last:
        tl.store(ticket_ptr, 0)
    return last


@triton.jit
def add_shares(partial_ptr, apart, splits, inside, BLOCK_K: tl.constexpr):
    """The sum of the programs' shares, in their order."""
    TOGETHER: tl.constexpr = 8  # loads in flight
    total = tl.zeros([BLOCK_K], tl.float32)
    for first in range(0, splits, TOGETHER):
        for i in tl.static_range(TOGETHER):
            at = partial_ptr + (first + i) * apart
            total += tl.load(at, mask=inside & (first + i < splits), other=0, cache_modifier=".cg")
    return total


@triton.jit
def store_moments(
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
    BLOCK_K: tl.constexpr,
    SHARED: tl.constexpr,
):
    """Writes the three moments of each channel, which all programs of a group have shares of where SHARED."""
    k = first_k + tl.arange(0, BLOCK_K)
    inside = k < channels
    out = out_ptr + n * out_n + k
    if SHARED:
        size = images.to(tl.int64) * channels
        shares = partial_ptr + n * channels + k
        share = shares + split * (3 * size)
        tl.store(share, total, mask=inside)
        tl.store(share + size, total_abs, mask=inside)
        tl.store(share + 2 * size, nonzero, mask=inside)
        if is_last(ticket_ptr + group, splits):
            tl.store(out, add_shares(shares, 3 * size, splits, inside, BLOCK_K), mask=inside)
            tl.store(out + out_moment, add_shares(shares + size, 3 * size, splits, inside, BLOCK_K), mask=inside)
            tl.store(
                out + 2 * out_moment, add_shares(shares + 2 * size, 3 * size, splits, inside, BLOCK_K), mask=inside
            )
    else:
        tl.store(out, total, mask=inside)
        tl.store(out + out_moment, total_abs, mask=inside)
        tl.store(out + 2 * out_moment, nonzero, mask=inside)


@triton.jit
def store_counts(
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
    BLOCK_K: tl.constexpr,
    SHARED: tl.constexpr,
):
    """`store_moments` of the counts alone."""
    k = first_k + tl.arange(0, BLOCK_K)
    inside = k < channels
    out = out_ptr + n * out_n + k
    if SHARED:
        size = images.to(tl.int64) * channels
        shares = partial_ptr + n * channels + k
        tl.store(shares + split * size, nonzero, mask=inside)
        if is_last(ticket_ptr + group, splits):
            tl.store(out, add_shares(shares, size, splits, inside, BLOCK_K), mask=inside)
    else:
        tl.store(out, nonzero, mask=inside)


def grid_of(shape: torch.Size, tiling: Tiling) -> tuple[int]:
    """Returns the programs for a map: splits of blocks of channels, image by image, as they lie in memory."""
    return (shape[0] * triton.cdiv(shape[1], tiling.block_k) * tiling.splits,)


def constants_of(tiling: Tiling) -> dict[str, int | str | bool]:
    """Returns what `tile_offsets` and the kernels have to know when they are compiled."""
    layout = "flat" if tiling.flat else tiling.layout
    over_channels = layout == "channels"
    vector = tiling.flat_vector if tiling.flat else tiling.vector
    if layout == "rows":
        fold = vector  # a vector is one thread's
    else:
        # Of channel vectors a thread has as many as it has loads in flight.
        loads = tiling.block_k * tiling.block_p // (_THREADS * vector)
        fold = max(min(tiling.block_p, loads), 1) if over_channels else 1
    return {
        "LAYOUT": layout,
        "VECTOR_K": vector if over_channels else 1,
        "VECTOR_P": 1 if over_channels else vector,
        "BLOCK_K": tiling.block_k,
        "BLOCK_P": tiling.block_p,
        "FLAT": tiling.flat,
        "FOLD": fold,
        "SHARED": tiling.splits > 1,
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
