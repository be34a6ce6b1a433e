"""What hooks do not see: norms run around them, compiled functions, random numbers."""

import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from engines.test_hooks_adversarial import Base, images, prepared
from torch import Tensor, nn

from gaia_fast import GaiaA, GaiaZ
from gaia_fast.errors import ModelError
from gaia_fast.options import EngineOption

ENGINES = ["hooks", "reference"]


# ---- norms around the hooks


class Compiled(Base):
    @torch.compile(backend="eager")
    def mid(self, y: Tensor) -> Tensor:
        return super().mid(y)


@torch.compile(backend="eager")
def residual(model: Base, y: Tensor) -> Tensor:
    return F.relu(model.b2(model.c2(y)))


class CallsCompiled(Base):
    def mid(self, y: Tensor) -> Tensor:
        return residual(self, y)


class CompiledFirst(Base):
    @torch.compile(backend="eager")
    def stem(self, x: Tensor) -> Tensor:
        return F.relu(self.b1(self.c1(x)))

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return self.head(y + self.mid(y))


class Block(nn.Module):
    def __init__(self, conv: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm = conv, norm

    def forward(self, y: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(y)))


class CompiledBlock(Block):
    @torch.compile(backend="eager")
    def forward(self, y: Tensor) -> Tensor:
        return super().forward(y)


class Blocks(Base):
    def __init__(self, block: type = Block) -> None:
        super().__init__()
        self.block = block(self.c2, self.b2)

    def mid(self, y: Tensor) -> Tensor:
        return self.block(y)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("detector", [GaiaZ, GaiaA])
@pytest.mark.parametrize(
    ("kind", "plain"),
    [
        (Compiled, Base),
        (CallsCompiled, Base),
        (CompiledFirst, Base),
        (lambda: Blocks(CompiledBlock), Blocks),
    ],
)
def test_compiled_functions_in_a_model_run_as_written(
    kind: type, plain: type, detector: type, engine: EngineOption
) -> None:
    torch._dynamo.reset()
    model, x = prepared(kind), images()
    expected = detector(prepared(plain), engine=engine).score(x, return_matrix=True)
    with torch.no_grad():
        logits = model(x)  # compiled before
    scorer = detector(model, engine=engine)
    for _ in range(3):
        found = scorer.score(x, return_matrix=True)
        assert torch.equal(found.matrix, expected.matrix)
        assert torch.equal(found.score, expected.score)
    assert len(scorer.plan(x).maps) == 2
    assert torch._dynamo.eval_frame._stance.stance == "default"
    with torch.no_grad():
        assert torch.equal(model(x), logits)


def test_what_other_threads_compiled_is_compiled_again_after_the_last_pass() -> None:
    torch._dynamo.reset()
    model, x = prepared(Compiled), images()
    scorer = GaiaZ(model, engine="hooks")
    expected = scorer(x)

    def work() -> None:
        for _ in range(20):
            assert torch.equal(scorer(x), expected)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert torch._dynamo.eval_frame._stance.stance == "default"


def in_a_thread(call: Callable[[], Tensor]) -> Tensor:
    found: list[Tensor] = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    thread.join()
    return found[0]


class OwnThread(Base):
    def mid(self, y: Tensor) -> Tensor:
        return in_a_thread(lambda: super(OwnThread, self).mid(y))


class OwnThreadFirst(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = in_a_thread(lambda: F.relu(self.b1(self.c1(x))))
        return self.head(y + self.mid(y))


class ByForward(Base):
    def mid(self, y: Tensor) -> Tensor:
        return F.relu(self.b2.forward(self.c2(y)))


class ByForwardFirst(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.b1.forward(self.c1(x)))
        return self.head(y + self.mid(y))


class GroupsByForward(ByForward):
    def __init__(self) -> None:
        super().__init__()
        self.b2 = nn.GroupNorm(2, 8)


class CalledAndByForward(Base):
    def mid(self, y: Tensor) -> Tensor:
        return F.relu(self.b2.forward(self.c2(super().mid(y))))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "kind", [OwnThread, OwnThreadFirst, ByForward, ByForwardFirst, GroupsByForward, CalledAndByForward]
)
def test_a_norm_that_runs_around_its_hooks_is_named(kind: type, engine: EngineOption) -> None:
    model, x = prepared(kind), images()
    scorer = GaiaZ(model, engine=engine)
    name = "b1" if kind.__name__.endswith("First") else "b2"
    for _ in range(3):  # the first call knows less of the model than the others
        with pytest.raises(ModelError, match=f"'{name}' ran in a thread of the model's own, or by their `forward`"):
            scorer(x)


@pytest.mark.parametrize("engine", ENGINES)
def test_norms_that_do_not_run_in_eval_mode_are_passed_over(engine: EngineOption) -> None:
    class Auxiliary(Base):
        def __init__(self) -> None:
            super().__init__()
            self.aux = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
            self.ignored = nn.BatchNorm2d(8)

        def mid(self, y: Tensor) -> Tensor:
            if self.training:
                self.aux(y)
            self.ignored(y.detach()[:1])  # called, but for one image alone: no map of these images
            return super().mid(y)

    model, plain = prepared(Auxiliary), prepared(Base)
    plain.load_state_dict(model.state_dict(), strict=False)
    for x in (images(), images(10)):
        assert torch.equal(GaiaZ(model, engine=engine)(x), GaiaZ(plain, engine=engine)(x))


def test_predictions_in_other_threads_do_not_disturb() -> None:
    model, x = prepared(Base), images()
    model.spare = nn.BatchNorm2d(3).eval()
    scorer = GaiaZ(model, engine="hooks")
    expected = scorer(x)
    stop = threading.Event()

    def predict() -> None:
        with torch.no_grad():
            while not stop.is_set():
                model(x)

    threads = [threading.Thread(target=predict) for _ in range(3)]
    for each in threads:
        each.start()
    try:
        for _ in range(40):
            assert torch.equal(GaiaZ(model, engine="hooks")(x), expected)
            assert torch.equal(scorer(x), expected)
    finally:
        stop.set()
        for each in threads:
            each.join()


@pytest.mark.parametrize("engine", ENGINES)
def test_operators_that_take_functions_are_refused(engine: EngineOption) -> None:
    class Conditional(Base):
        def mid(self, y: Tensor) -> Tensor:
            return torch.cond(y.sum() > 0, lambda y: y * 2, lambda y: y * 3, (super().mid(y),))

    with pytest.raises(ModelError, match="calls cond in the model's own forward .*takes functions"):
        GaiaZ(prepared(Conditional), engine=engine)(images())


# ---- randomness


class Dropout(Base):
    def mid(self, y: Tensor) -> Tensor:
        return F.dropout(super().mid(y), 0.5)  # training=True is the default


class LowDropout(Base):
    def mid(self, y: Tensor) -> Tensor:
        return F.dropout(super().mid(y), 1e-9)


class Noise(Base):
    def mid(self, y: Tensor) -> Tensor:
        return super().mid(y) + torch.rand(1)


class OwnGenerator(Base):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)

    def mid(self, y: Tensor) -> Tensor:
        return super().mid(y) + torch.randn(1, generator=self.generator)


class PythonRandom(Base):
    def mid(self, y: Tensor) -> Tensor:
        return super().mid(y) * random.uniform(0.5, 1)


class NumpyRandom(Base):
    def mid(self, y: Tensor) -> Tensor:
        return super().mid(y) * np.random.uniform(0.5, 1)  # noqa: NPY002


class ThreadRandom(Base):
    def head(self, y: Tensor) -> Tensor:
        return super().head(y) + in_a_thread(lambda: torch.rand(1))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (Dropout, r"aten.*bernoulli.* by F.dropout in the model's own forward \(.*test_survey.py:\d+\)"),
        (LowDropout, "by F.dropout"),
        (Noise, r"aten.rand.default in the model's own forward \(.*test_survey.py:\d+\)"),
        (OwnGenerator, "aten.randn.generator"),
        (PythonRandom, "from Python's random, and what it returns differs"),
        (NumpyRandom, "from numpy.random, and what it returns differs"),
        (ThreadRandom, "from torch's generator of cpu, and what it returns differs"),
    ],
)
def test_a_model_that_draws_random_numbers_is_refused(kind: type[Base], what: str, engine: EngineOption) -> None:
    model, x = prepared(kind), images()
    own = [model.generator] if isinstance(model, OwnGenerator) else []

    def states() -> list[object]:
        numpy_state: Any = np.random.get_state()  # noqa: NPY002
        torch_states = [each.get_state().tolist() for each in (torch.default_generator, *own)]
        return [*torch_states, random.getstate(), numpy_state[1].tolist(), numpy_state[2:]]

    before = states()
    for call in (
        GaiaZ(model, engine=engine),
        GaiaA(model, engine=engine),
        GaiaZ(model, engine=engine).calibrate,
        GaiaZ(model, layers=["b2"], engine=engine).plan,
    ):
        for _ in range(2):
            with pytest.raises(ModelError, match=f"draws random numbers in eval mode: .*{what}"):
                call(x)
    assert states() == before


@pytest.mark.parametrize("engine", ENGINES)
def test_random_numbers_that_nothing_uses_and_those_of_other_threads_are_no_matter(engine: EngineOption) -> None:
    class Idle(Base):
        def mid(self, y: Tensor) -> Tensor:
            random.uniform(0, 1)  # as LayerDrop draws in eval mode, too
            return super().mid(y)

    class Busy(Base):
        """Another thread, no part of the model, draws while it runs."""

        def mid(self, y: Tensor) -> Tensor:
            in_a_thread(lambda: torch.rand(1))
            return super().mid(y)

    expected = GaiaZ(prepared(Base), engine=engine)(images())
    for kind in (Idle, Busy):
        assert torch.equal(GaiaZ(prepared(kind), engine=engine)(images()), expected)


def test_modules_that_are_random_in_training_alone() -> None:
    class Still(Base):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Sequential(nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout(), nn.RReLU(0.0, 0.0))

        def mid(self, y: Tensor) -> Tensor:
            return self.drop(super().mid(y))

    assert torch.equal(GaiaZ(prepared(Still))(images()), GaiaZ(prepared(Base))(images()))
