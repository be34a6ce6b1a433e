"""Recording without a GPU: a CUDA of two devices that is played, as far as the recorder can tell."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from gaia_fast.compiler.runtimes.recorded import Recorded
from gaia_fast.compiler.runtimes.runner import Guard, no_guard
from gaia_fast.errors import CompilationError

from looks import Looks


class Stream:
    """A stream of a device."""

    def __init__(self, device: Any = None) -> None:
        self.device = device

    def wait_stream(self, other: "Stream") -> None: ...

    def wait_event(self, event: object) -> None: ...

    def record_event(self) -> object:
        return object()


class Graph:
    """What was recorded, as functions to call again."""

    def __init__(self) -> None:
        self.recorded: list[Callable[[], object]] = []

    def replay(self) -> None:
        for each in self.recorded:
            each()


class Cuda:
    """Two devices, of which another than that of the images recorded first; its tensors lie on the CPU."""

    def __init__(self) -> None:
        self.first_recorded_on = Stream("another device")
        self.recording: Graph | None = None

    @contextlib.contextmanager
    def graph(self, graph: Graph, stream: Stream | None = None, capture_error_mode: str = "") -> Iterator[None]:
        """What PyTorch does: without a stream, that on which the process recorded first."""
        stream = stream or self.first_recorded_on
        # Work on this device is none of another device's stream.
        self.recording = graph if stream.device == torch.device("cpu") else Graph()
        yield
        self.recording = None

    def run(self, x: Tensor, guard: Guard = no_guard) -> tuple[Tensor, ...]:
        """The program: the sums of the first columns, and, while that is recorded, how to do it again."""
        out = x[..., 0].flatten(1).sum(1)
        if self.recording is not None:
            self.recording.recorded.append(lambda: out.copy_(x[..., 0].flatten(1).sum(1)))
        return (out,)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    made = Cuda()
    for name, stand_in in {
        "Stream": Stream,
        "CUDAGraph": Graph,
        "graph": made.graph,
        "device": lambda device: contextlib.nullcontext(),
        "stream": lambda stream: contextlib.nullcontext(),
        "current_stream": Stream,
        "synchronize": lambda: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return made


def images(seed: int) -> Tensor:
    return torch.rand((3, 2, 4, 4), generator=torch.Generator().manual_seed(seed)) * torch.arange(1.0, 5.0)


def test_it_records_on_a_stream_of_the_images_device(cuda: Cuda) -> None:
    recorded = Recorded(cuda.run, images(0), None)
    for seed in (1, 2):
        (found,) = recorded(images(seed))
        assert torch.equal(found, images(seed)[..., 0].flatten(1).sum(1))


@pytest.mark.parametrize("does", ["nothing", "no number"])
def test_a_graph_that_does_something_else_is_refused(does: str, cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs: list[Tensor] = []

    def run(x: Tensor, guard: Guard = no_guard) -> tuple[Tensor, ...]:
        outputs.append(x.flatten(1)[:, 0].clone())  # of images that are turned over another one
        return (outputs[-1],)

    def replay(self: Graph) -> None:
        if does == "no number":
            outputs[-1].fill_(torch.nan)

    monkeypatch.setattr(Graph, "replay", replay)
    with pytest.raises(CompilationError, match="CUDA graph of 3 images gives other results"):
        Recorded(run, images(0), None)


class Several:
    """A program of several outputs, of more than one dtype, one with gaps, one empty, and one twice."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda

    def __call__(self, x: Tensor, guard: Guard = no_guard) -> tuple[Tensor, ...]:
        outputs = self.outputs(x)
        if self.cuda.recording is not None:
            self.cuda.recording.recorded.append(
                lambda: [each.copy_(new) for each, new in zip(outputs, self.outputs(x), strict=True)]
            )
        return outputs

    @staticmethod
    def outputs(x: Tensor) -> tuple[Tensor, ...]:
        sums, positive = x.flatten(1).sum(1), x[:, 0, 0] > 0.5
        return sums, x.flatten(1).double(), (x * 2).flatten(1)[:, ::2], positive, x[:, 0, 0, :0], sums


def test_outputs_are_copied_in_one_launch_and_stay(cuda: Cuda) -> None:
    recorded = Recorded(Several(cuda), images(0), None)
    with Looks() as looks:
        first = recorded(images(1))
    assert looks.ran.count("_foreach_copy_") == 1
    assert looks.ran.count("clone") == 2  # with gaps, and empty
    kept = [each.clone() for each in first]
    storages = {each.untyped_storage().data_ptr() for each in first if each.numel()}
    assert len(storages) == 5, "each has its own memory"
    recorded(images(2))
    for each, before in zip(first, kept, strict=True):
        assert torch.equal(each, before)
    for each, expected in zip(first, Several.outputs(images(1)), strict=True):
        assert each.dtype == expected.dtype
        assert torch.equal(each, expected)
