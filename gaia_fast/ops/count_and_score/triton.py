"""`count_and_score` in Triton: one launch for all maps.

A program counts a tile of one map of one image, or looks at some positions of a window, all channels of them; the last
program of an image makes its results. The addresses of the maps travel in the kernel's arguments; all else that it has
to know of them is in tables, which stay on the device.
"""

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from gaia_fast.ops.count_and_score import active_limits, begins_of, grid_size, window_triples
from gaia_fast.ops.tiling import Strides, Tiling, power_of_2, strides_of, tiling_for
from gaia_fast.ops.triton_tiles import (
    by_channel,
    constants_of,
    inside_map,
    kept_on_device,
    launch,
    norm_of,
    norm_terms,
    tile_offsets,
    unspecialised,
)

BLOCK = 256  # columns of a result at a time
TILE_BYTES = 16384  # that a program counts: many programs, few bytes each, for few images
WINDOW_POSITIONS, WINDOW_CHANNELS = 32, 64  # of a window at a time
# What the tables hold of each: see `_tables`.
TILE_NUMBERS, MAP_NUMBERS, WINDOW_NUMBERS, COLUMN_NUMBERS = 4, 9, 5, 3


@triton.jit
def _active(
    image,
    n,
    first,
    start,
    end,
    channels,
    width,
    limit,
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
    """Which elements of a tile are active, 1 or 0."""
    inside = inside_map(first, start, channels, end, LAYOUT, VECTOR_K, VECTOR_P, BLOCK_K, BLOCK_P, FLAT)
    at = tile_offsets(
        n,
        first,
        start,
        width,
        stride_n,
        stride_k,
        stride_h,
        stride_w,
        LAYOUT,
        VECTOR_K,
        VECTOR_P,
        BLOCK_K,
        BLOCK_P,
        FLAT,
    )
    bits = tl.load(image + at, mask=inside, other=0).to(tl.int32)
    return ((bits > 0) & (bits <= limit)).to(tl.int32)


@triton.jit
def _count(
    address,
    counts_ptr,
    map_ptr,
    n,
    first,
    begin,
    MAGNITUDE: tl.constexpr,
    KINDS: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Adds the active elements of channels from `first` and positions from `begin` on to the image's counts."""
    LAYOUT: tl.constexpr = KINDS[INDEX * 8 + 0]
    VECTOR_K: tl.constexpr = KINDS[INDEX * 8 + 1]
    VECTOR_P: tl.constexpr = KINDS[INDEX * 8 + 2]
    BLOCK_K: tl.constexpr = KINDS[INDEX * 8 + 3]
    BLOCK_P: tl.constexpr = KINDS[INDEX * 8 + 4]
    CHUNK: tl.constexpr = KINDS[INDEX * 8 + 5]
    ALIGNMENT: tl.constexpr = KINDS[INDEX * 8 + 6]
    FLAT: tl.constexpr = KINDS[INDEX * 8 + 7]
    stride_n, stride_k = tl.load(map_ptr), tl.load(map_ptr + 1)
    stride_h, stride_w = tl.load(map_ptr + 2), tl.load(map_ptr + 3)
    channels, positions = tl.load(map_ptr + 4).to(tl.int32), tl.load(map_ptr + 5).to(tl.int32)
    width, limit = tl.load(map_ptr + 6).to(tl.int32), tl.load(map_ptr + 7).to(tl.int32)
    if MAGNITUDE == 0x7FFF:
        image = tl.multiple_of(address.to(tl.pointer_type(tl.int16)), ALIGNMENT)
    else:
        image = tl.multiple_of(address.to(tl.pointer_type(tl.int32)), ALIGNMENT)
    if LAYOUT == "flat":
        tile = _active(
            image,
            n,
            first,
            begin,
            positions,
            channels,
            width,
            limit,
            stride_n,
            stride_k,
            stride_h,
            stride_w,
            LAYOUT,
            VECTOR_K,
            VECTOR_P,
            BLOCK_K,
            BLOCK_P,
            FLAT,
        )
        counts = tl.sum(by_channel(tile.to(tl.float32), positions, BLOCK_K, BLOCK_P, FLAT), 0).to(tl.int32)
    else:
        found = tl.zeros([BLOCK_K, BLOCK_P], tl.int32)
        end = min(begin + CHUNK, positions)
        for start in range(begin, end, BLOCK_P):
            found += _active(
                image,
                n,
                first,
                start,
                end,
                channels,
                width,
                limit,
                stride_n,
                stride_k,
                stride_h,
                stride_w,
                LAYOUT,
                VECTOR_K,
                VECTOR_P,
                BLOCK_K,
                BLOCK_P,
                FLAT,
            )
        counts = tl.sum(found, 1)
    k = first + tl.arange(0, BLOCK_K)
    at = tl.load(map_ptr + 8) + k
    tl.atomic_add(counts_ptr + at, counts, mask=k < channels, sem="relaxed")


@triton.jit
def _look(
    address,
    scratch_ptr,
    map_ptr,
    window_ptr,
    n,
    begin,
    infinity,
    MAGNITUDE: tl.constexpr,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Sets the window's flag where no channel is active at one of its positions from `begin` on, or one is NaN."""
    if MAGNITUDE == 0x7FFF:
        image = address.to(tl.pointer_type(tl.int16))
    else:
        image = address.to(tl.pointer_type(tl.int32))
    stride_n, stride_k = tl.load(map_ptr), tl.load(map_ptr + 1)
    stride_h, stride_w = tl.load(map_ptr + 2), tl.load(map_ptr + 3)
    channels, limit = tl.load(map_ptr + 4).to(tl.int32), tl.load(map_ptr + 7).to(tl.int32)
    first, step = tl.load(window_ptr), tl.load(window_ptr + 1)
    columns, positions = tl.load(window_ptr + 2).to(tl.int32), tl.load(window_ptr + 3).to(tl.int32)
    g = begin + tl.arange(0, POSITIONS)
    row, column = first + (g // columns).to(tl.int64) * step, first + (g % columns).to(tl.int64) * step
    along = n * stride_n + row * stride_h + column * stride_w
    some = tl.zeros([POSITIONS], tl.int32)
    unknown = tl.zeros([POSITIONS], tl.int32)
    for start in range(0, channels, CHANNELS):
        k = start + tl.arange(0, CHANNELS)
        inside = (g[:, None] < positions) & (k[None, :] < channels)
        at = along[:, None] + (k.to(tl.int64) * stride_k)[None, :]
        bits = tl.load(image + at, mask=inside, other=0).to(tl.int32)
        some += tl.sum(((bits > 0) & (bits <= limit)).to(tl.int32), 1)
        unknown += tl.sum(((bits & MAGNITUDE) > infinity).to(tl.int32), 1)
    fails = ((some == 0) | (unknown > 0)) & (g < positions)
    failed = tl.max(fails.to(tl.int32), 0)
    tl.atomic_or(scratch_ptr + tl.load(window_ptr + 4), failed, mask=failed > 0, sem="relaxed")


@triton.jit
def _finish(
    scratch_ptr,
    window_ptr,
    column_ptr,
    factor_ptr,
    packed_ptr,
    live_ptr,
    score_ptr,
    sums,
    n,
    columns,
    windows,
    scratch_size,
    P: tl.constexpr,
    NORM: tl.constexpr,
    BLOCK: tl.constexpr,
    WINDOW_NUMBERS: tl.constexpr,
):
    """Writes the results of image n, of which everything is in its scratch, and leaves zeros there."""
    total = tl.zeros([BLOCK], tl.float64)
    unknown = tl.zeros([BLOCK], tl.int32)
    for start in range(0, columns, BLOCK):
        j = start + tl.arange(0, BLOCK)
        inside = j < columns
        source = tl.load(column_ptr + j, mask=inside, other=-1)
        offset = tl.load(column_ptr + columns + j, mask=inside, other=0)
        counted = tl.load(scratch_ptr + offset, mask=inside & (source < 0), other=0, cache_modifier=".cg")
        value = counted.to(tl.float32)
        if len(sums) > 0:
            address = tl.zeros([BLOCK], tl.int64)
            for index in tl.static_range(len(sums)):
                address = tl.where(source == index, sums[index], address)
            offset += n * tl.load(column_ptr + 2 * columns + j, mask=inside, other=0)
            given = address.to(tl.pointer_type(tl.float32)) + offset
            value = tl.where(source < 0, value, tl.load(given, mask=inside & (source >= 0), other=0))
        tl.store(packed_ptr + n * columns + j, value, mask=inside)
        factor = tl.load(factor_ptr + j, mask=inside, other=0)
        eps = tl.where(inside, tl.abs(value.to(tl.float64) * factor), 0.0)
        total, unknown = norm_terms(total, unknown, eps, P, NORM)
    tl.store(score_ptr + n, norm_of(total, unknown, P, NORM).to(tl.float32))
    for start in range(0, windows, BLOCK):
        j = start + tl.arange(0, BLOCK)
        flag = tl.load(window_ptr + j * WINDOW_NUMBERS + 4, mask=j < windows, other=0)
        failed = tl.load(scratch_ptr + flag, mask=j < windows, other=0, cache_modifier=".cg")
        tl.store(live_ptr + n * windows + j, tl.where(failed == 0, 1.0, 0.0), mask=j < windows)
    tl.debug_barrier()  # everything has been read
    for start in range(0, scratch_size, BLOCK):
        j = start + tl.arange(0, BLOCK)
        tl.store(scratch_ptr + j, tl.zeros([BLOCK], tl.int32), mask=j < scratch_size)


@unspecialised
def count_and_score_kernel(
    scratch_ptr,
    tile_ptr,
    map_ptr,
    window_ptr,
    column_ptr,
    factor_ptr,
    packed_ptr,
    live_ptr,
    score_ptr,
    maps,
    sums,
    tiles,
    columns,
    windows,
    scratch_size,
    infinity,
    KINDS: tl.constexpr,
    MAGNITUDE: tl.constexpr,
    P: tl.constexpr,
    NORM: tl.constexpr,
    BLOCK: tl.constexpr,
    WINDOW_POSITIONS: tl.constexpr,
    WINDOW_CHANNELS: tl.constexpr,
    TILE_NUMBERS: tl.constexpr,
    MAP_NUMBERS: tl.constexpr,
    WINDOW_NUMBERS: tl.constexpr,
):
    program = tl.program_id(0)
    n = (program // tiles).to(tl.int64)
    tile_ptr += program % tiles * TILE_NUMBERS
    kind, m = tl.load(tile_ptr), tl.load(tile_ptr + 1)
    first, begin = tl.load(tile_ptr + 2), tl.load(tile_ptr + 3)
    scratch_ptr += n * scratch_size
    address = tl.zeros([], tl.int64)
    for index in tl.static_range(len(maps)):
        address = tl.where(m == index, maps[index], address)
    of_map = map_ptr + m * MAP_NUMBERS
    for index in tl.static_range(len(KINDS) // 8):
        if kind == index:
            _count(
                address,
                scratch_ptr,
                of_map,
                n,
                first,
                begin,
                MAGNITUDE,
                KINDS,
                index,
            )
    if kind == len(KINDS) // 8:
        of_window = window_ptr + first * WINDOW_NUMBERS
        _look(
            address,
            scratch_ptr,
            of_map,
            of_window,
            n,
            begin,
            infinity,
            MAGNITUDE,
            WINDOW_POSITIONS,
            WINDOW_CHANNELS,
        )
    tl.debug_barrier()  # what the program found is there before its ticket is
    ticket = tl.atomic_add(scratch_ptr + scratch_size - 1, 1, sem="acq_rel")
    if ticket == tiles - 1:
        _finish(
            scratch_ptr,
            window_ptr,
            column_ptr,
            factor_ptr,
            packed_ptr,
            live_ptr,
            score_ptr,
            sums,
            n,
            columns,
            windows,
            scratch_size,
            P,
            NORM,
            BLOCK,
            WINDOW_NUMBERS,
        )


# LAYOUT, VECTOR_K, VECTOR_P, BLOCK_K, BLOCK_P, CHUNK, ALIGNMENT, FLAT: as `_count` takes them.
Kind = tuple[str, int, int, int, int, int, int, int]


class _Map(NamedTuple):
    """What the tables hang on, of a map."""

    shape: tuple[int, int, int]
    strides: Strides
    kind: Kind
    limit: int
    counted: bool


class _Tables(NamedTuple):
    """What a launch needs to know, on the device, all of int64 but the factors.

    Attributes:
        tiles: kind, map, first channel or window, first position.
        maps: strides of images, channels, rows and columns, channels, positions, width, limit, where its counts begin.
        windows: begin, step, columns, positions, where its flag is.
        columns: the sum or -1, offset in the sum or the scratch, the sum's stride of images; one after the other.
        factors: float64, one over the area of each column.
        kinds: of tiles; the next number is that of tiles of windows.
    """

    tiles: Tensor
    maps: Tensor
    windows: Tensor
    columns: Tensor
    factors: Tensor
    kinds: tuple[Kind, ...]


def _kind(tiling: Tiling, item: int, address: int) -> Kind:
    of = constants_of(tiling)
    chunk = max(TILE_BYTES // item // tiling.block_k // tiling.block_p, 1) * tiling.block_p
    vectors = max(int(of["VECTOR_K"]), int(of["VECTOR_P"]))
    alignment = 16 if vectors > 1 and address % 16 == 0 else item
    vector_k, vector_p = int(of["VECTOR_K"]), int(of["VECTOR_P"])
    return str(of["LAYOUT"]), vector_k, vector_p, tiling.block_k, tiling.block_p, chunk, alignment, tiling.flat


@kept_on_device
def _tables(
    maps: tuple[_Map, ...],
    sums: tuple[tuple[int, int, int], ...],
    layers: tuple[int, ...],
    inverse_area: tuple[float, ...],
    windows: tuple[int, ...],
    device: torch.device,
) -> _Tables:
    """The tables of a model, which does not change between calls; `sums` are widths and strides."""
    kinds = tuple(dict.fromkeys(each.kind for each in maps if each.counted and 0 not in each.shape))
    counts = begins_of([each.shape[0] for each in maps])
    end = sum(each.shape[0] for each in maps)
    of_maps = [
        (*each.strides, each.shape[0], each.shape[1] * each.shape[2], each.shape[2], each.limit, begin)
        for each, begin in zip(maps, counts, strict=True)
    ]
    tiles = [
        (kinds.index(each.kind), m, k, p)
        for m, each in enumerate(maps)
        if each.kind in kinds and each.counted
        for k in range(0, each.shape[0], each.kind[3])
        for p in range(0, each.shape[1] * each.shape[2], each.kind[5])
    ]
    of_windows = []
    for j, (m, begin, step) in enumerate(window_triples(windows)):
        _, height, width = maps[m].shape
        columns = grid_size(width, begin, step)
        positions = grid_size(height, begin, step) * columns
        end += -(-positions // 32) + 1
        of_windows.append((begin, step, columns, positions, end - 1))
        tiles += [(len(kinds), m, j, g) for g in range(0, positions, WINDOW_POSITIONS)]
    of_columns: list[tuple[int, int, int]] = []
    factors: list[float] = []
    for layer, area in zip(layers, inverse_area, strict=True):
        if layer < len(maps):
            of_columns += [(-1, counts[layer] + k, 0) for k in range(maps[layer].shape[0])]
        else:
            width, stride_n, stride_k = sums[layer - len(maps)]
            of_columns += [(layer - len(maps), k * stride_k, stride_n) for k in range(width)]
        factors += [area] * (len(of_columns) - len(factors))

    def on_device(rows: Sequence[tuple[int, ...]], numbers: int) -> Tensor:
        return torch.tensor(rows, dtype=torch.int64).view(-1, numbers).to(device)

    nothing = [(len(kinds) + 1, 0, 0, 0)]  # a program that does nothing but to finish
    return _Tables(
        on_device(tiles or nothing, TILE_NUMBERS),
        on_device(of_maps, MAP_NUMBERS),
        on_device(of_windows, WINDOW_NUMBERS),
        on_device(of_columns, COLUMN_NUMBERS).T.contiguous(),
        torch.tensor(factors, dtype=torch.float64).to(device),
        kinds,
    )


def count_and_score_triton(
    maps: Sequence[Tensor],
    sums: Sequence[Tensor],
    layers: Sequence[int],
    inverse_area: Sequence[float],
    upper: Sequence[float],
    windows: Sequence[int],
    p: float,
    scratch: Tensor,
    packed: Tensor,
    live: Tensor,
    score: Tensor,
) -> None:
    """Writes the counts, whether the windows are live, and the norms; see `count_and_score`."""
    dtype = maps[0].dtype if maps else score.dtype
    of_maps = tuple(
        _Map(
            (each.shape[1], each.shape[2], each.shape[3]),
            strides_of(each),
            _kind(tiling_for(each), each.element_size(), each.data_ptr()) if each.numel() > 0 else _NOTHING,
            limit,
            m in layers,
        )
        for m, (each, limit) in enumerate(zip(maps, active_limits(tuple(upper), dtype), strict=True))
    )
    of_sums = tuple((each.shape[1], each.stride(0), each.stride(1)) for each in sums)
    tables = _tables(of_maps, of_sums, tuple(layers), tuple(inverse_area), tuple(windows), score.device)
    tiles = tables.tiles.shape[0]
    launch(
        count_and_score_kernel,
        (score.shape[0] * tiles,),
        (score.shape[0], packed.shape[1]),
        scratch,
        tables.tiles,
        tables.maps,
        tables.windows,
        tables.columns,
        tables.factors,
        packed,
        live,
        score,
        tuple(each.data_ptr() for each in maps),
        tuple(each.data_ptr() for each in sums),
        tiles,
        packed.shape[1],
        live.shape[1],
        scratch.shape[1],
        _INFINITY[dtype],
        KINDS=tuple(number for kind in tables.kinds for number in kind),  # Triton takes no tuple of tuples
        MAGNITUDE=0x7FFFFFFF if dtype == torch.float32 else 0x7FFF,
        P=float(p) if p < inf else 0.0,  # a constant: as an argument it would be rounded to float32
        NORM={1.0: "1", 2.0: "2", inf: "infinity"}.get(p, "p"),
        BLOCK=min(BLOCK, power_of_2(max(packed.shape[1], 32))),
        WINDOW_POSITIONS=WINDOW_POSITIONS,
        WINDOW_CHANNELS=WINDOW_CHANNELS,
        TILE_NUMBERS=TILE_NUMBERS,
        MAP_NUMBERS=MAP_NUMBERS,
        WINDOW_NUMBERS=WINDOW_NUMBERS,
        num_warps=8,  # of four, the registers do not hold all that is in flight
    )


_NOTHING: Kind = ("rows", 1, 1, 1, 1, 1, 1, 0)
_INFINITY = {torch.float32: 0x7F800000, torch.float16: 0x7C00, torch.bfloat16: 0x7F80}
