"""PyTorch's compiler, with the weights frozen into the program and packed for the machine."""

import torch
from torch import Tensor, fx

from gaia_fast.compiled.modes.sizes import FixedSizes
from gaia_fast.errors import CompilationError


class Inductor(FixedSizes):
    """Compiles the graph for each number of images that is prepared; the first takes tens of seconds.

    Raises:
        CompilationError: the compiler failed; on the CPU it needs a C++ compiler.
    """

    def __init__(self, graph: fx.GraphModule, example: Tensor) -> None:
        super().__init__(lambda images: _compile(graph, example, images))


def _compile(graph: fx.GraphModule, example: Tensor, images: int) -> "_Compiled":
    repeated = example[:1].expand(images, -1, -1, -1).contiguous()
    compiled = _Compiled(graph)
    try:
        compiled(repeated)
    except Exception as error:
        said = next((line for line in str(error).splitlines() if line.strip()), "")
        raise CompilationError(
            f"mode='inductor' failed to compile the program ({type(error).__name__}: {said}); use another mode"
        ) from error
    return compiled


class _Compiled:
    def __init__(self, graph: fx.GraphModule) -> None:
        # An own copy of the module: PyTorch keeps what it compiled by code, and forgets all beyond a few sizes.
        own = fx.GraphModule(graph, graph.graph)
        self._run = torch.compile(own, fullgraph=True, dynamic=False, options={"freezing": True})

    @torch.no_grad()
    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self._run(x))
