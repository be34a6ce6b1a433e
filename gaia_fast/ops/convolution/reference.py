"""`convolution` in plain PyTorch."""

from math import inf

import torch
from torch import Tensor
from torch.nn.grad import conv2d_input

from gaia_fast.ops.convolution.steps import Activation


def convolution_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    relu_mask: Tensor | None,
    scale: Tensor | None,
    skip: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    input_size: tuple[int, int] | None,
    activation: Activation,
    statistic: str | None,
    groups: int = 1,
) -> tuple[Tensor, Tensor | None]:
    """y and the sums; see `convolution`. Any dtype."""
    if input_size is None:
        z = torch.conv2d(x, weight, bias, stride, padding, dilation, groups)
    else:
        z = conv2d_input((x.shape[0], weight.shape[1] * groups, *input_size), weight, x, stride, padding, groups=groups)
        z = z if bias is None else z + bias.view(-1, 1, 1)
    if residual is not None:
        z = z + residual
    if activation.name == "relu":
        z = torch.relu(z).clamp(max=activation.upper)
    elif activation.name == "sigmoid":
        z = torch.sigmoid(z)
    if relu_mask is not None:
        z = torch.where(relu_mask <= 0, 0, z)
        if activation.upper < inf:
            z = torch.where(relu_mask >= activation.upper, 0, z)
    sums = None
    if statistic == "sum":
        sums = z.sum((2, 3))
    elif statistic == "abs_sum":
        sums = z.abs().sum((2, 3))
    elif statistic == "positive":
        active = z > 0 if activation.upper == inf else (z > 0) & (z < activation.upper)
        sums = active.to(z.dtype).sum((2, 3))
    if scale is not None:
        z = z * scale.view(-1, 1, 1)
    if skip is not None:
        z = z + skip
    return z, sums
