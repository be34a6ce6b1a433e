"""The authors' way of scoring: full backward passes, weight gradients and all, and two of them for GAIA-A.

Written here, as the peer that the engines are timed against. Nothing in it is slower than it has to be. Only for
networks without in-place ReLUs, which would change the maps whose gradients are kept.
"""

import torch
from torch import Tensor, nn

from gaia_fast.inspection.head import find_head
from gaia_fast.inspection.layers import inspected_layers


class Authors:
    """Scores as the authors do: the mean of eps^2 over all channels (the same ranking as the norm)."""

    def __init__(self, model: nn.Module, layers: list[str] | None, x: Tensor) -> None:
        self.model = model
        self.layers = inspected_layers(model, layers)
        with torch.no_grad():
            self.head = find_head(model, x[:1], None)

    def _forward(self, x: Tensor, modules: list[nn.Module]) -> tuple[Tensor, list[Tensor]]:
        kept: list[Tensor] = []

        def keep(module: nn.Module, args: object, output: Tensor) -> None:
            output.retain_grad()
            kept.append(output)

        handles = [module.register_forward_hook(keep) for module in modules]
        try:
            return self.model(x), kept
        finally:
            for handle in handles:
                handle.remove()

    def gaia_z(self, x: Tensor) -> Tensor:
        logits, maps = self._forward(x, [layer.module for layer in self.layers])
        self.model.zero_grad()
        logits.max(dim=1).values.sum().backward()
        return self._mean_square([(gradient(each) != 0).float().mean((2, 3)) for each in maps])

    def gaia_a(self, x: Tensor) -> Tensor:
        logits, maps = self._forward(x, [self.head.last_module])
        self.model.zero_grad()
        torch.log_softmax(logits, dim=1).sum().backward()
        out = gradient(maps[-1]).mean((2, 3)).abs().mean(1, keepdim=True).sqrt()

        features: list[Tensor] = []
        handle = self.head.module.register_forward_pre_hook(lambda _, args: features.append(args[0]))
        _, maps = self._forward(x, [layer.module for layer in self.layers])
        handle.remove()
        self.model.zero_grad()
        features[0].sum().backward()
        return self._mean_square([gradient(each).mean((2, 3)).abs() / out for each in maps])

    def _mean_square(self, abnormality: list[Tensor]) -> Tensor:
        self.model.zero_grad()
        return torch.cat(abnormality, dim=1).square().mean(1)


def gradient(kept: Tensor) -> Tensor:
    assert kept.grad is not None
    return kept.grad
