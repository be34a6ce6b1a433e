"""`convolution` in C++ (csrc/cpu/convolution.h)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gaia_fast.backends import kernels
from gaia_fast.errors import BackendError
from gaia_fast.ops.convolution.parts import Pair, Part
from gaia_fast.ops.convolution.steps import Ending, address, convolution_steps


def convolution_cpu(
    x: Tensor,
    parts: Sequence[Part],
    form: int | None,
    bias: Tensor | None,
    residual: Tensor | None,
    gate: Tensor | None,
    scale: Tensor | None,
    skip: Tensor | None,
    relu: bool,
    statistic: str | None,
    out: Pair,
) -> tuple[Tensor, Tensor | None]:
    """y and the sums; see `convolution`."""
    images, outputs = x.shape[0], parts[0].weights.shape[0]
    x, residual, gate, skip = (channels_last(each) for each in (x, residual, gate, skip))  # type: ignore[assignment]
    y = torch.empty((images, outputs, *out), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    sums = None if statistic is None else x.new_empty((images, outputs))
    ending = Ending(
        address(bias),
        address(residual),
        address(gate),
        address(scale),
        address(skip),
        address(y),
        address(sums),
        outputs,
        relu,
        statistic,
    )
    steps = convolution_steps(0, parts, form, address(x), x.shape, out, ending)
    if not kernels.Chain(steps).run([], torch.get_num_threads()):  # type: ignore[union-attr]
        raise BackendError(f"no memory for the convolution of a map of shape {tuple(x.shape)}; score fewer images")
    return y, sums


def channels_last(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous(memory_format=torch.channels_last)
