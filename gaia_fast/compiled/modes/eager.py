"""PyTorch itself, operator by operator."""

import torch
from torch import Tensor, fx

from gaia_fast.compiled.modes.runner import Meanwhile, nothing


class Eager:
    """Runs the graph as it is; any dtype, any device, any number of images."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self._graph = graph

    @torch.no_grad()
    def __call__(self, x: Tensor, meanwhile: Meanwhile = nothing) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = self._graph(x)
        meanwhile()
        return outputs
