"""Engine "auto": no slow path that is not spoken of."""

import threading
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gaia_fast import GaiaZ
from gaia_fast.compiler.runtimes import autotuning
from gaia_fast.errors import ArgumentError, BackendError, CompilationError, UnpreparedError, UnpreparedWarning

import zoo

pytestmark = pytest.mark.filterwarnings("error::gaia_fast.errors.UnpreparedWarning")


class Branching(nn.Module):
    """No program: what it does hangs on what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = zoo.build("parallel")

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x if x.mean() > 0 else -x)


def test_the_first_images_of_a_size_are_spoken_of_once() -> None:
    detector, x = GaiaZ(zoo.build("parallel"), runtime="eager"), zoo.images(2)
    with pytest.warns(UnpreparedWarning, match=r"images of \(3, 16, 16\) float32.*nothing was prepared.*prepare\(x\)"):
        detector(x)
    detector(x)
    detector(x[:1])
    detector.prepare(x)
    detector(x[:1])
    with pytest.warns(UnpreparedWarning, match=r"\(3, 24, 24\).*it was prepared for \(3, 16, 16\) float32"):
        detector(zoo.images(2, 24))
    detector(zoo.images(1, 24))


def test_the_warning_is_of_the_line_that_calls() -> None:
    detector, x = GaiaZ(zoo.build("parallel")), zoo.images(2)
    with pytest.warns(UnpreparedWarning) as caught:
        detector.calibrate(x)
    assert caught[0].filename == __file__


def test_a_model_that_has_changed_is_spoken_of() -> None:
    model, x = zoo.build("parallel"), zoo.images(2)
    detector = GaiaZ(model, runtime="eager").prepare(x)
    detector(x)
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    with pytest.warns(UnpreparedWarning, match="the model has changed since it was prepared"):
        detector(x)
    detector.prepare(x)
    assert detector.plan(x).engine.name == "compiled"
    detector(x)


def test_programs_are_prepared_where_that_is_asked_for() -> None:
    model, x = zoo.build("parallel"), zoo.images(2)
    detector = GaiaZ(model, runtime="eager", on_unprepared="prepare")
    expected = GaiaZ(model, engine="hooks")
    for images in (x, zoo.images(3, 24)):
        torch.testing.assert_close(detector(images), expected(images), rtol=1e-5, atol=0)
        assert detector.plan(images).engine.name == "compiled"
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    torch.testing.assert_close(detector(x), expected(x), rtol=1e-5, atol=0)
    assert detector.plan(x).engine.name == "compiled"


def test_an_error_where_that_is_asked_for() -> None:
    model, x = zoo.build("parallel"), zoo.images(2)
    detector = GaiaZ(model, runtime="eager", on_unprepared="error")
    with pytest.raises(UnpreparedError, match=r"no program for images of \(3, 16, 16\) float32: nothing was prepared"):
        detector(x)
    detector.prepare(x)(x)
    with pytest.raises(UnpreparedError, match=r"\(3, 24, 24\).*prepared for \(3, 16, 16\)"):
        detector(zoo.images(2, 24))
    with pytest.raises(CompilationError):
        GaiaZ(Branching().eval(), on_unprepared="error").prepare(x)


@pytest.mark.parametrize("option", ["warn", "prepare"])
def test_a_model_that_cannot_be_compiled_is_spoken_of_when_that_is_tried(option: Any) -> None:
    model, x = Branching().eval(), zoo.images(2)
    detector = GaiaZ(model, on_unprepared=option)
    with pytest.warns(UnpreparedWarning, match="cannot be compiled, and is scored by hooks"):
        detector.prepare(x) if option == "warn" else detector(x)
    torch.testing.assert_close(detector(x), GaiaZ(model, engine="hooks")(x))  # and no more of it
    assert detector.plan(x).engine.name == "hooks"


def test_hooks_that_are_asked_for_are_meant() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GaiaZ(zoo.build("parallel"), engine="hooks")(zoo.images(2))


def test_no_other_answer_is_taken() -> None:
    with pytest.raises(ArgumentError, match="on_unprepared='hide' does not exist"):
        GaiaZ(zoo.build("parallel"), on_unprepared="hide")  # type: ignore[arg-type]


def test_a_runtime_that_is_forced_and_cannot_run_raises() -> None:
    if torch.cuda.is_available():
        pytest.skip("a CUDA graph can be recorded here")
    with pytest.raises(BackendError, match="cudagraph"):
        GaiaZ(zoo.build("parallel"), runtime="cudagraph").prepare(zoo.images(2))


def test_a_refusal_lasts_as_long_as_its_cause() -> None:
    model, x = zoo.build("parallel"), zoo.images(2)
    detector = GaiaZ(model, runtime="eager", on_unprepared="prepare")
    with torch.autocast("cpu"), pytest.warns(UnpreparedWarning, match="autocast"):
        detector(x)
    detector(x)
    assert detector.plan(x).engine.name == "compiled"
    handle = model.register_full_backward_hook(lambda *_: None)
    with pytest.warns(UnpreparedWarning, match="backward hooks"):
        detector(x)
    detector(x)  # said once
    handle.remove()
    detector(x)
    assert detector.plan(x).engine.name == "compiled"


@pytest.mark.usefixtures("deadline")
def test_threads_that_prepare_do_not_wait_for_each_other_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """One measures the engines while the other prepares, and the model changes under both."""
    model = zoo.build("parallel")
    detector = GaiaZ(model, runtime="native", on_unprepared="prepare")
    right, begun, going = autotuning.seconds, threading.Event(), threading.Event()

    def seconds(runs: Any) -> dict[str, float]:
        begun.set()
        with torch.no_grad():
            next(model.parameters()).mul_(1.0)  # written: what was prepared holds no more
        going.wait(5)
        return right(runs)

    monkeypatch.setattr(autotuning, "seconds", seconds)
    monkeypatch.setenv("GAIA_FAST_TUNE", "measure")
    first = threading.Thread(target=detector.prepare, args=(zoo.images(1),))
    first.start()
    begun.wait(30)
    monkeypatch.setattr(autotuning, "seconds", right)
    second = threading.Thread(target=detector.prepare, args=(zoo.images(1, 24),))
    second.start()
    second.join(1)
    going.set()
    first.join(25)
    second.join(25)
    assert not first.is_alive()
    assert not second.is_alive()
