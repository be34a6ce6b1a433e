"""Recording without a GPU: a fake CUDA of two devices, as far as the recorder can tell."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from gaia_fast import Gaia, GaiaA, GaiaZ, reference
from gaia_fast.compiler import runtimes
from gaia_fast.compiler.ir.results import LOGITS, PRECONDITIONS, ResultNames
from gaia_fast.compiler.program import Program
from gaia_fast.compiler.runtimes import Runner, checked
from gaia_fast.compiler.runtimes.checked import Checks, ChecksInLaunches
from gaia_fast.compiler.runtimes.fixed_sizes import FixedSizes
from gaia_fast.compiler.runtimes.recorded import Recorded, check_recordable
from gaia_fast.compiler.runtimes.runner import Guard, no_guard
from gaia_fast.engines.compiled import CompiledEngine
from gaia_fast.errors import CompilationError, InputError, NonFiniteError
from gaia_fast.inspection import guards

import zoo
from cases import TARGETS
from fake_cuda import Event, FakeCuda, Graph, Stream
from looks import Looks


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


def images(seed: int) -> Tensor:
    return torch.rand((3, 2, 4, 4), generator=torch.Generator().manual_seed(seed)) * torch.arange(1.0, 5.0)


def test_it_records_on_a_stream_of_the_images_device(cuda: FakeCuda) -> None:
    recorded = Recorded(cuda.run, images(0), None)
    for seed in (1, 2):
        (found,) = recorded(images(seed))
        assert torch.equal(found, images(seed)[..., 0].flatten(1).sum(1))


@pytest.mark.parametrize("does", ["nothing", "no number"])
def test_a_graph_that_does_something_else_is_refused(
    does: str, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
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

    def __init__(self, cuda: FakeCuda) -> None:
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


def test_outputs_are_copied_in_one_launch_and_stay(cuda: FakeCuda) -> None:
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


# ---- with the checks, in a launch before and one behind the program

BACKENDS = ["torch", *(each.backend for each in TARGETS if each.is_emulated)]


@pytest.fixture(params=BACKENDS)
def launches(request: pytest.FixtureRequest, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """The checks' kernels, built for the CPU, where there are such; else plain PyTorch is taken for one."""

    class Kernels(ChecksInLaunches):
        def __init__(self, checks: Checks, images: Tensor, backend: str) -> None:
            super().__init__(checks, images, request.param)

    monkeypatch.setattr(guards, "kernels", None)  # which reads no device's memory
    monkeypatch.setattr(checked, "backend_for", lambda *_: "kernels")
    monkeypatch.setattr(checked, "ChecksInLaunches", Kernels)
    cuda.records_operators = True
    return cuda


class Scored:
    """A program: logits, scores, preconditions."""

    names = (LOGITS, "score", "packed", "component", PRECONDITIONS)

    def __call__(self, x: Tensor, guard: Guard = no_guard) -> tuple[Tensor, ...]:
        logits, packed = x[:, 0, :2].flatten(1) * 2, x.flatten(1)
        outputs = (logits, packed.sum(1), packed, x[:, 0, 0, 0] + 0, x[:, 1].flatten(1).amin(1, keepdim=True))
        guard()
        return outputs


def checks_of(model: nn.Module) -> Checks:
    state = guards.ModelGuard(list(model.modules()))
    return Checks(Scored.names, (ResultNames("score", "packed", "component", True),), state)


def fine(outputs: tuple[Tensor, ...]) -> bool:
    answers = outputs[-1]
    assert answers.shape == (3,)
    assert answers.dtype == torch.bool
    assert answers.unique().numel() == 1
    return bool(answers.all())


def test_two_launches_a_copy_and_no_look_around_the_program(launches: FakeCuda) -> None:
    recorded = Recorded(Scored(), images(0) + 1, checks_of(nn.Linear(300, 5)))
    x, Event.waited = images(1) + 1, 0
    with Looks() as looks:
        outputs = recorded(x)
    assert fine(outputs)
    assert looks.waited == []
    assert Event.waited == 1
    assert [each for each in looks.ran if each != "empty_like"] == ["gaia_fast::copy_and_check", "_foreach_copy_"]
    (graph,) = launches.graphs
    assert graph.names[-1] == "gaia_fast::check_results"
    program = launches.new_graph()
    with launches.graph(program, Stream(torch.device("cpu"))):
        Scored()(x)
    assert graph.names == [*program.names, "gaia_fast::check_results"]
    for found, expected in zip(outputs, Scored()(x), strict=False):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_what_is_wrong_is_told_and_forgotten(value: float, launches: FakeCuda) -> None:
    model = nn.Linear(300, 5)
    recorded = Recorded(Scored(), images(0) + 1, checks_of(model))
    x = images(1) + 1
    for image, channel, row, column in ((0, 0, 0, 0), (2, 1, 3, 3), (1, 1, 2, 0)):
        bad = x.clone()
        bad[image, channel, row, column] = value
        assert not fine(recorded(bad))
        assert fine(recorded(x))
    for change in (x - 5, torch.ones_like(x), x * 1e38):  # a precondition, level logits, a logit
        assert not fine(recorded(change))
        assert fine(recorded(x))
    with torch.no_grad():
        before = model.weight.clone()
        model.weight.data[-1, -1] += 1
        assert not fine(recorded(x))
        model.weight.data.copy_(before)
        assert fine(recorded(x))


def test_images_lie_in_any_way(launches: FakeCuda) -> None:
    recorded = Recorded(Scored(), images(0).to(memory_format=torch.channels_last) + 1, checks_of(nn.Linear(3, 5)))
    x = images(1) + 1
    wide = torch.full((3, 4, 4, 8), torch.nan)
    wide[:, ::2, :, 1::2] = x
    for each in (x, x.to(memory_format=torch.channels_last), wide[:, ::2, :, 1::2], x[:1].expand(3, -1, -1, -1)):
        outputs = recorded(each)
        assert fine(outputs)
        assert torch.equal(outputs[2], each.flatten(1))


def test_a_guard_that_raises_leaves_the_next_call_right(launches: FakeCuda) -> None:
    recorded = Recorded(Scored(), images(0) + 1, checks_of(nn.Linear(3, 5)))

    def guard() -> None:
        raise KeyError

    bad = images(1) - 5
    for x in (bad, images(1) + 1):
        with pytest.raises(KeyError):
            recorded(x, guard)
    assert fine(recorded(images(2) + 1))
    assert not fine(recorded(bad))


def test_no_memory_for_the_outputs(launches: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded, x = Recorded(Scored(), images(0) + 1, checks_of(nn.Linear(3, 5))), images(1) + 1

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    before = recorded._done
    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty_like", full)
        with pytest.raises(torch.OutOfMemoryError):
            recorded(x)
    assert recorded._done is not before, "the next call waits for what was started"
    assert fine(recorded(x))


def test_a_launch_that_was_not_seen_to_end_is_not_fine(launches: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded, x = Recorded(Scored(), images(0) + 1, checks_of(nn.Linear(3, 5))), images(1) + 1
    monkeypatch.setattr(Graph, "replay", lambda self: None)
    assert not fine(recorded(x))


@pytest.mark.parametrize("broken", ["never ends", "always fine"])
def test_a_graph_that_does_not_check_is_refused(
    broken: str, launches: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    if broken == "never ends":
        monkeypatch.setattr(ChecksInLaunches, "launches", 0)
    else:
        monkeypatch.setattr(ChecksInLaunches, "failures", 0)
    with pytest.raises(CompilationError, match="a CUDA graph of 3 images does not check them"):
        Recorded(Scored(), images(0) + 1, checks_of(nn.Linear(3, 5)))


def test_others_failures_are_never_taken_for_fine(launches: FakeCuda) -> None:
    """What another thread's images do to the counts before they are read makes a call look closer, never less."""
    recorded, x = Recorded(Scored(), images(0) + 1, checks_of(nn.Linear(3, 5))), images(1) + 1

    def meanwhile(other: Tensor) -> Guard:
        def guard() -> None:
            recorded(other)

        return guard

    assert not fine(recorded(x, meanwhile(x - 5)))
    assert not fine(recorded(x - 5, meanwhile(x)))
    assert fine(recorded(x, meanwhile(x)))


def test_several_threads(launches: FakeCuda) -> None:
    recorded = Recorded(Scored(), images(0) + 1, checks_of(nn.Linear(3, 5)))
    wrong: list[str] = []

    def work(seed: int) -> None:
        good = images(seed) + 1
        for index in range(20):
            x = good - 5 if (index + seed) % 4 == 0 else good
            outputs = recorded(x)
            if not torch.equal(outputs[2], x.flatten(1)):
                wrong.append("images of another thread")
            if fine(outputs) and x is not good:
                wrong.append("taken for fine")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong
    assert fine(recorded(images(1) + 1))


def test_without_kernels_they_are_plain_pytorch(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "kernels", None)
    cuda.records_operators = True
    recorded, x = Recorded(Scored(), images(0) + 1, checks_of(nn.Linear(3, 5))), images(1) + 1
    *_, answers = recorded(x)
    assert answers.tolist() == [True] * 3
    x[1] -= 5
    *_, answers = recorded(x)
    assert answers.tolist() == [True, False, True]


# ---- in the compiled engine


@pytest.fixture
def recording(launches: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    make = runtimes.make_runner

    def make_runner(
        runtime: str, program: Program, example: Tensor, dynamic: bool, checks: Checks | None, *others: Any
    ) -> Runner:
        run = make(runtime, program, example, dynamic, None, *others)
        x = example.contiguous()
        return FixedSizes(lambda images: Recorded(run, x[:1].expand(images, -1, -1, -1), checks))

    monkeypatch.setattr(runtimes, "checks_results", lambda runtime, x: True)
    monkeypatch.setattr(runtimes, "checks_memory", lambda runtime, x: True)
    monkeypatch.setattr(runtimes, "make_runner", make_runner)
    return launches


def build(name: str) -> Callable[[nn.Module], Any]:
    if name == "both":
        return lambda model: Gaia(model, scores=("gaia-z", "gaia-a"), engine="compiled", runtime="eager")
    make = {"gaia-z": GaiaZ, "gaia-a": GaiaA}[name]
    return lambda model: make(model, engine="compiled", runtime="eager")


each_detector = pytest.mark.parametrize("name", ["gaia-z", "gaia-a", "both"])


@each_detector
def test_a_call_of_a_detector_waits_for_one_event(
    name: str, recording: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = zoo.images(3)
    detector = build(name)(zoo.build("strided_shortcut")).prepare(x)
    expected = detector(x)
    monkeypatch.setattr(CompiledEngine, "_find_failures", None)
    Event.waited = 0
    with Looks() as looks:
        found = detector(x)
    assert Event.waited == 1
    assert looks.waited == []
    launched = [each for each in looks.ran if each not in ("empty_like", "detach", "alias", "view")]
    assert launched == ["gaia_fast::copy_and_check", "_foreach_copy_"]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@each_detector
def test_errors_are_those_of_other_runtimes(name: str, recording: FakeCuda) -> None:
    x = zoo.images(3)
    detector = build(name)(zoo.build("strided_shortcut")).prepare(x)
    bad = x.clone()
    bad[1, 0, 0, 0] = torch.nan
    with pytest.raises(InputError, match="images 1 of the batch"):
        detector(bad)
    with pytest.raises(InputError, match="images 1 of the batch"):
        detector(bad[:2])  # filled up
    huge = x.clone()
    huge[2].fill_(3e38)
    with pytest.raises(NonFiniteError, match="a logit of images 2 of"):
        detector(huge)
    detector(x)
    for images in (1, 2, 5, 7):
        detector(zoo.images(images))


def test_a_write_past_pytorch_is_seen(recording: FakeCuda) -> None:
    model, x = zoo.build("strided_shortcut"), zoo.images(2)
    detector = GaiaZ(model, engine="compiled", runtime="eager").prepare(x)
    before = detector(x)
    model.get_parameter("residual.0.weight").data.neg_()
    truth = reference.gaia_z(model, x).score
    torch.testing.assert_close(detector(x), truth, rtol=1e-5, atol=0)
    assert not torch.allclose(before, truth, rtol=1e-2)


def test_closed_windows_are_scored_by_hooks(recording: FakeCuda) -> None:
    model, good, bad = zoo.sometimes_closed()
    detector = GaiaZ(model, engine="compiled", runtime="eager").prepare(good)
    x = torch.cat([good[:1], bad])
    torch.testing.assert_close(detector(x), GaiaZ(model, engine="hooks")(x), rtol=1e-6, atol=0)


def test_the_host_is_told_on_the_host_whatever_the_default_device(launches: FakeCuda) -> None:
    x = images(0) + 1
    with torch.device("meta"):
        recorded = Recorded(Scored(), x, checks_of(nn.Linear(300, 5, device="cpu")))
        assert fine(recorded(x))


def test_programs_that_make_integers_of_numbers_are_not_recorded() -> None:
    def indices(x: Tensor) -> Tensor:
        return torch.arange(5)[(x.flatten(1)[:, :1] * 2).long()]

    def mask(x: Tensor) -> Tensor:
        return (x > 0).to(torch.float32).to(torch.bool)

    with pytest.raises(CompilationError, match="makes integers of numbers"):
        check_recordable(make_fx(indices, tracing_mode="fake")(images(0)))
    check_recordable(make_fx(mask, tracing_mode="fake")(images(0)))


def test_whether_replays_repeat(launches: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = Recorded(Scored(), images(0) + 1, checks_of(nn.Linear(300, 5)))
    assert recorded.repeats(images(1) + 1)
    replay = recorded._graph.replay

    def shaken() -> None:
        replay()
        recorded._copies._tensors[0].add_(torch.rand(1))

    monkeypatch.setattr(recorded._graph, "replay", shaken)
    assert not recorded.repeats(images(1) + 1)
