"""Models that keep what they compute: scored by many threads, and left without a graph."""

import copy
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from engines.test_hooks_adversarial import Base, prepared
from torch import Tensor, nn

from gaia_fast import GaiaA, GaiaZ
from gaia_fast.errors import ModelError
from gaia_fast.inspection.kept import leaves_nothing, undisturbed
from gaia_fast.options import EngineOption

# What keeps a graph to itself is either detached by someone, or lost.
THREADS, CALLS = 8, 250


def batches(count: int) -> list[Tensor]:
    return [torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(count)]


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


class Keeps(Base):
    """In attributes, in containers of every kind, and in a buffer that is written in place; reads what it kept."""

    average: Tensor
    latest: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(8))
        self.register_buffer("latest", torch.zeros(1))
        self.kept: Tensor | None = None
        self.listed: list[Tensor] = []
        self.named: dict[str, Any] = {"nested": [{}]}
        self.named["training"] = self.named  # a container may hold itself
        self.pair: Pair | None = None

    def mid(self, y: Tensor) -> Tensor:
        self.kept = super().mid(y)
        self.listed[:] = [self.kept * 2]
        self.named["nested"][0]["view"] = self.kept[:, :4]
        self.pair = Pair(self.kept, self.kept.mean())
        self.average.mul_(0.9).add_(self.kept.mean((0, 2, 3)))
        self.latest = self.kept.mean().reshape(1)
        return self.kept

    def head(self, y: Tensor) -> Tensor:
        assert self.kept is not None
        return super().head(y + self.kept)


def everything_kept(model: Keeps) -> list[Tensor]:
    assert model.kept is not None
    assert model.pair is not None
    return [model.kept, *model.listed, model.named["nested"][0]["view"], *model.pair, model.average, model.latest]


def in_threads(work: Callable[[int], None], count: int = THREADS) -> None:
    failures: list[BaseException] = []

    def run(index: int) -> None:
        try:
            work(index)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    if failures:
        raise failures[0]


@pytest.mark.parametrize("detector", [GaiaZ, GaiaA])
def test_kept_features_hang_on_no_graph(detector: type) -> None:
    for engine in ("hooks", "reference"):
        model = prepared(Keeps)
        average, listed, named = model.average, model.listed, model.named
        detector(model, engine=engine)(batches(1)[0])
        assert (model.average is average, model.listed is listed, model.named is named) == (True, True, True)
        assert not any(each.requires_grad for each in everything_kept(model))
        assert type(model.pair) is Pair
        copy.deepcopy(model)


@pytest.mark.parametrize("engine", ["hooks", "reference"])
def test_features_kept_by_hooks_of_the_user_hang_on_no_graph(engine: EngineOption) -> None:
    for detector in (GaiaZ, GaiaA):
        model, x = prepared(Base), batches(1)[0]
        expected = detector(model, engine=engine)(x)
        kept: list[Tensor] = []
        for module in (model.b1, model.c2, model.b2, model.fc, model):
            module.register_forward_hook(lambda _, __, out, kept=kept: kept.append(out))
        scorer = detector(model, engine=engine)
        for _ in range(2):
            kept.clear()
            assert torch.equal(scorer(x), expected)
            assert not any(each.requires_grad for each in kept)
        with torch.no_grad():
            features = list(kept)[-5:]
            kept.clear()
            model(x)
        assert all(map(torch.equal, features, kept))


@pytest.mark.parametrize("engine", ["hooks", "reference"])
@pytest.mark.parametrize("change", [lambda out: out.clamp(max=0.5), lambda out: out.mul_(2), lambda out: out[:]])
def test_hooks_of_the_user_that_have_a_say(change: Callable[[Tensor], Tensor], engine: EngineOption) -> None:
    """ReAct and its kin: gradients pass what the hook computes, whatever other hooks keep."""

    class Written(Base):
        def mid(self, y: Tensor) -> Tensor:
            return F.relu(change(self.b2(change(self.c2(y)))))

    class Hooked(Base):
        def __init__(self) -> None:
            super().__init__()
            self.c2.register_forward_hook(lambda _, __, out: change(out))
            self.b2.register_forward_hook(lambda _, __, out: change(out))

    hooked, written, x = prepared(Hooked), prepared(Written), batches(1)[0]
    # A_last would be another: what b2's hook made.
    kinds: list[tuple[Callable[..., GaiaA | GaiaZ], dict[str, Any]]] = [(GaiaA, {"fusion": "inner"}), (GaiaZ, {})]
    for kind, options in kinds:
        detector = partial(kind, layers=["b1"], engine=engine, **options)
        scorer, truth = detector(hooked), detector(written)(x)
        for _ in range(2):
            assert torch.allclose(scorer(x), truth, rtol=1e-5)


def test_what_hung_on_the_user_s_graph_before_still_does() -> None:
    x = batches(1)[0]
    model: Any = prepared(Base)
    model.own = model.c1(x)
    node = model.own.grad_fn
    GaiaZ(model, engine="hooks")(x)
    assert model.own.grad_fn is node


class KeepsOne(Base):
    kept: Tensor | None = None

    def mid(self, y: Tensor) -> Tensor:
        self.kept = super().mid(y)
        return self.kept


@pytest.mark.parametrize("detector", [GaiaZ, GaiaA])
def test_a_prepared_model_can_be_copied(detector: type) -> None:
    model, x = prepared(KeepsOne), batches(1)[0]
    scorer = detector(model, runtime="eager").prepare(x)
    copy.deepcopy(model)
    assert scorer.plan(x).engine.name == "compiled"
    scorer(x)
    kept = copy.deepcopy(model).kept
    assert kept is not None
    assert kept.grad_fn is None


@pytest.mark.parametrize("detector", [GaiaZ, GaiaA])
@pytest.mark.parametrize("runtime", ["eager", "native"])
def test_threads_score_a_prepared_model_as_one_after_the_other(detector: type, runtime: str) -> None:
    model, images = prepared(KeepsOne), batches(THREADS)
    scorer = detector(model, runtime=runtime).prepare(images[0])
    assert scorer.plan(images[0]).engine.name == "compiled"
    expected = [scorer.score(x) for x in images]

    def work(index: int) -> None:
        for _ in range(CALLS):
            found = scorer.score(images[index])
            assert torch.equal(found.score, expected[index].score)
            assert torch.equal(found.logits, expected[index].logits)

    in_threads(work)


@pytest.mark.parametrize("detector", [GaiaZ, GaiaA])
@pytest.mark.parametrize("kind", [Base, Keeps])
def test_threads_score_as_one_after_the_other(kind: type[Base], detector: type) -> None:
    model, images = prepared(kind), batches(THREADS)
    scorer = detector(model, engine="hooks")
    expected = [scorer.score(x) for x in images]

    def work(index: int) -> None:
        for _ in range(CALLS):
            found = scorer.score(images[index])
            assert torch.equal(found.score, expected[index].score)
            assert torch.equal(found.logits, expected[index].logits)

    in_threads(work)
    if kind is Keeps:
        assert isinstance(model, Keeps)
        assert not any(each.requires_grad for each in everything_kept(model))


def test_a_model_that_keeps_something_later_is_scored_in_turns_then() -> None:
    class Later(Base):
        keeps = False

        def mid(self, y: Tensor) -> Tensor:
            if not self.keeps:
                return super().mid(y)
            self.kept = super().mid(y)
            return self.kept

    model, images = prepared(Later), batches(THREADS)
    scorer = GaiaZ(model, engine="hooks")
    expected = [scorer(x) for x in images]
    type(model).keeps = True

    def work(index: int) -> None:
        for _ in range(10):
            assert torch.equal(scorer(images[index]), expected[index])

    scorer(images[0])
    in_threads(work)
    assert not model.kept.requires_grad


class Waits(Base):
    """Lets another thread in where it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.meanwhile: Callable[[], object] = lambda: None

    def mid(self, y: Tensor) -> Tensor:
        self.meanwhile()
        return self.drop(super().mid(y))


@pytest.mark.parametrize("engine", ["hooks", "reference"])
@pytest.mark.parametrize("layers", [None, ["b1"]])
def test_set_to_training_in_the_middle_of_a_call(engine: EngineOption, layers: list[str] | None) -> None:
    model, x = prepared(Waits), batches(1)[0]
    scorer = GaiaZ(model, layers=layers, engine=engine)
    before = {name: each.clone() for name, each in model.state_dict().items()}

    def train() -> None:
        other = threading.Thread(target=model.train)
        other.start()
        other.join()

    def train_and_back() -> None:
        train()
        model.drop.eval()

    expected = scorer(x)
    for meanwhile in (train, train_and_back):
        model.meanwhile = meanwhile
        with pytest.raises(ModelError, match="training mode"):
            scorer(x)
        assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
        model.eval()
    model.meanwhile = lambda: model.fc.train()  # nothing that differs, but the model is not what it was
    with pytest.raises(ModelError, match="'fc' is in training mode"):
        scorer(x)
    model.eval()
    model.meanwhile = lambda: None
    assert torch.equal(scorer(x), expected)


class Other:
    """Of a class that nobody knows."""


def put_a_hook(model: nn.Module) -> None:
    model.register_forward_hook(lambda module, inputs, output: None)


def put_an_object(model: nn.Module) -> None:
    vars(model)["cache"] = Other()


@pytest.mark.parametrize("change", [put_a_hook, put_an_object])
def test_models_that_may_keep_what_cannot_be_seen(change: Callable[[nn.Module], None]) -> None:
    model, x = prepared(Base), batches(1)[0]
    for _ in range(2):
        undisturbed(model, lambda: model(x))
    assert leaves_nothing(model)
    change(model)
    assert not leaves_nothing(model)


def test_parameters_that_are_written_are_seen() -> None:
    class Writes(Base):
        def mid(self, y: Tensor) -> Tensor:
            self.fc.bias.add_(y.mean())
            return super().mid(y)

    model, x = prepared(Writes), batches(1)[0]
    for _ in range(2):
        with torch.no_grad():
            undisturbed(model, lambda: model(x))
    assert not leaves_nothing(model)
