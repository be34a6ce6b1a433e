"""A convolution, or the adjoint of a strided one, as convolutions that each make some positions of one map.

The adjoint of a convolution of stride s puts a gradient s positions apart and adds up. Seen from a position i of the
map it leads to, only every s-th tap t of the window meets a gradient, those with (i + padding - t) divisible by s: the
positions with one remainder of s are a plain convolution of the gradients with every s-th tap, turned around.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gaia_fast.ops.convolution.packing import Weights

Pair = tuple[int, int]


@dataclass(frozen=True)
class Part:
    """A convolution that makes the positions begin, begin + step, ... of a map, axis by axis.

    Attributes:
        weights: (K, C / groups, height, width); a height or width of 0 leaves only what is behind the convolution.
        padding: may be negative.
    """

    weights: Weights
    stride: Pair
    padding: Pair
    dilation: Pair
    begin: Pair = (0, 0)
    step: Pair = (1, 1)

    def positions(self, out: Pair) -> Pair:
        """How many positions of a map of this size it makes, axis by axis."""
        down, across = (-(-(size - b) // s) for size, b, s in zip(out, self.begin, self.step, strict=True))
        return down, across


def adjoint_parts(weight: Tensor, stride: Pair, padding: Pair, groups: int = 1) -> list[Part]:
    """The parts of the adjoint of a convolution with this (C, K / groups, height, width) weight.

    It leads from C channels to K.
    """
    # (groups, C / groups, K / groups, ...) to (K, C / groups, ...)
    exchanged = weight.detach().unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    axes = [
        [_taps(remainder, k, s, p) for remainder in range(s)]
        for k, s, p in zip(weight.shape[2:], stride, padding, strict=True)
    ]
    parts = []
    for i, (rows, above) in enumerate(axes[0]):
        for j, (columns, left) in enumerate(axes[1]):
            chosen = exchanged[:, :, rows][:, :, :, columns].contiguous()
            parts.append(Part(Weights(chosen, groups), (1, 1), (above, left), (1, 1), (i, j), stride))
    return parts


def _taps(remainder: int, kernel: int, stride: int, padding: int) -> tuple[list[int], int]:
    """The taps that meet a gradient at positions of this remainder, last to first, and the padding they need."""
    first = (remainder + padding) % stride
    taps = list(range(first, kernel, stride))[::-1]
    return taps, max(len(taps), 1) - 1 - (remainder + padding - first) // stride


def output_size(x: torch.Size, weight: torch.Size, stride: Pair, padding: Pair, dilation: Pair) -> Pair:
    """(H', W') of the convolution of a map with weights of these shapes; less than 1 where no window fits."""
    height, width = (
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, p, d in zip(x[2:], weight[2:], stride, padding, dilation, strict=True)
    )
    return height, width
