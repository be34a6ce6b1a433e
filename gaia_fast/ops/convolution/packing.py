"""Weights as the C++ convolution reads them, and which of its algorithms is the cheapest for a map.

Winograd's minimal filtering F(m x m, 3 x 3) makes m x m outputs of (m + 2) x (m + 2) inputs d and the filter g with
(m + 2)^2 products instead of 9 m^2:

    Y = A^T [(G g G^T) * (B^T d B)] A

with Cook-Toom matrices for the points 0, 1, -1, infinity (m = 2) and 0, 1, -1, 1/2, -2, infinity (m = 4); the last two
instead of 2 and -2 because they round less. G g G^T is made here, in float64; B and A are in csrc/cpu/conv/winograd.h.

Source: A. Lavin and S. Gray, Fast Algorithms for Convolutional Neural Networks (2016).
"""

from enum import IntEnum
from functools import lru_cache

import torch
from torch import Tensor

from gaia_fast.backends import kernels
from gaia_fast.errors import BackendError
from gaia_fast.ops.tuning import WEIGHT_READ_ROWS

# Output channels that are packed together (a panel of columns), panels that lie together (a group), and inputs that are
# summed in one chain: what the extension was compiled for. Without it nothing is packed, and the op takes the same
# weights.
NR: int = getattr(kernels, "PACKED_NR", 16)
PANELS: int = getattr(kernels, "PACKED_PANELS", 4)
KC: int = getattr(kernels, "PACKED_KC", 256)
_CODES: dict[str, int] = getattr(
    kernels, "ALGORITHMS", {"indirect_gemm": 1, "winograd_f2": 2, "grouped": 3, "winograd_f4": 4}
)


class Algorithm(IntEnum):
    """How a convolution is computed, with the numbers that the extension gives them.

    INDIRECT_GEMM multiplies its windows, where they lie, with the weights; WINOGRAD_F2 and WINOGRAD_F4 are
    F(2 x 2, 3 x 3) and F(4 x 4, 3 x 3); GROUPED makes each vector of outputs of its own groups' inputs, and is all that
    there is for more than one group.
    """

    INDIRECT_GEMM = _CODES["indirect_gemm"]
    WINOGRAD_F2 = _CODES["winograd_f2"]
    GROUPED = _CODES["grouped"]
    WINOGRAD_F4 = _CODES["winograd_f4"]


_SIDES = {Algorithm.WINOGRAD_F2: 2, Algorithm.WINOGRAD_F4: 4}  # m
_POINTS = {Algorithm.WINOGRAD_F2: (0.0, 1.0, -1.0), Algorithm.WINOGRAD_F4: (0.0, 1.0, -1.0, 0.5, -2.0)}


def padded(channels: int) -> int:
    """So many channels, padded to whole panels: as they lie in the maps that kernels read and write."""
    return -(-channels // NR) * NR


class Weights:
    """A convolution's weights, packed for each algorithm when it is first used.

    Args:
        weight: (K, C / groups, height, width) float32.
        groups: as in `torch.conv2d`.
    """

    def __init__(self, weight: Tensor, groups: int = 1) -> None:
        self.weight, self.groups = weight.detach(), groups
        self._packed: dict[Algorithm, Tensor] = {}

    @property
    def shape(self) -> torch.Size:
        return self.weight.shape

    def packed(self, algorithm: Algorithm) -> Tensor:
        """In order of use: PANELS of NR outputs; of those each position of the algorithm, KC inputs, panel, and input.

        Outputs are padded with zeros to whole panels. Of GROUPED: NR outputs; of those each tap, and each input.

        Raises:
            BackendError: an algorithm of 3x3 windows, and others.
        """
        if algorithm not in self._packed:
            weight = torch.nn.functional.pad(self.weight, (0, 0) * 3 + (0, padded(self.shape[0]) - self.shape[0]))
            if algorithm is Algorithm.GROUPED:
                panels = weight.unflatten(0, (-1, NR)).permute(0, 3, 4, 2, 1)
                return self._packed.setdefault(algorithm, panels.flatten().float())
            if algorithm in _SIDES and weight.shape[2:] != (3, 3):
                raise BackendError(f"{algorithm.name} takes 3x3 windows, not {tuple(weight.shape[2:])}")
            # What the kernels read, whatever the weights are.
            packed = torch.empty(packed_size(self, algorithm), dtype=torch.float32, device=weight.device)
            groups = weight.split(PANELS * NR)  # what becomes of one stays in the caches
            sizes = [packed.numel() // len(weight) * len(group) for group in groups]
            for group, part in zip(groups, packed.split(sizes), strict=True):
                _pack_group(group, algorithm, part)
            # Executables keep addresses: a thread that packs at the same time must not replace what another was given.
            self._packed.setdefault(algorithm, packed)
        return self._packed[algorithm]


def _pack_group(weight: Tensor, algorithm: Algorithm, packed: Tensor) -> None:
    """Writes the weights of a group's outputs in the order of `Weights.packed`."""
    outputs, inputs = weight.shape[:2]
    by_tap = weight.permute(2, 3, 1, 0)
    if algorithm is Algorithm.INDIRECT_GEMM:
        by_position = by_tap.reshape(1, -1, outputs)
    else:
        taps = by_tap.reshape(9, -1).double()
        by_position = (_filter_transform(algorithm).to(weight.device) @ taps).view(-1, inputs, outputs)
    panels = by_position.unflatten(2, (-1, NR)).transpose(1, 2)
    rows = packed.view(len(panels), -1)
    for part in panels.split(KC, dim=2):
        chunk, rows = rows.tensor_split([part[0].numel()], dim=1)
        chunk.unflatten(1, part.shape[1:]).copy_(part)


@lru_cache
def _filter_transform(algorithm: Algorithm) -> Tensor:
    """From the nine taps of a filter g to the positions of G g G^T, ((m + 2)^2, 9)."""
    g = _filter_matrix(algorithm)
    return torch.kron(g, g)


def _filter_matrix(algorithm: Algorithm) -> Tensor:
    """G: a row for each point a, 1, a, a^2 over the product of its distances from the others; then infinity's."""
    points = _POINTS[algorithm]
    rows = []
    for point in points:
        distance = 1.0
        for other in points:
            distance *= point - other if other != point else 1.0
        rows.append([point**power / distance for power in range(3)])
    return torch.tensor([*rows, [0.0, 0.0, 1.0]], dtype=torch.float64)


def packed_size(weights: Weights, algorithm: Algorithm) -> int:
    """How many numbers weights are, packed for an algorithm."""
    outputs, inputs, height, width = weights.shape
    side = _SIDES.get(algorithm, 0) + 2
    return padded(outputs) * inputs * (side * side if algorithm in _SIDES else height * width)


def algorithms(weight: tuple[int, ...], stride: tuple[int, int], dilation: tuple[int, int]) -> list[Algorithm]:
    """The algorithms that a convolution of one group with weights of this shape can be computed by."""
    _, inputs, height, width = weight
    tiles = (height, width) == (3, 3) and stride == dilation == (1, 1) and inputs % NR == 0
    return [Algorithm.INDIRECT_GEMM, *_SIDES] if tiles else [Algorithm.INDIRECT_GEMM]


@lru_cache(maxsize=1024)
def cheapest_algorithm(
    weight: tuple[int, ...],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    images: int,
    out: tuple[int, int],
) -> Algorithm:
    """The algorithm that multiplies and reads least, for weights of this shape and so many images of output size `out`.

    With few positions the time goes into reading weights, of which F(4 x 4) has four times as many.
    """
    costs = {}
    for algorithm in algorithms(weight, stride, dilation):
        m = _SIDES.get(algorithm, 1)
        products = (m + 2) ** 2 if m > 1 else weight[2] * weight[3]
        costs[algorithm] = products * (images * -(-out[0] // m) * -(-out[1] // m) + WEIGHT_READ_ROWS)
    return min(costs, key=lambda algorithm: costs[algorithm])
