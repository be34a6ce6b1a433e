"""Weights as the C++ convolution reads them, and which of its forms is the cheapest for a map.

Winograd's minimal filtering F(m x m, 3 x 3) makes m x m outputs of (m + 2) x (m + 2) inputs d and the filter g with
(m + 2)^2 products instead of 9 m^2:

    Y = A^T [(G g G^T) * (B^T d B)] A

with Cook-Toom matrices for the points 0, 1, -1, infinity (m = 2) and 0, 1, -1, 1/2, -2, infinity (m = 4); the last two
instead of 2 and -2 because they round less. G g G^T is made here, in float64; B and A are in csrc/cpu/convolution.h.

Source: A. Lavin and S. Gray, Fast Algorithms for Convolutional Neural Networks (2016).
"""

from functools import lru_cache

import torch
from torch import Tensor

from gaia_fast.backends import kernels

WINDOWS, F2, F4 = 1, 2, 4  # the forms, named by the side of the outputs that are made together

# Output channels that are packed together, and inputs that are multiplied before the next outputs' turn: what the
# extension was compiled for. Without it nothing is packed, and the op takes the same weights.
GROUP: int = getattr(kernels, "PACKED_GROUP", 16)
DEPTH: int = getattr(kernels, "PACKED_DEPTH", 256)

# Reading one weight from memory costs as much as multiplying it with so many rows.
_READING = 20

_POINTS = {F2: (0.0, 1.0, -1.0), F4: (0.0, 1.0, -1.0, 0.5, -2.0)}


class Weights:
    """A convolution's weights, packed for each form when it is first used.

    Args:
        weight: (K, C, height, width) float32; K a multiple of 16, one group.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight.detach()
        self._packed: dict[int, Tensor] = {}

    @property
    def shape(self) -> torch.Size:
        return self.weight.shape

    def packed(self, form: int) -> Tensor:
        """For each position of the form, in order of use: DEPTH inputs, of those GROUP outputs, of those each input."""
        if form not in self._packed:
            outputs, inputs = self.shape[:2]
            if form == WINDOWS:
                by_position = self.weight.permute(2, 3, 1, 0).reshape(1, -1, outputs)
            else:
                g = _filter_matrix(form).to(self.weight.device)
                by_position = torch.einsum("ia,kcab,jb->ijck", g, self.weight.double(), g).reshape(-1, inputs, outputs)
            grouped = by_position.to(torch.float32).unflatten(2, (-1, GROUP)).permute(0, 2, 1, 3)
            parts = [part.flatten(1) for part in grouped.split(DEPTH, dim=2)]
            # Chains keep addresses: a thread that packs at the same time must not replace what another was given.
            self._packed.setdefault(form, torch.cat(parts, dim=1).contiguous())
        return self._packed[form]


@lru_cache
def _filter_matrix(form: int) -> Tensor:
    """G: a row for each point a, 1, a, a^2 over the product of its distances from the others; then infinity's."""
    points = _POINTS[form]
    rows = []
    for point in points:
        distance = 1.0
        for other in points:
            distance *= point - other if other != point else 1.0
        rows.append([point**power / distance for power in range(3)])
    return torch.tensor([*rows, [0.0, 0.0, 1.0]], dtype=torch.float64)


@lru_cache(maxsize=1024)
def cheapest_form(
    weight: tuple[int, ...],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    images: int,
    out: tuple[int, int],
) -> int:
    """The form that multiplies and reads least, for weights of this shape and so many images of output size `out`.

    With few positions the time goes into reading weights, of which F(4 x 4) has four times as many.
    """
    _, inputs, height, width = weight
    costs = {WINDOWS: height * width * (images * out[0] * out[1] + _READING)}
    if (height, width) == (3, 3) and stride == dilation == (1, 1) and inputs % GROUP == 0:
        for form in (F2, F4):
            tiles = -(-out[0] // form) * -(-out[1] // form)
            costs[form] = (form + 2) ** 2 * (images * tiles + _READING)
    return min(costs, key=lambda form: costs[form])
