"""The choice between runtimes, and between a program and hooks, by timing them."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from gaia_fast import GaiaA, GaiaZ, reference
from gaia_fast.compiler import runtimes
from gaia_fast.compiler.runtimes import autotuning
from gaia_fast.engines.hooks import HooksEngine
from gaia_fast.errors import CompilationError

import zoo

ALL = ["native", "onnxruntime", "openvino"]


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("GAIA_FAST_CACHE", str(tmp_path))
    autotuning.ANSWERS.forget()
    yield
    autotuning.ANSWERS.forget()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runtimes that runners were made of."""
    found: list[str] = []
    make = runtimes.make_runner

    def make_runner(runtime: str, *others: Any, **named: Any) -> Any:
        found.append(str(runtime))
        return make(runtime, *others, **named)

    monkeypatch.setattr(runtimes, "make_runner", make_runner)
    return found


def clock(monkeypatch: pytest.MonkeyPatch, where: Any, **spent: float) -> None:
    """Says how long each function takes; each is run once."""

    def seconds(runs: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
        for run in runs.values():
            run()
        return {name: spent[name] for name in runs}

    monkeypatch.setattr(where, "seconds", seconds)


def test_auto_takes_the_fastest_runtime_and_says_what_it_measured(
    monkeypatch: pytest.MonkeyPatch, made: list[str]
) -> None:
    clock(monkeypatch, autotuning, native=0.003, onnxruntime=0.002, openvino=0.0025)
    model, x = zoo.build("strided_shortcut"), zoo.images(4)
    detector = GaiaZ(model, engine="compiled").prepare(x, tune="measure")
    runtime = detector.plan(x).runtime
    assert runtime is not None
    assert runtime.name == "onnxruntime"
    assert runtime.why == "fastest measured here for 4 images: onnxruntime 2 ms, openvino 2.5 ms, native 3 ms"
    assert made == ALL
    assert torch.allclose(detector(x), reference.gaia_z(model, x).score, rtol=1e-5)


def test_what_was_measured_is_kept_for_other_processes(monkeypatch: pytest.MonkeyPatch, made: list[str]) -> None:
    clock(monkeypatch, autotuning, native=0.003, onnxruntime=0.004, openvino=0.001)
    model, x = zoo.build("strided_shortcut"), zoo.images(4)
    first = GaiaZ(model, engine="compiled").prepare(x, tune="measure").plan(x).runtime
    autotuning.ANSWERS.forget()  # as another process would begin
    made.clear()
    assert GaiaZ(zoo.build("strided_shortcut"), engine="compiled").prepare(x, tune="measure").plan(x).runtime == first
    assert made == ["openvino"]
    made.clear()
    GaiaZ(model, engine="compiled").prepare(zoo.images(3), tune="measure")
    assert made == ALL


def test_a_runtime_that_does_not_take_the_program_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    make = runtimes.make_runner

    def make_runner(runtime: str, *others: Any, **named: Any) -> Any:
        if runtime != "openvino":
            raise CompilationError(f"{runtime} knows no such operator")
        return make(runtime, *others, **named)

    monkeypatch.setattr(runtimes, "make_runner", make_runner)
    x = zoo.images(2)
    runtime = GaiaA(zoo.build("strided_shortcut"), engine="compiled").prepare(x, tune="measure").plan(x).runtime
    assert runtime is not None
    assert runtime.name == "openvino"
    assert "native" not in runtime.why


@pytest.mark.parametrize(
    "error", [CompilationError("off by 1"), RuntimeError("no such library"), ImportError("broken")]
)
def test_what_was_kept_and_does_not_take_this_model_is_measured_anew(
    monkeypatch: pytest.MonkeyPatch, made: list[str], error: Exception
) -> None:
    """The weights may be others: a runtime may agree with the reference for one model, and not for the next."""
    clock(monkeypatch, autotuning, native=0.003, onnxruntime=0.004, openvino=0.001)
    model, x = zoo.build("strided_shortcut"), zoo.images(4)
    GaiaZ(model, engine="compiled").prepare(x, tune="measure")
    make = runtimes.make_runner

    def make_runner(runtime: str, *others: Any, **named: Any) -> Any:
        if runtime == "openvino":
            raise error
        return make(runtime, *others, **named)

    monkeypatch.setattr(runtimes, "make_runner", make_runner)
    for _ in range(2):
        runtime = GaiaZ(model, engine="compiled").prepare(x, tune="measure").plan(x).runtime
        assert runtime is not None
        assert runtime.why == "fastest measured here for 4 images: native 3 ms, onnxruntime 4 ms"


def test_nothing_is_measured_where_that_is_not_asked_for(made: list[str]) -> None:
    model, x = zoo.build("strided_shortcut"), zoo.images(2)
    GaiaZ(model, engine="compiled").prepare(x, tune="model")
    GaiaZ(model, engine="compiled", runtime="eager").prepare(x, tune="measure")
    GaiaZ(model.double(), engine="compiled").prepare(x.double(), tune="measure")
    assert made == ["native", "eager", "eager"]


def test_the_first_stands_unless_another_is_clearly_faster() -> None:
    assert autotuning.fastest({"native": 1.0, "onnxruntime": 0.97}) == "native"
    assert autotuning.fastest({"native": 1.0, "onnxruntime": 0.9, "openvino": 0.8}) == "openvino"


def test_what_is_far_slower_is_not_timed_again() -> None:
    calls = {"a": 0, "b": 0}

    def run(name: str, size: int) -> None:
        calls[name] += 1
        torch.randn(size, size) @ torch.randn(size, size)

    spent = autotuning.seconds({"a": lambda: run("a", 8), "b": lambda: run("b", 1024)})
    assert spent["a"] < spent["b"]
    assert calls["b"] == 2


def test_a_user_without_a_home_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("GAIA_FAST_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", home)
    assert autotuning.ANSWERS.file() is None
    assert autotuning.ANSWERS.get("a", lambda: {"native": 1.0}) == {"native": 1.0}


@pytest.mark.parametrize("text", ['{"a": 1}', '{"a": {}}', '{"a": {"native": "fast"}}', "[1]"])
def test_a_damaged_file_is_measured_anew(text: str) -> None:
    path = autotuning.ANSWERS.file()
    assert path is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    assert autotuning.ANSWERS.find("a") is None
    assert autotuning.ANSWERS.get("a", lambda: {"native": 1.0}) == {"native": 1.0}


@pytest.mark.parametrize("hooks", [0.001, 0.01])
def test_hooks_stay_where_they_are_faster_than_the_program(monkeypatch: pytest.MonkeyPatch, hooks: float) -> None:
    clock(monkeypatch, autotuning, compiled=0.003, hooks=hooks)
    model, x = zoo.build("strided_shortcut"), zoo.images(4)
    detector = GaiaZ(model, runtime="native").prepare(x, tune="measure")
    engine = detector.plan(x).engine
    if hooks < 0.003:
        assert (engine.name, engine.why) == ("hooks", "faster than the program here: hooks 1 ms, compiled 3 ms")
        assert detector.program(x) is None
    else:
        assert (engine.name, engine.why) == ("compiled", "prepared for such images")
    assert torch.allclose(detector(x), reference.gaia_z(model, x).score, rtol=1e-5)
    assert detector.plan(zoo.images(3)).engine.name == "compiled"  # of which nothing was measured
    detector.prepare(x, tune="model")
    assert detector.plan(x).engine.name == "compiled"


def test_hooks_that_cannot_run_leave_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(self: HooksEngine, x: torch.Tensor) -> None:
        raise RuntimeError("not enough memory")

    monkeypatch.setattr(HooksEngine, "score", no_memory)
    model, x = zoo.build("strided_shortcut"), zoo.images(4)
    assert GaiaZ(model, runtime="native").prepare(x, tune="measure").plan(x).engine.name == "compiled"
