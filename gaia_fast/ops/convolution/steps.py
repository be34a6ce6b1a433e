"""Steps of an executable as the C++ side takes them: its typed records (csrc/bindings/executor.cpp), filled in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch
from torch import Tensor

from gaia_fast.backends import kernels
from gaia_fast.errors import BackendError
from gaia_fast.ops.convolution.packing import Algorithm, cheapest_algorithm
from gaia_fast.ops.convolution.parts import Pair, Part

if TYPE_CHECKING:
    from gaia_fast._kernels import CheckStep, ConvolutionStep, Epilogue, PointwiseStep

Step: TypeAlias = "ConvolutionStep | PointwiseStep | CheckStep"

STATISTICS: dict[str, int] = getattr(kernels, "STATISTICS", {})  # by name, as the extension was compiled


class Pointer(NamedTuple):
    """An address (with buffer -1), or so many floats into the buffer of this number, which each run names anew.

    Of a map, `pitch` floats lie between two positions; its channels lie side by side.
    """

    buffer: int
    offset: int
    pitch: int = 0


NULL = Pointer(-1, 0)


def address(tensor: Tensor | None) -> Pointer:
    """Where a tensor lies, which has to live as long as the executable does; a map channels-last."""
    return NULL if tensor is None else Pointer(-1, tensor.data_ptr(), tensor.shape[1] if tensor.ndim == 4 else 0)


@contextmanager
def refusals() -> Iterator[None]:
    """Has what the extension refuses, making steps or executables, raise BackendError."""
    try:
        yield
    except ValueError as error:
        raise BackendError(
            f"the compiled extension refuses {error}. It is of another version than the package: install both anew"
        ) from error


def convolution_steps(
    wave: int,
    parts: Sequence[Part],
    algorithm: Algorithm | None,
    x: Pointer,
    shape: torch.Size,
    out: Pair,
    epilogue: Epilogue,
) -> list[ConvolutionStep]:
    """The steps that convolve a map of this (N, C, H, W) shape to (N, K, *out); `algorithm` None is the cheapest."""
    made = []
    for part in parts:
        outputs, _, height, width = part.weights.shape
        positions = part.positions(out)
        if min(positions) < 1:
            continue
        chosen = algorithm or Algorithm.INDIRECT_GEMM
        if algorithm is None and len(parts) == 1:
            chosen = cheapest_algorithm(tuple(part.weights.shape), part.stride, part.dilation, shape[0], positions)
        packed = part.weights.packed(chosen)
        made.append(
            kernels.ConvolutionStep(
                wave=wave,
                algorithm=chosen,
                x=x,
                shape=shape,
                packed=address(packed),
                packed_size=packed.numel(),
                out=positions,
                outputs=outputs,
                kernel=(height, width),
                stride=part.stride,
                padding=part.padding,
                dilation=part.dilation,
                y_size=out,
                begin=part.begin,
                step=part.step,
                epilogue=epilogue,
            )
        )
    return made


def pointwise_step(wave: int, factor: Pointer, x: Pointer, shape: torch.Size, epilogue: Epilogue) -> PointwiseStep:
    """The step that takes x * factor, channel by channel, for the convolution."""
    return kernels.PointwiseStep(wave=wave, x=x, shape=shape, factor=factor, epilogue=epilogue)


def check_step(
    wave: int,
    y: Pointer,
    shape: torch.Size,
    out: Pointer,
    out_stride: int,
    begin: int,
    step: int,
    first: int = 0,
    last: int | None = None,
) -> CheckStep:
    """The step that asks `active_everywhere`; `out_stride` floats lie between the answers for two images."""
    first, last, _ = slice(first, last).indices(shape[1])
    return kernels.CheckStep(
        wave=wave,
        y=y,
        shape=shape,
        begin=begin,
        step=step,
        first=first,
        last=last,
        out=out,
        out_stride=out_stride,
    )
