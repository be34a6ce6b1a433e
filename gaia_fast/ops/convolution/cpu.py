"""`convolution` in C++ (csrc/cpu/conv)."""

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

from gaia_fast.backends import kernels
from gaia_fast.errors import BackendError
from gaia_fast.ops.convolution.packing import Algorithm, padded
from gaia_fast.ops.convolution.parts import Pair, Part
from gaia_fast.ops.convolution.steps import Activation, address, convolution_steps, epilogue, refusals


def convolution_cpu(
    x: Tensor,
    parts: Sequence[Part],
    algorithm: Algorithm | None,
    bias: Tensor | None,
    residual: Tensor | None,
    relu_mask: Tensor | None,
    scale: Tensor | None,
    skip: Tensor | None,
    activation: Activation,
    statistic: str | None,
    out: Pair,
) -> tuple[Tensor, Tensor | None]:
    """y and the sums; see `convolution`."""
    images, outputs = x.shape[0], parts[0].weights.shape[0]
    x = channels_last(x) if parts[0].weights.groups == 1 else in_panels(x)
    residual, relu_mask, skip = (None if each is None else in_panels(each) for each in (residual, relu_mask, skip))
    bias, scale = (None if each is None else vector_in_panels(each) for each in (bias, scale))
    y = torch.empty((images, padded(outputs), *out), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    sums = None if statistic is None else x.new_empty((images, outputs))
    with refusals():
        behind = epilogue(
            outputs,
            address(y),
            bias,
            address(residual),
            address(relu_mask),
            scale,
            address(skip),
            address(sums),
            outputs,
            activation=activation,
            statistic=statistic,
        )
        shape = torch.Size((images, _inputs(parts[0]), *x.shape[2:]))
        executable = kernels.Executable(convolution_steps(0, parts, algorithm, address(x), shape, out, behind))
    if not executable.run([], torch.get_num_threads()):
        raise BackendError(f"no memory for the convolution of a map of shape {tuple(x.shape)}; score fewer images")
    return y[:, :outputs], sums


def _inputs(part: Part) -> int:
    return int(part.weights.shape[1]) * part.weights.groups


@overload
def channels_last(x: Tensor) -> Tensor: ...
@overload
def channels_last(x: None) -> None: ...
def channels_last(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous(memory_format=torch.channels_last)


def in_panels(x: Tensor) -> Tensor:
    """A (N, K, H, W) map channels-last, with zeros for the channels that whole panels have more than it."""
    more = padded(x.shape[1]) - x.shape[1]
    return channels_last(torch.nn.functional.pad(x, (0, 0, 0, 0, 0, more)) if more else x)


def vector_in_panels(x: Tensor) -> Tensor:
    """A (K,) vector with zeros behind it, as `in_panels`."""
    return torch.nn.functional.pad(x, (0, padded(x.numel()) - x.numel())).contiguous()
