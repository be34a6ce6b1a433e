"""PyTorch's compiler, with the weights frozen into the program and packed for the machine."""

import torch
from torch import Tensor, fx

from gaia_fast.compiled.batch import repeated
from gaia_fast.compiled.checked import Checks
from gaia_fast.compiled.modes.recorded import Recorded
from gaia_fast.compiled.modes.runner import Meanwhile, Runner, nothing
from gaia_fast.compiled.modes.sizes import FixedSizes
from gaia_fast.errors import CompilationError, first_line


class Inductor(FixedSizes):
    """Compiles the graph for each number of images that is prepared; the first takes tens of seconds.

    On a CUDA device what it made is recorded into a CUDA graph.

    Args:
        graph: the program.
        example: images, of which the first is enough.
        checks: see `Recorded`; on other devices nothing is recorded.

    Raises:
        CompilationError: the compiler failed; on the CPU it needs a C++ compiler.
    """

    def __init__(self, graph: fx.GraphModule, example: Tensor, checks: Checks | None = None) -> None:
        def make(images: int) -> Runner:
            x = repeated(example, images)
            run = Frozen(graph, x)
            return Recorded(run, x, checks) if x.device.type == "cuda" else run

        super().__init__(make)


class Frozen:
    """The graph, compiled for batches like `x`, weights frozen in; run once already.

    Raises:
        CompilationError: the compiler failed.
    """

    def __init__(self, graph: fx.GraphModule, x: Tensor) -> None:
        # An own copy of the module: PyTorch keeps what it compiled by code, and forgets all beyond a few sizes.
        own = fx.GraphModule(graph, graph.graph)
        self._run = torch.compile(own, fullgraph=True, dynamic=False, options={"freezing": True})
        try:
            self(x)
        except Exception as error:
            raise CompilationError(
                f"PyTorch's compiler failed on the program ({type(error).__name__}: {first_line(error)}); use "
                "mode='eager'"
            ) from error

    @torch.no_grad()
    def __call__(self, x: Tensor, meanwhile: Meanwhile = nothing) -> tuple[Tensor, ...]:
        outputs = tuple(self._run(x))
        meanwhile()
        return outputs
