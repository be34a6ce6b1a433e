"""`convolution` in C++ (csrc/cpu/conv)."""

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

from gaia_fast.backends import kernels
from gaia_fast.errors import BackendError
from gaia_fast.ops.convolution.packing import Algorithm
from gaia_fast.ops.convolution.parts import Pair, Part
from gaia_fast.ops.convolution.steps import STATISTICS, address, convolution_steps, refusals


def convolution_cpu(
    x: Tensor,
    parts: Sequence[Part],
    algorithm: Algorithm | None,
    bias: Tensor | None,
    residual: Tensor | None,
    relu_mask: Tensor | None,
    scale: Tensor | None,
    skip: Tensor | None,
    relu: bool,
    statistic: str | None,
    out: Pair,
) -> tuple[Tensor, Tensor | None]:
    """y and the sums; see `convolution`."""
    images, outputs = x.shape[0], parts[0].weights.shape[0]
    x = channels_last(x)
    residual, relu_mask, skip = (channels_last(each) for each in (residual, relu_mask, skip))
    y = torch.empty((images, outputs, *out), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    sums = None if statistic is None else x.new_empty((images, outputs))
    with refusals():
        epilogue = kernels.Epilogue(
            y=address(y),
            bias=address(bias),
            residual=address(residual),
            relu_mask=address(relu_mask),
            scale=address(scale),
            skip=address(skip),
            sums=address(sums),
            sums_stride=outputs,
            relu=relu,
            statistic=STATISTICS[statistic or "sum"],
        )
        executable = kernels.Executable(convolution_steps(0, parts, algorithm, address(x), x.shape, out, epilogue))
    if not executable.run([], torch.get_num_threads()):
        raise BackendError(f"no memory for the convolution of a map of shape {tuple(x.shape)}; score fewer images")
    return y, sums


@overload
def channels_last(x: Tensor) -> Tensor: ...
@overload
def channels_last(x: None) -> None: ...
def channels_last(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous(memory_format=torch.channels_last)
