"""One CUDA graph for each number of images: a whole program for the price of a launch."""

import threading

import torch
from torch import Tensor, fx

from gaia_fast.compiled.batch import repeated
from gaia_fast.compiled.modes.inductor import Frozen
from gaia_fast.compiled.modes.runner import Meanwhile, nothing
from gaia_fast.compiled.modes.sizes import FixedSizes
from gaia_fast.errors import BackendError

_WARM_UP = 3  # the first runs choose algorithms and allocate workspaces, which a graph must not


class CudaGraph(FixedSizes):
    """Records the program, compiled by Inductor, into a CUDA graph with buffers of its own.

    Raises:
        BackendError: the images are not on a CUDA device. CompilationError: the compiler failed.
    """

    def __init__(self, graph: fx.GraphModule, example: Tensor) -> None:
        if example.device.type != "cuda":
            raise BackendError(f"mode='cudagraph' needs a CUDA device; the images are on {example.device}")
        super().__init__(lambda images: _Recorded(graph, repeated(example, images)))


class _Recorded:
    def __init__(self, graph: fx.GraphModule, x: Tensor) -> None:
        self._lock = threading.Lock()
        self._images = x.clone()
        self._done: torch.cuda.Event | None = None
        self._run = run = Frozen(graph, x)  # kept: the graph reads its weights, and holds on to nothing itself
        with torch.cuda.device(x.device), torch.no_grad():
            beside = torch.cuda.Stream()
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):
                for _ in range(_WARM_UP):
                    run(self._images)
            torch.cuda.current_stream().wait_stream(beside)
            self._graph = torch.cuda.CUDAGraph()
            # Other threads may go on: by default whatever they allocate meanwhile would end the recording.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._outputs = run(self._images)

    @torch.no_grad()
    def __call__(self, x: Tensor, meanwhile: Meanwhile = nothing) -> tuple[Tensor, ...]:
        # One thread at a time: the buffers are shared. The copies are ordered by the caller's stream; another thread's
        # stream is made to wait by the event below.
        with self._lock, torch.cuda.device(x.device):
            stream = torch.cuda.current_stream()
            if self._done is not None:
                stream.wait_event(self._done)
            self._images.copy_(x)
            self._graph.replay()
            outputs = tuple(each.clone() for each in self._outputs)
            self._done = stream.record_event()
        meanwhile()
        return outputs
