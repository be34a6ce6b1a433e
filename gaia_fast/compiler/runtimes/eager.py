"""PyTorch itself, operator by operator."""

import torch
from torch import Tensor, fx

from gaia_fast.compiler.runtimes.runner import Guard, no_guard


class Eager:
    """Runs the graph as it is; any dtype, any device, any number of images."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self._graph = graph

    @torch.no_grad()
    def __call__(self, x: Tensor, guard: Guard = no_guard) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = self._graph(x)
        guard()
        return outputs
