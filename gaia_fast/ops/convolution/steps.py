"""Steps of a chain as the C++ side takes them (`Step` in csrc/cpu/kernels.h)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gaia_fast.backends import kernels
from gaia_fast.ops.convolution.packing import WINDOWS, cheapest_form
from gaia_fast.ops.convolution.parts import Pair, Part

STATISTICS: dict[str, int] = getattr(kernels, "STATISTICS", {})  # by name, as the extension was compiled

# An address, as (-1, address), or so many floats into an array that is named at each run, as (place, floats).
Pointer = tuple[int, int]
NOTHING: Pointer = (-1, 0)


def address(tensor: Tensor | None) -> Pointer:
    """Where a tensor lies, which has to live as long as the chain does."""
    return NOTHING if tensor is None else (-1, tensor.data_ptr())


@dataclass(frozen=True)
class Ending:
    """What stands behind a convolution; `sums_step` floats lie between the sums of two images."""

    bias: Pointer = NOTHING
    residual: Pointer = NOTHING
    gate: Pointer = NOTHING
    scale: Pointer = NOTHING
    skip: Pointer = NOTHING
    y: Pointer = NOTHING
    sums: Pointer = NOTHING
    sums_step: int = 0
    relu: bool = False
    statistic: str | None = None


def convolution_steps(
    stage: int, parts: Sequence[Part], form: int | None, x: Pointer, shape: torch.Size, out: Pair, ending: Ending
) -> list[tuple[Any, ...]]:
    """The steps that convolve a map of this (N, C, H, W) shape to (N, K, *out); `form` None is the cheapest one."""
    made = []
    for part in parts:
        outputs, _, *kernel = part.weights.shape
        positions = part.positions(out)
        if min(positions) < 1:
            continue
        part_form = form or WINDOWS
        if form is None and len(parts) == 1:
            part_form = cheapest_form(tuple(part.weights.shape), part.stride, part.dilation, shape[0], positions)
        window = (*kernel, *part.stride, *part.padding, *part.dilation)
        placed = (*out, *part.begin, *part.step)
        packed = part.weights.packed(part_form)
        made.append(_step(stage, part_form, x, packed, NOTHING, shape, positions, outputs, window, placed, ending))
    return made


def pointwise_step(stage: int, factor: Pointer, x: Pointer, shape: torch.Size, ending: Ending) -> tuple[Any, ...]:
    """The step that takes x * factor, channel by channel, for the convolution."""
    size = (shape[2], shape[3])
    window, placed = (1, 1, 1, 1, 0, 0, 1, 1), (*size, 0, 0, 1, 1)
    return _step(stage, 0, x, None, factor, shape, size, shape[1], window, placed, ending)


def open_step(
    stage: int,
    y: Pointer,
    shape: torch.Size,
    out: Pointer,
    out_step: int,
    begin: int,
    step: int,
    first: int = 0,
    last: int | None = None,
) -> tuple[Any, ...]:
    """The step that asks `open_everywhere`; `out_step` floats lie between the answers for two images."""
    images, channels, height, width = shape
    first, last, _ = slice(first, last).indices(channels)
    return stage, [y, out], [images, height, width, channels, begin, step, first, last, out_step], -1, False, 0


def _step(
    stage: int,
    form: int,
    x: Pointer,
    packed: Tensor | None,
    factor: Pointer,
    shape: torch.Size,
    positions: Pair,
    outputs: int,
    window: tuple[int, ...],
    placed: tuple[int, ...],
    ending: Ending,
) -> tuple[Any, ...]:
    images, channels, height, width = shape
    end = ending
    pointers = [x, address(packed), end.bias, end.residual, end.gate, factor, end.scale, end.skip, end.y, end.sums]
    sizes = [
        images,
        height,
        width,
        channels,
        *positions,
        outputs,
        *window,
        *placed,
        end.sums_step,
        0 if packed is None else packed.numel(),
    ]
    return stage, pointers, sizes, form, end.relu, STATISTICS[end.statistic or "sum"]
