"""A GPU that is played, as far as what records and times CUDA graphs can tell: its tensors lie on the CPU."""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch


class Graph:
    """What was recorded, as functions to call again."""

    playing: "PlayedGpu"

    def __init__(self) -> None:
        self.recorded: list[Callable[[], object]] = []

    def capture_begin(self) -> None:
        self.playing.begin(self)

    def capture_end(self) -> None:
        self.playing.recording = None

    def replay(self) -> None:
        for each in self.recorded:
            each()
        self.playing.clock += self.playing.milliseconds_a_replay


class Event:
    """A look at the device's clock."""

    playing: "PlayedGpu"

    def __init__(self, enable_timing: bool = False) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = self.playing.clock

    def synchronize(self) -> None: ...

    def elapsed_time(self, end: "Event") -> float:
        return end.at - self.at


class Stream:
    def __init__(self, device: Any = None) -> None:
        self.device = device

    def wait_stream(self, other: "Stream") -> None: ...


class PlayedGpu:
    """Keeps a clock, in milliseconds, which kernels and replays move on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, milliseconds_a_replay: float = 0.0) -> None:
        self.clock = 0.0
        self.milliseconds_a_replay = milliseconds_a_replay
        self.graphs: list[Graph] = []
        self.recording: Graph | None = None
        graph, event = (
            type("PlayedGraph", (Graph,), {"playing": self}),
            type("PlayedEvent", (Event,), {"playing": self}),
        )
        for name, stand_in in {
            "CUDAGraph": graph,
            "Event": event,
            "Stream": Stream,
            "current_stream": Stream,
            "stream": lambda stream: contextlib.nullcontext(),
            "_sleep": lambda cycles: None,
        }.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)

    def begin(self, graph: Graph) -> None:
        self.recording = graph
        self.graphs.append(graph)

    def kernel(self, milliseconds: float, result: Callable[[], object] = object) -> Callable[[], object]:
        """Returns a call of a kernel that takes so long; while a graph is recorded it is kept, not run."""

        def run() -> object:
            if self.recording is not None:
                self.recording.recorded.append(run)
            else:
                self.clock += milliseconds
            return result()

        return run
