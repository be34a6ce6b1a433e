"""PyTorch's compiler, with the weights frozen into the program and packed for the machine."""

import torch
from torch import Tensor, fx

from gaia_fast.backends import has_kernels
from gaia_fast.compiler.frontend.example_batch import repeated
from gaia_fast.compiler.ir.rewriting import copy_of
from gaia_fast.compiler.pipeline import cuda, run_passes
from gaia_fast.compiler.runtimes.checked import Checks
from gaia_fast.compiler.runtimes.fixed_sizes import FixedSizes
from gaia_fast.compiler.runtimes.recorded import Recorded, check_recordable
from gaia_fast.compiler.runtimes.runner import Guard, Runner, no_guard
from gaia_fast.errors import CompilationError, first_line


class Inductor(FixedSizes):
    """Compiles the graph for each number of images that is prepared; the first takes tens of seconds.

    On a CUDA device it is given channels last, and what it made is recorded into a CUDA graph: forward passes alone of
    ResNet34 and ResNet-50 were 1.06 to 2.6 times faster so on an H200, where the compiler copies weights into that
    layout at every call (benchmarks/results/nvidia-h200/engines.json).

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
            if x.device.type == "cuda":
                check_recordable(graph)
                l2_bytes = torch.cuda.get_device_properties(x.device).L2_cache_size
                passes = cuda(images, l2_bytes, has_kernels(x.device, x.dtype))
                return Recorded(Frozen(run_passes(passes, copy_of(graph)), x), x, checks)
            return Frozen(graph, x)

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
                "runtime='eager'"
            ) from error

    @torch.no_grad()
    def __call__(self, x: Tensor, guard: Guard = no_guard) -> tuple[Tensor, ...]:
        outputs = tuple(self._run(x))
        guard()
        return outputs
