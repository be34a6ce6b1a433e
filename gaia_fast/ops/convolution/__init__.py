"""A convolution with all that stands behind it, in one pass over its outputs."""

import torch
from torch import Tensor

from gaia_fast.errors import BackendError
from gaia_fast.ops import maps
from gaia_fast.ops.convolution.cpu import channels_last, convolution_cpu
from gaia_fast.ops.convolution.packing import NR, Algorithm, Weights
from gaia_fast.ops.convolution.parts import Pair, Part, adjoint_parts, output_size
from gaia_fast.ops.convolution.reference import convolution_reference
from gaia_fast.ops.convolution.steps import IDENTITY, STATISTICS, Activation

__all__ = [
    "Part",
    "Weights",
    "adjoint_parts",
    "channels_last",
    "convolution",
    "convolution_cpu",
    "output_size",
    "takes",
]


def takes(weight: Tensor, groups: int = 1) -> bool:
    """Whether the C++ convolution takes these (K, C / groups, height, width) weights.

    They are float32; where there are groups, these have as many channels in as out, a divisor or a multiple of 16.
    """
    if weight.ndim != 4 or weight.dtype != torch.float32 or weight.numel() == 0:
        return False
    each = weight.shape[1]
    return groups == 1 or (each * groups == weight.shape[0] and (each % NR == 0 or NR % each == 0))


def convolution(
    x: Tensor,
    weights: Weights,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    relu_mask: Tensor | None = None,
    scale: Tensor | None = None,
    skip: Tensor | None = None,
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    input_size: Pair | None = None,
    activation: Activation = IDENTITY,
    statistic: str | None = None,
    algorithm: Algorithm | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """A convolution, what a network has behind it, and a sum over space: what a program is made of, both ways.

        z = conv2d(x, weight, bias, stride, padding, dilation, groups) + residual
        z = min(max(z, 0), upper), or sigmoid(z), or z;  z = where((relu_mask <= 0) | (relu_mask >= upper), 0, z)
        sums[n, k] = sum over (i, j) of z, |z| or [0 < z < upper]
        y = z * scale[k] + skip

    Forward, the sums are the counts of active units (Eq. 10); backward, with the flipped weights, the ReLU's output as
    `relu_mask`, and the norm's factor as `scale`, they are those of the gradient at the norm's output (Eq. 11). Where
    the convolution was strided, its own weights and `input_size` give its adjoint in conv2d's place.

    Args:
        x: (N, C, H, W) float32 on the CPU (with backend "torch" anything), any strides; channels-last costs no copy.
        weights: (K, C / groups, height, width), as `takes` wants them; of the convolution whose adjoint it is with
            `input_size`.
        bias, scale: (K,); None for 0 and 1.
        residual, relu_mask, skip: (N, K, H', W'); None for 0, no mask, and 0.
        stride, padding, dilation: as in `torch.conv2d`, by axis; zeros outside.
        input_size: (H', W') of the map whose convolution gave one like `x`: the gradient there is made of the gradient
            x.
        activation: and its upper bound, which is the mask's, too; infinite where there is none.
        statistic: "sum", "abs_sum", "positive", or None for no sums.
        algorithm: of `gaia_fast.ops.convolution.packing`; None takes the cheapest.
        backend: "cpu" or "torch"; None for "cpu".

    Returns:
        y, (N, K, H', W') channels-last; and the sums (N, K), None where none were asked for. Accumulated in float32.
        F(4 x 4, 3 x 3) rounds about eight times as much as PyTorch's own convolution, F(2 x 2, 3 x 3) twice.

    Raises:
        BackendError: wrong shapes or dtypes, or a backend that cannot run here.

    Deterministic: an image's outputs depend on its shape, the algorithm, the instruction-set level and the size of the
    processor's second-level cache, on nothing else.
    """
    if statistic is not None and statistic not in STATISTICS:
        raise BackendError(f"statistic={statistic!r} does not exist; choose from {tuple(STATISTICS)}")
    groups = weights.groups
    inputs = weights.shape[1] * groups if input_size is None else weights.shape[0]
    if maps.check_map(x, "x").shape[1] != inputs:
        raise BackendError(f"x has {x.shape[1]} channels, the weights {tuple(weights.shape)} take {inputs}")
    shape = weights.shape
    if input_size is not None:
        shape = torch.Size((shape[1] * groups, shape[0] // groups, *shape[2:]))
        reached = output_size(torch.Size((1, 1, *input_size)), shape, stride, padding, dilation)
        if dilation != (1, 1) or reached != tuple(x.shape[2:]):
            raise BackendError(
                f"no convolution with stride {stride}, padding {padding} and no dilation makes {tuple(x.shape[2:])} "
                f"positions of {input_size}"
            )
    height, width = input_size or output_size(x.shape, shape, stride, padding, dilation)
    outputs = shape[0]
    if height < 1 or width < 1:
        raise BackendError(f"x of shape {tuple(x.shape)} is smaller than the window {tuple(weights.shape[2:])}")
    for name, each in (("residual", residual), ("relu_mask", relu_mask), ("skip", skip)):
        if each is not None:
            maps.check_same(each, name, torch.Size((x.shape[0], outputs, height, width)), x.dtype, x.device)
    for name, each in (("bias", bias), ("scale", scale)):
        if each is not None:
            maps.check_same(each, name, torch.Size((outputs,)), x.dtype, x.device)
    if backend == "torch":
        return convolution_reference(
            x,
            weights.weight,
            bias,
            residual,
            relu_mask,
            scale,
            skip,
            stride,
            padding,
            dilation,
            input_size,
            activation,
            statistic,
            groups,
        )
    if backend not in (None, "cpu"):
        raise BackendError(f"backend={backend!r} has no convolution; choose from ('cpu', 'torch')")
    maps.backend_name("cpu", x)
    if x.dtype != torch.float32 or not takes(weights.weight.new_empty(()).expand(shape), groups):
        raise BackendError(
            f"the C++ convolution takes float32 and groups of a divisor or a multiple of {NR} channels, as many in as "
            f"out, not {x.dtype} and weights {tuple(weights.shape)} in {groups} groups; use backend='torch'"
        )
    if x.shape[0] == 0:
        sums = None if statistic is None else x.new_empty((0, outputs))
        return x.new_empty((0, outputs, height, width)), sums
    if input_size is None:
        parts = [Part(weights, stride, padding, dilation)]
    else:
        parts = adjoint_parts(weights.weight, stride, padding, groups)
    vectors = [None if each is None else each.contiguous() for each in (bias, scale)]
    epilogue = vectors[0], residual, relu_mask, vectors[1], skip
    return convolution_cpu(x, parts, algorithm, *epilogue, activation, statistic, (height, width))
