"""`convolution` in C++ (csrc/cpu/convolution.h)."""

import torch
from torch import Tensor

from gaia_fast.backends import kernels
from gaia_fast.errors import BackendError
from gaia_fast.ops.convolution.packing import Weights

STATISTICS = {"sum": 0, "abs_sum": 1, "positive": 2}


def convolution_cpu(
    x: Tensor,
    weights: Weights,
    form: int,
    bias: Tensor | None,
    residual: Tensor | None,
    gate: Tensor | None,
    scale: Tensor | None,
    skip: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    relu: bool,
    statistic: str | None,
    out: tuple[int, int],
) -> tuple[Tensor, Tensor | None]:
    """y and the sums; see `convolution`."""
    images, inputs, height, width = x.shape
    outputs = weights.shape[0]
    x, residual, gate, skip = (_channels_last(each) for each in (x, residual, gate, skip))  # type: ignore[assignment]
    y = torch.empty((images, outputs, *out), memory_format=torch.channels_last)
    sums = None if statistic is None else torch.empty((images, outputs))
    enough = kernels.convolution(  # type: ignore[union-attr]
        [
            0 if each is None else each.data_ptr()
            for each in (x, weights.packed(form), bias, residual, gate, scale, skip, y, sums)
        ],
        (images, height, width, inputs),
        (*out, outputs),
        (*weights.shape[2:], *stride, *padding, *dilation),
        form,
        relu,
        STATISTICS[statistic or "sum"],
        torch.get_num_threads(),
    )
    if not enough:
        raise BackendError(f"no memory for the convolution of a map of shape {tuple(x.shape)}; score fewer images")
    return y, sums


def _channels_last(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous(memory_format=torch.channels_last)
