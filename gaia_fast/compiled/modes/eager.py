"""PyTorch itself, operator by operator."""

import torch
from torch import Tensor, fx


class Eager:
    """Runs the graph as it is; any dtype, any device, any number of images."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self._graph = graph

    @torch.no_grad()
    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        return self._graph(x)
