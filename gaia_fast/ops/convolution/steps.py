"""Steps of an executable as the C++ side takes them: its typed records (csrc/bindings/executor.cpp), filled in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch
from torch import Tensor

from gaia_fast.backends import kernels
from gaia_fast.errors import BackendError
from gaia_fast.ops.convolution.measured import measured_algorithm
from gaia_fast.ops.convolution.packing import Algorithm, algorithms, cheapest_algorithm, padded
from gaia_fast.ops.convolution.parts import Pair, Part

if TYPE_CHECKING:
    from gaia_fast._kernels import (
        ChannelsLastStep,
        CheckStep,
        ConvolutionStep,
        CopyColumnsStep,
        Epilogue,
        GateGradientStep,
        GroupNormStep,
        LogitSlopesStep,
        MaskCheckStep,
        MaskStep,
        MeanGradientStep,
        MeanRootStep,
        PointwiseStep,
        PoolStep,
        ResultCheckStep,
        ScoreStep,
    )

Step: TypeAlias = (
    "ChannelsLastStep | ConvolutionStep | PointwiseStep | CheckStep | PoolStep | GroupNormStep | MaskStep "
    "| MaskCheckStep | GateGradientStep | MeanGradientStep | CopyColumnsStep | LogitSlopesStep | MeanRootStep "
    "| ScoreStep | ResultCheckStep"
)

# By name, as the extension was compiled.
STATISTICS: dict[str, int] = getattr(kernels, "STATISTICS", {})
ACTIVATIONS: dict[str, int] = getattr(kernels, "ACTIVATIONS", {})
POOLINGS: dict[str, int] = getattr(kernels, "POOLINGS", {})
TESTS: dict[str, int] = getattr(kernels, "TESTS", {})


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


@dataclass(frozen=True)
class Activation:
    """What becomes of a sum: "identity", "relu" with an upper bound or infinity, "sigmoid"."""

    name: str = "identity"
    upper: float = float("inf")


IDENTITY, RELU, SIGMOID = Activation(), Activation("relu"), Activation("sigmoid")


def epilogue(
    channels: int,
    y: Pointer,
    bias: Tensor | None = None,
    residual: Pointer = NULL,
    relu_mask: Pointer = NULL,
    scale: Tensor | None = None,
    skip: Pointer = NULL,
    sums: Pointer = NULL,
    sums_stride: int = 0,
    bits: Pointer = NULL,
    activation: Activation = IDENTITY,
    statistic: str | None = None,
) -> Epilogue:
    """What stands behind a convolution of so many channels; `bias` and `scale` padded to whole panels."""
    return kernels.Epilogue(
        y=y,
        bias=address(bias),
        residual=residual,
        relu_mask=relu_mask,
        scale=address(scale),
        skip=skip,
        sums=sums,
        sums_stride=sums_stride,
        bits=bits,
        channels=channels,
        activation=ACTIVATIONS[activation.name],
        upper=activation.upper,
        statistic=STATISTICS[statistic or "sum"],
    )


def _sees_nothing(part: Part, shape: torch.Size, positions: Pair) -> bool:
    """Whether a window lies in zeros alone: its output is the bias; a tile leaves rounding of its neighbours there."""
    return any(
        p >= d * (k - 1) + 1 or (out - 1) * s - p >= size
        for p, d, k, s, out, size in zip(
            part.padding, part.dilation, part.weights.shape[2:], part.stride, positions, shape[2:], strict=True
        )
    )


def convolution_steps(
    wave: int,
    parts: Sequence[Part],
    algorithm: Algorithm | None,
    x: Pointer,
    shape: torch.Size,
    out: Pair,
    epilogue: Epilogue,
    network_bytes: int = 0,
    batch: int | None = None,
) -> list[ConvolutionStep]:
    """The steps that convolve a map of this (N, C, H, W) shape to (N, K, *out).

    Args:
        algorithm: None for the cheapest by its operations, or, with `network_bytes`, the fastest.
        network_bytes: of the weights of the network that it is measured for.
        batch: for how many images it is chosen; None for those of the map.
    """
    made = []
    for part in parts:
        outputs, inputs, height, width = part.weights.shape
        positions = part.positions(out)
        if min(positions) < 1:
            continue
        chosen = algorithm or Algorithm.INDIRECT_GEMM
        if part.weights.groups > 1:
            chosen = Algorithm.GROUPED
        elif algorithm is None and len(parts) == 1 and not _sees_nothing(part, shape, positions):
            images = batch or shape[0]
            kind = tuple(part.weights.shape), part.stride, part.dilation
            chosen = cheapest_algorithm(*kind, images, positions)
            if network_bytes:
                others = [each for each in algorithms(*kind) if each is not chosen]
                chosen = measured_algorithm(
                    part, torch.Size((images, *shape[1:])), positions, chosen, others, network_bytes
                )
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
                outputs=padded(outputs),
                group=inputs if chosen is Algorithm.GROUPED else 0,
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
