"""What an engine hands back: the logits, and for each method the score and the abnormality matrix it was made from."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class FeatureMap:
    """An inspected feature map A^l: its name, that of its layer, K_l channels, H_l x W_l positions.

    A layer that is called again makes the map "name (call 2)".
    """

    name: str
    channels: int
    height: int
    width: int

    @property
    def area(self) -> int:
        return self.height * self.width

    @property
    def layer(self) -> str:
        """The name of the module."""
        return self.name.partition(" (call ")[0]


class Result(NamedTuple):
    """What one method makes of a batch.

    Attributes:
        score: (N,) float32.
        maps: the inspected maps, in the order in which the model made them; none where the output component is all.
        packed: (N, sum of K_l): the rows of Lambda without padding, before the division by each map's H_l * W_l; (N, 1)
            where there are no maps.
        output_component: (N,), what each image's row is divided by; None for 1.
    """

    score: Tensor
    maps: tuple[FeatureMap, ...]
    packed: Tensor
    output_component: Tensor | None = None

    def abnormality(self) -> list[Tensor]:
        """Returns E[eps | A^kl] of each layer, (N, K_l) float32 (float64 for float64 models)."""
        columns = self.packed.abs().split([each.channels for each in self.maps] or [1], dim=1)
        eps = [column / area for column, area in zip(columns, [each.area for each in self.maps] or [1], strict=True)]
        if self.output_component is not None:
            eps = [each / self.output_component.unsqueeze(1) for each in eps]
        return eps

    def matrix(self) -> Tensor:
        """Returns the abnormality matrix Lambda of Eq. 12, zero-padded: (N, L, K_max)."""
        return padded_matrix(self.abnormality())


class Measurement(NamedTuple):
    """One batch, measured.

    Attributes:
        logits: (N, C), in the model's dtype.
        results: one for each method that was asked for, in that order.
    """

    logits: Tensor
    results: tuple[Result, ...]


def padded_matrix(abnormality: list[Tensor]) -> Tensor:
    """Returns (N, L, K_max): each (N, K_l) of `abnormality` as a row, padded with zeros."""
    widest = max(each.shape[1] for each in abnormality)
    return torch.stack([torch.nn.functional.pad(each, (0, widest - each.shape[1])) for each in abnormality], dim=1)
