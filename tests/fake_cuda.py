"""A CUDA without a GPU, as far as what records, replays and times graphs can tell: its tensors lie on the CPU."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from gaia_fast.compiler.runtimes.runner import Guard, no_guard


class Event:
    """A look at the device's clock; has happened when it is recorded, since all is done at once."""

    cuda: "FakeCuda"
    waited = 0

    def __init__(self, enable_timing: bool = False) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = self.cuda.clock

    def synchronize(self) -> None:
        Event.waited += 1

    def elapsed_time(self, end: "Event") -> float:
        return end.at - self.at


class Stream:
    """A stream of a device."""

    def __init__(self, device: Any = None) -> None:
        self.device = device

    def wait_stream(self, other: "Stream") -> None: ...

    def wait_event(self, event: object) -> None: ...

    def record_event(self) -> Event:
        return Event()


class Graph:
    """What was recorded, as functions to call again."""

    cuda: "FakeCuda"

    def __init__(self) -> None:
        self.recorded: list[Callable[[], object]] = []
        self.names: list[str] = []

    def capture_begin(self) -> None:
        self.cuda.recording = self
        self.cuda.graphs.append(self)

    def capture_end(self) -> None:
        self.cuda.recording = None

    def replay(self) -> None:
        with _disable_current_modes():
            for each in self.recorded:
                each()
        self.cuda.clock += self.cuda.milliseconds_a_replay


class _Tape(TorchDispatchMode):
    """Records operators, to be run again on the same memory."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self._graph = graph

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = {each.untyped_storage().data_ptr() for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        made = [each for each in tree_leaves(result) if isinstance(each, Tensor)]
        own = [each.untyped_storage().data_ptr() not in given for each in made]  # no view, nor written in place

        def again() -> None:
            new = [each for each in tree_leaves(func(*args, **kwargs)) if isinstance(each, Tensor)]
            for old, each, is_own in zip(made, new, own, strict=True):
                if is_own:
                    old.copy_(each)

        self._graph.recorded.append(again)
        if any(own) or func._schema.is_mutable:
            self._graph.names.append(func._schema.name.removeprefix("aten::"))
        return result


class FakeCuda:
    """Stands for torch.cuda: two devices, of which another than that of the images recorded first.

    Args:
        monkeypatch: puts torch.cuda back.
        milliseconds_a_replay: by which a replay moves the clock, beside the kernels in it.

    Attributes:
        clock: in milliseconds.
        recording: the graph that is being recorded.
        graphs: all that were.
        new_graph: what stands for torch.cuda.CUDAGraph.
        records_operators: whether PyTorch's operators are recorded, or only what `run` and `kernel` add.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, milliseconds_a_replay: float = 0.0) -> None:
        self.clock, self.milliseconds_a_replay = 0.0, milliseconds_a_replay
        self.first_recorded_on = Stream("another device")
        self.recording: Graph | None = None
        self.graphs: list[Graph] = []
        self.records_operators = False
        self.new_graph: type[Graph] = type("FakeGraph", (Graph,), {"cuda": self})
        for name, stand_in in {
            "Event": type("FakeEvent", (Event,), {"cuda": self}),
            "Stream": Stream,
            "CUDAGraph": self.new_graph,
            "graph": self.graph,
            "device": lambda device: contextlib.nullcontext(),
            "stream": lambda stream: contextlib.nullcontext(),
            "current_stream": Stream,
            "synchronize": lambda: None,
            "_sleep": lambda cycles: None,
        }.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)

    @contextlib.contextmanager
    def graph(self, graph: Graph, stream: Stream | None = None, capture_error_mode: str = "") -> Iterator[None]:
        """What PyTorch does: without a stream, that on which the process recorded first."""
        stream = stream or self.first_recorded_on
        # Work on this device is none of another device's stream.
        self.recording = graph if stream.device == torch.device("cpu") else Graph()
        self.graphs.append(graph)
        try:
            with _Tape(self.recording) if self.records_operators else contextlib.nullcontext():
                yield
        finally:
            self.recording = None

    def run(self, x: Tensor, guard: Guard = no_guard) -> tuple[Tensor, ...]:
        """A program: the sums of the first columns, and, while that is recorded, how to do it again."""
        out = x[..., 0].flatten(1).sum(1)
        if self.recording is not None and not self.records_operators:
            self.recording.recorded.append(lambda: out.copy_(x[..., 0].flatten(1).sum(1)))
        return (out,)

    def kernel(self, milliseconds: float, result: Callable[[], object] = object) -> Callable[[], object]:
        """Returns a call of a kernel that takes so long; while a graph is recorded it is kept, not run."""

        def run() -> object:
            if self.recording is not None:
                self.recording.recorded.append(run)
            else:
                self.clock += milliseconds
            return result()

        return run
