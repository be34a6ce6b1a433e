"""How the GPU kernels, Triton's and CUDA's, cut (N, K, H, W) maps into programs. No kernel decides this by itself.

Never fitted to the batch: an image's sums must not depend on how many others there are.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import gcd

import torch
from torch import Tensor

# Elements that a program holds at a time, and bytes that it goes over in all: enough loads in flight, and partial sums
# that are few beside what they are sums of.
TILE = 2048
PROGRAM = 65536
ROW_BLOCK = 1024  # positions of a channel that a program holds at most, and
ROW_CHUNK = 4096  # goes over in all, where positions are contiguous
COLUMN_BLOCK, STEPS = 16, 8  # positions at a time, at most where there are channels enough, and times that, at least
LEAST_BLOCK = 2  # Triton compiles no tile of a single element
PIECE, LARGEST_PIECE = 16384, 20480  # bytes of the channels that a program reads as one row; csrc/cuda/reduce.h
MAX_SPLITS = 2**15  # a grid has 65535 programs in its third dimension

Strides = tuple[int, int, int, int]


@dataclass(frozen=True)
class Tiling:
    """One program reduces `block_k` channels of one image over `chunk` positions, `block_p` at a time.

    Attributes:
        layout: "rows" where the positions of a channel lie side by side in every map; "channels" where the channels of
            a position do, and the positions at one distance; "strided" for all else.
        vector: the elements of a 128-bit load where every row (or every channel vector) of every map begins at a
            multiple of 16 bytes and holds whole vectors; else 1.
        splits: programs that share the positions of a channel; their partial sums are added afterwards, in order.
        piece: of "rows", the channels that a CUDA program takes as one row of whole vectors, where a single channel is
            none (7x7 positions) but the next begins where it ends; else 0. Triton cannot sum parts of a vector.
    """

    layout: str
    vector: int
    block_k: int
    block_p: int
    chunk: int
    splits: int
    piece: int


def tiling_for(*tensors: Tensor) -> Tiling:
    """Returns the tiling for maps of one shape and dtype, at least one element each."""
    first = tensors[0]
    address = 0
    for each in tensors:
        address |= each.data_ptr()
    return _tiling(first.shape[1:], tuple(strides_of(each) for each in tensors), first.element_size(), address % 16)


def strides_of(tensor: Tensor) -> Strides:
    """Returns the strides as the kernels read them: those of single channels and positions, which may be anything,
    are what they would be in a contiguous map, the image's is kept."""
    n, k, h, w = tensor.stride()
    _, channels, height, width = tensor.shape
    w = w if width > 1 else 1
    h = h if height > 1 else width * w
    return n, k if channels > 1 else 1, h, w


def in_whole_vectors(*tensors: Tensor) -> bool:
    """Whether the images of all tensors lie in memory as contiguous ones do, each in whole vectors of 16 bytes."""
    for each in tensors:
        _, channels, height, width = each.shape
        n, *others = strides_of(each)
        positions, size = height * width, each.element_size()
        if others != [positions if channels > 1 else 1, width, 1]:
            return False
        if (channels * positions * size | n * size * (each.shape[0] > 1) | each.data_ptr()) % 16:
            return False
    return True


@lru_cache(maxsize=4096)
def _tiling(shape: torch.Size, strides: tuple[Strides, ...], item: int, misalignment: int) -> Tiling:
    channels, height, width = shape
    positions = height * width
    collapsed = all(h == width * w or height == 1 for _, _, h, w in strides)
    rows = collapsed and all(w == 1 for *_, w in strides)
    over_channels = collapsed and all(k == 1 for _, k, _, _ in strides)
    full = 16 // item
    if over_channels and not (rows and positions > 1):
        layout = "channels"
        whole = gcd(channels, *(n for n, *_ in strides), *(w for *_, w in strides if positions > 1))
    else:
        layout = "rows" if rows else "strided"
        whole = gcd(positions, *(n for n, *_ in strides), *(k for _, k, _, _ in strides if channels > 1))
    vector = full if layout != "strided" and whole % full == 0 and not misalignment else 1
    if layout == "channels" or (layout == "strided" and channels > 1 and strides[0][1] == 1):
        # Several steps of loads and sums alone, before lanes exchange what they have: few positions, few lanes.
        least = min(max(power_of_2(positions) // STEPS, 1), COLUMN_BLOCK)
        block_k = max(min(power_of_2(channels), TILE // least, 256 * vector), LEAST_BLOCK)
        block_p = min(power_of_2(positions), TILE // block_k)
        chunk = max(PROGRAM // item // block_k, block_p)
    else:
        block_p = min(power_of_2(positions), ROW_BLOCK)
        block_k = min(power_of_2(channels), TILE // block_p)
        chunk = ROW_CHUNK
    chunk = max(chunk, power_of_2(positions) // MAX_SPLITS)
    piece = 0
    if layout == "rows" and vector == 1 and not misalignment and all(k == positions for _, k, _, _ in strides):
        piece = _piece(channels, positions, gcd(*(n for n, *_ in strides)), item) if positions <= chunk else 0
    return Tiling(layout, vector, block_k, block_p, chunk, -(-positions // chunk), piece)


def _piece(channels: int, positions: int, images_apart: int, item: int) -> int:
    """Returns how many channels, side by side, a program reads as one row; 0 where no number will do."""
    full = 16 // item
    least = full // gcd(full, positions)
    if gcd(channels * positions, images_apart) % full or least * positions * item > LARGEST_PIECE:
        return 0
    return min(channels, max(PIECE // item // positions // least, 1) * least)


def power_of_2(number: int) -> int:
    """Returns the least power of two that is not below `number`, a positive one."""
    return 1 << (number - 1).bit_length()


def partials_for(out: Tensor, tiling: Tiling) -> Tensor:
    """Returns what the programs write to: (splits, *out.shape); `out` itself where there is one split."""
    return out.unsqueeze(0) if tiling.splits == 1 else out.new_empty((tiling.splits, *out.shape))
