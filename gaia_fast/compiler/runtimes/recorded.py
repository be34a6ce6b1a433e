"""A CUDA graph: a program for one number of images, for the price of a launch."""

import threading
from collections.abc import Sequence

import torch
from torch import Tensor, fx

from gaia_fast.compiler.runtimes.checked import Checks, ChecksInLaunches
from gaia_fast.compiler.runtimes.runner import Guard, Runner, no_guard
from gaia_fast.errors import CompilationError
from gaia_fast.ops.partial_sums import GraphTickets

_WARM_UP = 3  # the first runs choose algorithms and allocate workspaces, which a graph must not
_ROUNDS = 5
_MOST_OFF = 0.05  # of the largest value: the same kernels, which may add up in another order
_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class _Copies:
    """Copies of tensors that stay where they are, in one launch, each in memory of its own.

    Not side by side: who keeps a score would keep Lambda with it.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = list(tensors)
        self._is_together = [
            each.is_contiguous() and each.numel() > 0 and each.ndim > 0 and each.stride(-1) == 1 for each in tensors
        ]
        self._together = [each for each, is_together in zip(tensors, self._is_together, strict=True) if is_together]
        # A launch takes tensors of one dtype: where there are several, the bytes of the narrowest.
        size = min((each.element_size() for each in self._together), default=1)
        dtypes = {each.dtype for each in self._together}
        self._viewed = _OF_SIZE[size] if len(dtypes) > 1 else None
        self._sources = self._views(self._together)

    def __call__(self) -> tuple[Tensor, ...]:
        together = [torch.empty_like(each) for each in self._together]
        if together:
            torch._foreach_copy_(self._views(together), self._sources)
        made = iter(together)
        return tuple(
            next(made) if is_together else each.clone()
            for each, is_together in zip(self._tensors, self._is_together, strict=True)
        )

    def _views(self, tensors: list[Tensor]) -> list[Tensor]:
        return tensors if self._viewed is None else [each.view(self._viewed) for each in tensors]


def check_recordable(graph: fx.GraphModule) -> None:
    """Raises CompilationError where a program makes integers of the images' numbers.

    Graphs are tried on images that are none; an index that NaN was made into would end everything on the device.
    """
    for node in graph.graph.nodes:
        if node.target is not torch.ops.aten._to_copy.default:
            continue
        given, made = node.args[0].meta["val"].dtype, node.meta["val"].dtype
        if given.is_floating_point and not made.is_floating_point and made is not torch.bool:
            raise CompilationError(
                f"the program makes integers of numbers ({node}), which cannot be tried with NaN on a device; "
                "use runtime='eager'"
            )


class Recorded:
    """Records what a runner does, and checks around it, into a CUDA graph with buffers of its own.

    Args:
        run: what is recorded; it may not wait for the device.
        x: a batch, contiguous; the graph takes as many images.
        checks: what else is recorded, for one output more: (N,) bools, whether an image's results mean something; where
            there are kernels for it, whether the whole batch's do, told on the CPU, and a call returns when the device
            is done. None for the program alone.

    Raises:
        CompilationError: replayed on other images than were recorded, the graph does not do what the runner does.
    """

    def __init__(self, run: Runner, x: Tensor, checks: Checks | None) -> None:
        self._lock = threading.Lock()
        self._images = x.clone(memory_format=torch.contiguous_format)
        self._in_launches: ChecksInLaunches | None = None
        self._launches = 0  # of the graph
        self._done: torch.cuda.Event | None = None
        tickets = GraphTickets()
        self._kept = run, checks, tickets  # the graph reads their tensors, and holds on to nothing itself
        with torch.cuda.device(x.device), torch.no_grad():
            # PyTorch's own stream for recording is the process's, on the device that recorded first: on another one
            # nothing would be in the graph.
            beside, at_once = torch.cuda.Stream(x.device), torch.cuda.Stream(x.device)

            def everything() -> tuple[Tensor, ...]:
                if checks is None:
                    return run(self._images)
                if self._in_launches is not None:
                    outputs = run(self._images)
                    self._in_launches.end(outputs)
                    return outputs
                # On a stream of their own: what asks nothing of the program need not wait for it.
                at_once.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(at_once):
                    before = checks.before(self._images)
                outputs = run(self._images)
                torch.cuda.current_stream().wait_stream(at_once)
                return (*outputs, before & checks.after(outputs))

            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside), tickets:
                if checks is not None:
                    self._in_launches = checks.in_launches(self._images, run(self._images))
                for _ in range(_WARM_UP):
                    everything()
            torch.cuda.current_stream().wait_stream(beside)
            # The warm-up's tensors were freed on one stream while another may still read them.
            torch.cuda.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            # Other threads may go on: by default whatever they allocate meanwhile would end the recording.
            with tickets, torch.cuda.graph(self._graph, stream=beside, capture_error_mode="thread_local"):
                outputs = everything()
            self._copies = _Copies(outputs)
            if self._in_launches is not None:
                self._launches = self._in_launches.launches  # those of the warm-up
            self._check(run, x.roll(1, -1) + 1)

    def _check(self, run: Runner, x: Tensor) -> None:
        """Replays on images that are not those in the buffers: a graph of nothing would give what lies there."""
        for found, expected in zip(self(x), run(x), strict=False):
            if not expected.is_floating_point() or not expected.numel():
                continue
            expected, finite = expected.double(), expected.isfinite()
            off = (found.double() - expected).where(finite, 0).abs().amax()
            if not bool(off <= _MOST_OFF * expected.where(finite, 0).abs().amax()):
                raise CompilationError(
                    f"a CUDA graph of {x.shape[0]} images gives other results than the program in it; "
                    "use runtime='eager'"
                )

        if self._in_launches is not None:
            *_, answers = self(torch.full_like(x, torch.nan))
            if self._in_launches.launches != self._launches or bool(answers.any()):
                raise CompilationError(f"a CUDA graph of {x.shape[0]} images does not check them; use runtime='eager'")

    def repeats(self, x: Tensor) -> bool:
        """Whether two replays give the same bits: some of cuDNN's algorithms add up in any order."""
        first, again = self(x), self(x)
        return all(torch.equal(one, other) for one, other in zip(first, again, strict=True))

    def _replay(self) -> None:
        self._graph.replay()
        self._launches += 1

    def milliseconds(self) -> float:
        """Returns the least that a replay took, of a few."""
        spent = []
        with torch.cuda.device(self._images.device):
            for _ in range(_ROUNDS):
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                self._replay()
                end.record()
                end.synchronize()
                spent.append(start.elapsed_time(end))
        return min(spent)

    @torch.no_grad()
    def __call__(self, x: Tensor, guard: Guard = no_guard) -> tuple[Tensor, ...]:
        # One thread at a time: the buffers are shared. The copies are ordered by the caller's stream; another thread's
        # stream is made to wait by the event below.
        checks = self._in_launches
        with self._lock, torch.cuda.device(x.device):
            stream = torch.cuda.current_stream()
            if self._done is not None:
                stream.wait_event(self._done)
            failures = 0 if checks is None else checks.failures
            try:
                if checks is None:
                    self._images.copy_(x)
                else:
                    checks.copy(x)
                self._replay()
                launch = self._launches
                outputs = self._copies()
            finally:  # also where there is no memory for the outputs: the graph runs all the same
                self._done = done = stream.record_event()
        try:
            guard()
        finally:
            # Until then nothing is told; and who lets go of this now would give away what the graph still writes to.
            if checks is not None:
                done.synchronize()
        return outputs if checks is None else (*outputs, checks.answers(launch, failures))
