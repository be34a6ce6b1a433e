"""How the GPU kernels, Triton's and CUDA's, cut (N, K, H, W) maps into programs. No kernel decides this by itself.

Never fitted to the batch: an image's sums must not depend on how many others there are.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import gcd

import torch
from torch import Tensor

# Bytes of a map that a program goes over: as many as 256 threads have in flight with four 16-byte loads each, so that
# a single small image occupies several multiprocessors. Maps of which an image makes PROGRAMS such programs fill a
# device with one image; of larger ones programs are larger, up to LARGEST_PROGRAM, and partial sums fewer.
PROGRAM, LARGEST_PROGRAM, PROGRAMS = 16384, 65536, 128
TILE = 8192  # bytes that a Triton program holds at a time, of two maps together: four 16-byte loads of 128 threads each
SCALARS = 1024  # elements that it holds where each is loaded by itself: an address for each needs registers
RUN = 64  # bytes of channels side by side that a program takes at least: two sectors of memory
ROW_CHUNK = 4096  # bytes of a channel that a program goes over where positions are contiguous, and
ROW_BLOCK = 1024  # positions of it that a Triton program holds at most
LEAST_BLOCK = 2  # Triton compiles no tile of a single element
PIECE, LARGEST_PIECE = 16384, 20480  # bytes of the channels that a program reads as one row; csrc/cuda/reduce.h
MAX_SPLITS = 256  # one program adds the others' sums up, one after the other

Strides = tuple[int, int, int, int]


@dataclass(frozen=True)
class Tiling:
    """One program reduces `block_k` channels of one image over `chunk` positions, `block_p` at a time.

    Attributes:
        layout: "rows" where the positions of a channel lie side by side in every map; "channels" where the channels of
            a position do, and the positions at one distance; "strided" for all else.
        vector: the elements of a 128-bit load where every row (or every channel vector) of every map begins at a
            multiple of 16 bytes and holds whole vectors; else 1.
        splits: programs that share the positions of a channel; the last of them to end adds their partial sums, in
            the order of the positions.
        piece: of "rows", the channels that a CUDA program takes as one row of whole vectors, where a single channel is
            none (7x7 positions) but the next begins where it ends; else 0.
        flat: likewise in Triton: the elements of a tile that holds `block_k` whole channels as one row; else 0.
        flat_vector: the elements of a 128-bit load of such a row; else 0.
    """

    layout: str
    vector: int
    block_k: int
    block_p: int
    chunk: int
    splits: int
    piece: int
    flat: int
    flat_vector: int


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
    piece = flat = 0
    tile = (TILE if len(strides) == 1 else TILE // 2) // item
    held = tile if vector > 1 else SCALARS
    if layout == "channels" or (layout == "strided" and channels > 1 and strides[0][1] == 1):
        program = min(max(PROGRAM, channels * positions * item // PROGRAMS), LARGEST_PROGRAM) // item
        # All positions of fewer channels, as far as memory is still read in whole sectors: nothing is left to add up.
        whole_channels = not_above(max(program // positions, RUN // item))
        block_k = max(min(power_of_2(channels), whole_channels, 256 * vector), LEAST_BLOCK)
        splits, chunk = _shared(positions, max(not_above(program // block_k), 1))
        block_p = min(power_of_2(chunk), max(held // block_k, 1))
    else:
        block_p = min(power_of_2(positions), ROW_BLOCK)
        block_k = min(power_of_2(channels), max(held // block_p, 1))
        if layout == "rows" and vector == 1 and not misalignment and all(k == positions for _, k, _, _ in strides):
            piece, fitting = _pieces(channels, positions, gcd(*(n for n, *_ in strides)), item, tile)
            if fitting:
                block_k, block_p, flat = fitting, power_of_2(positions), power_of_2(fitting * positions)
        splits, chunk = _shared(positions, positions if piece else max(ROW_CHUNK // item, block_p), block_p)
    return Tiling(layout, vector, block_k, block_p, chunk, splits, piece, flat, full if flat else 0)


def _shared(positions: int, most: int, step: int = 1) -> tuple[int, int]:
    """Returns how many programs share the positions, `most` each unless they were too many, and how many each takes."""
    splits = min(-(-positions // most), MAX_SPLITS)
    chunk = -(-positions // splits // step) * step
    return -(-positions // chunk), chunk


def _pieces(channels: int, positions: int, images_apart: int, item: int, tile: int) -> tuple[int, int]:
    """Returns how many channels, side by side, a CUDA program and a Triton program read as one row; 0 for none."""
    full = 16 // item
    least = full // gcd(full, positions)
    if gcd(channels * positions, images_apart) % full or least * positions * item > LARGEST_PIECE:
        return 0, 0
    in_triton = not_above(tile // positions) if least * positions <= tile else 0
    return min(channels, max(PIECE // item // positions // least, 1) * least), in_triton


def power_of_2(number: int) -> int:
    """Returns the least power of two that is not below `number`, a positive one."""
    return 1 << (number - 1).bit_length()


def not_above(number: int) -> int:
    """Returns the greatest power of two that is not above `number`, a positive one."""
    return 1 << (number.bit_length() - 1)
