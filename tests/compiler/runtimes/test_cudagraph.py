"""Which form of a program is recorded, without a GPU: programs run as they are in place of their recordings."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from gaia_fast import GaiaA, GaiaZ
from gaia_fast.compiler.passes.cudnn_fusion import FUSED
from gaia_fast.compiler.runtimes import cudagraph, fusion_checks
from gaia_fast.compiler.runtimes.checked import Checks
from gaia_fast.compiler.runtimes.cudagraph import CudaGraph, Recording
from gaia_fast.compiler.runtimes.eager import Eager
from gaia_fast.errors import CompilationError
from gaia_fast.inspection import guards

import zoo
from cudnn_stand_in import cudnn, hides_nan

Times = dict[str, float]


class FakeRecording:
    """A recording: runs what would have been recorded, and takes as long as it is told to."""

    times: Times
    refused: dict[str, RuntimeError]
    shaken: set[str]
    change: Callable[[str, Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]

    def __init__(self, run: Eager, x: Tensor, checks: Checks | None) -> None:
        assert torch.backends.cudnn.benchmark
        targets = {node.target for node in run._graph.graph.nodes}
        first = next(node for node in run._graph.graph.nodes if node.op == "call_function")
        laid_out = first.kwargs.get("memory_format") == torch.channels_last
        self.form = "fused" if targets & {*FUSED} else "channels last" if laid_out else "as it is"
        if self.form in self.refused:
            raise self.refused[self.form]
        self.run = run

    def __call__(self, x: Tensor, guard: Any = None) -> tuple[Tensor, ...]:
        return type(self).change(self.form, x, self.run(x))

    def milliseconds(self) -> float:
        return self.times[self.form]

    def repeats(self, x: Tensor) -> bool:
        return self.form not in self.shaken


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeRecording]]:
    class Here(FakeRecording):
        change = staticmethod(lambda form, x, outputs: outputs)

    Here.times, Here.refused, Here.shaken = {"fused": 1.0, "channels last": 2.0, "as it is": 2.0}, {}, set()
    monkeypatch.setattr(cudagraph, "Recorded", Here)
    monkeypatch.setattr(cudagraph, "check_cuda", lambda x: None)
    monkeypatch.setattr("gaia_fast.compiler.runtimes.choice.check_cuda", lambda x: None)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(fusion_checks, "_milliseconds", lambda run, device: 1.0)
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    enabled = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    yield Here
    assert not torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


X = zoo.images(3)


@pytest.fixture(scope="module")
def graph() -> fx.GraphModule:
    prepared = GaiaZ(zoo.build("strided_shortcut"), engine="compiled", runtime="eager").prepare(X).program(X)
    assert prepared is not None
    return prepared.program.graph


def recorded(graph: fx.GraphModule, images: int = 3) -> Recording:
    with cudnn():
        found = CudaGraph(graph, X).prepare(images)
    assert isinstance(found, Recording)
    return found


def form(found: Recording) -> str:
    assert isinstance(found.run, FakeRecording)
    return found.run.form


def test_fused_where_that_is_right(graph: fx.GraphModule) -> None:
    found = recorded(graph)
    assert form(found) == "fused"
    assert found.how == "channels last, 3 of 3 convolutions fused with their ReLUs by cuDNN"
    with cudnn():
        (*others, preconditions), (*expected, values) = found(X), graph(X)
        torch.testing.assert_close(others, expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(preconditions > 0, values > 0)


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ((1.0, 0.95, 0.95), "fused"),
        ((1.2, 1.0, 1.2), "channels last"),
        ((1.2, 1.2, 1.0), "as it is"),
        ((1.2, 1.05, 1.0), "channels last"),
    ],
)
def test_the_first_that_is_not_clearly_slower(
    times: tuple[float, ...], expected: str, graph: fx.GraphModule, fake: type[FakeRecording]
) -> None:
    fake.times = dict(zip(("fused", "channels last", "as it is"), times, strict=True))
    found = recorded(graph)
    assert form(found) == expected
    assert ("slower: 3 of 3" in found.how) == (expected != "fused")


@pytest.mark.parametrize(
    ("shaken", "expected"),
    [
        ({"fused"}, "channels last"),
        ({"fused", "channels last"}, "as it is"),
        ({"fused", "channels last", "as it is"}, "fused"),
    ],
)
def test_a_form_that_gives_another_result_each_time_is_the_last_to_be_taken(
    shaken: set[str], expected: str, graph: fx.GraphModule, fake: type[FakeRecording]
) -> None:
    fake.shaken = shaken
    found = recorded(graph)
    assert form(found) == expected
    assert ("not the same at every replay: 3 of 3" in found.how) == (expected != "fused")


def changes(where: str, to: Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]) -> Any:
    return lambda form, x, outputs: to(x, outputs) if form == where else outputs


def first_off(x: Tensor, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (outputs[0] * 1.2, *outputs[1:])


def last_off(x: Tensor, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (*outputs[:-1], outputs[-1] + 1)


def nan_goes_unseen(x: Tensor, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(each.nan_to_num(nan=0.0) for each in outputs)


def overflow_goes_unseen(x: Tensor, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs if x.isnan().any() else nan_goes_unseen(x, outputs)


def only_nan_goes_unseen(x: Tensor, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return nan_goes_unseen(x, outputs) if x.isnan().any() else outputs


def nan(x: Tensor, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.full_like(each, torch.nan) for each in outputs)


@pytest.mark.parametrize(
    ("to", "why"),
    [
        (first_off, "it gives other results"),
        (last_off, "it gives other results"),
        (nan, "it gives other results"),
        (nan_goes_unseen, "images that overflow go unseen"),
        (only_nan_goes_unseen, "images that overflow go unseen"),
        (overflow_goes_unseen, "images that overflow go unseen"),
    ],
)
def test_a_recording_that_gives_something_else_is_dropped(
    to: Callable[..., Any], why: str, graph: fx.GraphModule, fake: type[FakeRecording]
) -> None:
    fake.change = staticmethod(changes("fused", to))
    found = recorded(graph)
    assert form(found) == "channels last"
    assert found.how == f"channels last; with fused convolutions {why}"


def test_a_recording_that_bad_images_spoil_is_dropped(graph: fx.GraphModule, fake: type[FakeRecording]) -> None:
    """What they leave in its memory reaches the batch behind them."""
    spoiled = [False]

    def change(x: Tensor, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        was, spoiled[0] = spoiled[0], spoiled[0] or not bool(outputs[0].isfinite().all())
        return (outputs[0] * 0, *outputs[1:]) if was else outputs

    fake.change = staticmethod(changes("fused", change))
    assert "it gives other results" in recorded(graph).how


def test_rounding_is_no_fault(graph: fx.GraphModule, fake: type[FakeRecording]) -> None:
    """As much as the two layouts differ from each other, twice."""

    def change(form: str, x: Tensor, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        by = {"fused": 1.15, "channels last": 1.0, "as it is": apart[0]}[form]
        return (outputs[0] * by, *outputs[1:])

    fake.change = staticmethod(change)
    apart = [1.1]
    assert form(recorded(graph)) == "fused"
    apart = [1.0]
    assert form(recorded(graph)) == "channels last"


@pytest.mark.parametrize(
    ("refused", "expected"),
    [
        (["fused"], "channels last"),
        (["channels last"], "fused"),
        (["fused", "channels last"], "as it is"),
    ],
)
def test_what_cannot_be_recorded(
    refused: list[str], expected: str, graph: fx.GraphModule, fake: type[FakeRecording]
) -> None:
    fake.refused = {each: RuntimeError("operation not permitted\nwhen capturing") for each in refused}
    found = recorded(graph)
    assert form(found) == expected
    if "fused" in refused:
        assert "with fused convolutions it cannot be recorded (operation not permitted)" in found.how


def test_preconditions_may_be_other_numbers(graph: fx.GraphModule, fake: type[FakeRecording]) -> None:
    """All that counts is whether they are positive."""
    checks = Checks(("logits", "score", "packed", "preconditions"), (), guards.ModelGuard([]))
    for factor, expected in ((0.01, "fused"), (0.0, "channels last")):

        def change(x: Tensor, outputs: tuple[Tensor, ...], by: float = factor) -> tuple[Tensor, ...]:
            return (*outputs[:-1], outputs[-1] * by)

        fake.change = staticmethod(changes("fused", change))
        with cudnn():
            found = CudaGraph(graph, X, checks).prepare(3)
        assert isinstance(found, Recording)
        assert form(found) == expected


def test_what_cannot_be_recorded_in_any_form(graph: fx.GraphModule, fake: type[FakeRecording]) -> None:
    fake.refused = {each: RuntimeError("not permitted") for each in ("channels last", "as it is")}
    with pytest.raises(CompilationError, match=r"cannot be recorded into a CUDA graph \(not permitted\)"):
        recorded(graph)
    fake.refused["as it is"] = torch.OutOfMemoryError("no memory")
    with pytest.raises(torch.OutOfMemoryError):
        recorded(graph)


def test_faulty_convolutions(graph: fx.GraphModule) -> None:
    with cudnn(lambda x, *given: x.new_zeros(1)):
        found = CudaGraph(graph, X).prepare(3)
    assert isinstance(found, Recording)
    assert form(found) == "channels last"
    assert "0 of 3 convolutions fused" in found.how
    assert "3 left: it gives something else" in found.how


def test_no_memory_for_the_comparison(graph: fx.GraphModule) -> None:
    def raises(*given: Any) -> Tensor:
        raise torch.OutOfMemoryError("no memory")

    with cudnn(raises):
        found = CudaGraph(graph, X).prepare(3)
    assert isinstance(found, Recording)
    assert form(found) == "channels last"
    assert found.how.endswith("with fused convolutions it cannot be recorded (no memory)")


def test_without_the_operators(graph: fx.GraphModule) -> None:
    found = CudaGraph(graph, X).prepare(3)
    assert isinstance(found, Recording)
    assert form(found) == "channels last"
    assert "left: cuDNN refuses it (Could not run 'aten::cudnn_convolution_relu' with arguments" in found.how
    assert len(found.how) < 400


@pytest.mark.parametrize("make", [GaiaZ, GaiaA])
def test_the_plan_says_how(make: type[GaiaZ] | type[GaiaA], fake: type[FakeRecording]) -> None:
    model = zoo.build("strided_shortcut")
    with cudnn(hides_nan):
        detector = make(model, engine="compiled", runtime="cudagraph").prepare(X)
        expected = make(model, engine="hooks")(X)
        torch.testing.assert_close(detector(X), expected, rtol=1e-4, atol=1e-5)
        runtime = detector.plan(X).runtime
        assert runtime is not None
        assert runtime.name == "cudagraph"
        assert runtime.why == (
            "asked for; channels last, 3 of 3 convolutions fused with their ReLUs by cuDNN, which hides overflow: "
            "looked for in the maps"
        )
        fake.times = {"fused": 3.0, "channels last": 1.0, "as it is": 1.0}
        detector.prepare(X[:1])
        runtime = detector.plan(X).runtime
        assert runtime is not None
        assert "for 1 images channels last; slower: 3 of 3" in runtime.why
        assert "; for 3 images channels last, 3 of 3" in runtime.why
