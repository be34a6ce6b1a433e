"""A model that changes after it was prepared is scored as it is; what is no change costs nothing."""

from itertools import cycle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gaia_fast import GaiaA, GaiaOutput, GaiaZ
from gaia_fast.compiler import preparation
from gaia_fast.compiler.frontend.capture import Captured, capture
from gaia_fast.errors import CompilationError
from gaia_fast.inspection import guards

import zoo
from changes import GLOBAL, NOTHING, PREPARED, STRUCTURE, VALUES, everywhere, subject

KINDS = [(kind, runtime) for kind in (GaiaZ, GaiaA) for runtime in ("eager", "native")]


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The models captured so far."""
    seen: list[nn.Module] = []

    def counted(model: nn.Module, *others: Any) -> Captured:
        seen.append(model)
        return capture(model, *others)

    monkeypatch.setattr(preparation, "capture", counted)
    return seen


def assert_scored_as_it_is(detector: GaiaZ | GaiaA, x: Tensor, before: GaiaOutput) -> None:
    found, expected = detector.score(x), type(detector)(detector.model, engine="reference").score(x)
    changed = [found.logits.shape != before.logits.shape or not torch.allclose(found.logits, before.logits, rtol=1e-3)]
    assert any([*changed, not torch.allclose(found.score, before.score, rtol=1e-3)]), "the change shows nowhere"
    torch.testing.assert_close(found.score, expected.score, rtol=1e-4, atol=0)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-3, atol=1e-5)


# What each of them shows: that the capture sees a hook's effect, a method's, a number's; that memory is looked at.
CHANGES = [
    *("ReAct hook", "ASH pre-hook on the head", "forward pre-hook with keywords", "forward hook on a norm", "eps"),
    *("method of the class", "class", "flag", "nested containers", "padding", "fused Adam", ".data in place", "numpy"),
    *("tensor in nested containers", "module without a name", "parametrization"),
]


@pytest.mark.parametrize(("change", "kind", "runtime"), [(c, *k) for c, k in zip(CHANGES, cycle(KINDS), strict=False)])
def test_a_change(change: str, kind: type, runtime: str) -> None:
    model, x = subject(), zoo.images(2)
    detector = kind(model, engine="compiled", runtime=runtime).prepare(x)
    before = detector.score(x)
    {**STRUCTURE, **VALUES}[change](model)
    assert_scored_as_it_is(detector, x, before)


@pytest.mark.parametrize(("kind", "runtime"), KINDS[::3])
def test_hooks_put_on_and_taken_off(kind: type, runtime: str) -> None:
    model, x = subject(), zoo.images(2)
    detector = kind(model, engine="compiled", runtime=runtime).prepare(x)
    plain = detector.score(x)
    prepare, change = PREPARED["limit of a hook's object"]
    held = prepare(model)
    unlimited = detector.score(x)
    torch.testing.assert_close(unlimited.logits, plain.logits)
    change(model, held)
    assert_scored_as_it_is(detector, x, plain)
    with GLOBAL["global forward pre-hook"]():
        assert_scored_as_it_is(detector, x, plain)
    held[1].remove()
    torch.testing.assert_close(detector.score(x).logits, plain.logits)


@pytest.mark.parametrize("kind", [GaiaZ, GaiaA])
def test_a_hook_that_may_change_gradients_is_refused(kind: type) -> None:
    """Nothing of it is in the graph, and the example may not show what it does to other images."""
    x = zoo.images(2)
    model: Any = zoo.build("strided_shortcut")
    detector = kind(model, engine="compiled", runtime="eager").prepare(x)
    expected = detector(x)
    for register in (model.pool.register_full_backward_hook, model.pool.register_full_backward_pre_hook):
        handle = register(lambda *_: None)
        with pytest.raises(CompilationError, match="'pool' has backward hooks"):
            detector(x)
        handle.remove()
    register = torch.nn.modules.module.register_module_full_backward_hook
    refused = pytest.raises(CompilationError, match="every module has backward hooks")
    with everywhere(register, lambda *_: None), refused:
        detector(x)
    assert torch.equal(detector(x), expected)


@pytest.mark.parametrize(("kind", "runtime"), KINDS[1::1][:2])
def test_what_changes_nothing_makes_no_program(kind: type, runtime: str, captures: list[nn.Module]) -> None:
    model, x = subject(), zoo.images(2)
    detector = kind(model, engine="compiled", runtime=runtime).prepare(x)
    expected = detector.score(x)
    assert len(captures) == 1
    for name, nothing in NOTHING.items():
        nothing(model)
        found = detector.score(x)
        assert len(captures) == 1, name
        assert torch.equal(found.score, expected.score), name
    GaiaZ(model, engine="hooks")(x)
    GaiaA(model, engine="reference")(x)
    detector.plan(x)
    assert torch.equal(detector.score(x).logits, expected.logits)
    assert len(captures) == 1


class Writes(nn.Module):
    """Counts its calls, and keeps what it sees: in attributes, containers and buffers."""

    average: Tensor
    features: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.inner = zoo.build("vgg_like")
        self.calls, self.features, self.gain = 0, None, 1.0
        self.log: list[int] = []
        self.space = SimpleNamespace(calls=0)
        self.register_buffer("average", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.space.calls += 1
        self.log.append(x.shape[1])
        self.average.mul_(0.9).add_(x.mean((0, 2, 3)))
        self.features = x * self.gain
        return self.inner(self.features)


def test_what_the_model_writes_by_itself_makes_no_program(captures: list[nn.Module]) -> None:
    model, x = Writes().eval(), zoo.images(2)
    detector = GaiaZ(model, engine="auto", runtime="eager")
    detector.prepare(x)
    before = detector.score(x)
    assert detector.plan(x).engine.name == "compiled", detector.plan(x).engine.why
    made = len(captures)
    for _ in range(3):
        GaiaZ(model, engine="hooks")(x)
        model(x)
        assert detector.plan(x).engine.name == "compiled"
        assert torch.equal(detector.score(x).logits, before.logits)
    assert len(captures) == made
    model.gain = -2.0
    assert_scored_as_it_is(detector, x, before)


def test_a_change_by_another_thread_while_the_model_is_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    x = zoo.images(2)
    model: Any = zoo.build("strided_shortcut")

    calls = 0

    def captured(*arguments: Any) -> Captured:
        nonlocal calls
        calls += 1
        found = capture(*arguments)
        model.residual[1].eps = 2.0
        return found

    monkeypatch.setattr(preparation, "capture", captured)
    detector = GaiaZ(model, engine="compiled", runtime="eager")
    detector.prepare(x)  # the model is not what it was when it was begun, and is captured once more
    program = detector.program(x)
    assert program is not None
    assert calls > 1
    monkeypatch.undo()
    assert_scored_as_it_is(detector, x, GaiaZ(zoo.build("strided_shortcut"), engine="reference").score(x))


def test_the_head_is_looked_for_again() -> None:
    class Switched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.pool = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AvgPool2d(2)
            self.fc, self.other = nn.Linear(8, 5), nn.Linear(8, 5)
            self.pooled, self.switched = False, False

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.norm(self.conv(x)))
            y = (self.pool(y) if self.pooled else y).mean((2, 3))
            return self.other(y) if self.switched else self.fc(y)

    torch.manual_seed(0)
    model, x = Switched().eval(), zoo.images(2)
    detectors = [GaiaA(model, engine=each, runtime="eager") for each in ("hooks", "compiled")]

    def check(head: str, last: str) -> None:
        for each in detectors:
            expected = GaiaA(model, engine="reference").score(x)
            torch.testing.assert_close(each.score(x).score, expected.score, rtol=1e-4, atol=0)
            assert (each.plan(x).head, each.plan(x).last) == (head, last)

    check("fc", "norm")
    model.pooled = True
    check("fc", "pool")
    model.switched = True
    check("other", "pool")


@pytest.fixture
def told_by_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer comes as a tensor, as where weights are on a GPU."""
    holds = guards.ModelGuard.holds
    monkeypatch.setattr(guards.ModelGuard, "holds", lambda self, **_: torch.tensor(bool(holds(self))))


@pytest.mark.usefixtures("told_by_a_device")
def test_where_a_device_tells(captures: list[nn.Module]) -> None:
    x = zoo.images(2)
    model: Any = zoo.build("strided_shortcut")
    detector = GaiaZ(model, engine="compiled", runtime="eager")
    detector.prepare(x)
    before = detector.score(x)
    assert len(captures) == 1
    model.fc.weight.data.mul_(2)
    assert_scored_as_it_is(detector, x, before)
    assert len(captures) == 2


@pytest.mark.parametrize("change", ["forward of the class", "call of the class", "attribute of the class"])
def test_hooks_and_heads_need_no_program(change: str) -> None:
    model, x = subject(), zoo.images(2)
    detector = GaiaA(model, engine="hooks")
    before = detector.score(x)
    STRUCTURE[change](model)
    assert_scored_as_it_is(detector, x, before)
