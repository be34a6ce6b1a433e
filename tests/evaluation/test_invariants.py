"""`check_detector`: the package's detectors pass; and one that breaks an invariant is found out, by its name."""

import copy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gaia_fast
from gaia_fast import GaiaOutput, GaiaZ, check_detector
from gaia_fast.backends import Choice
from gaia_fast.compiler.verification import Verifier
from gaia_fast.errors import ArgumentError, CompilationError, InputError, InvariantError, LayerError, ModelError
from gaia_fast.evaluation import invariants
from gaia_fast.evaluation.image_sets import make_detector
from gaia_fast.evaluation.invariants import INVARIANTS, InvariantResult
from gaia_fast.evaluation.model_state import ModelState

from zoo import FixedBatch, Pooled, build, conv_norm, images, with_statistics

FIRST = "images_are_scored_or_refused"
Score = Callable[[GaiaZ, Tensor], GaiaOutput]
Broken = Callable[[Score, GaiaZ, Tensor], GaiaOutput]


def outcomes(results: list[InvariantResult]) -> dict[str, bool | None]:
    return {each.name: each.passed for each in results}


def failed(results: list[InvariantResult]) -> list[str]:
    return [f"{each.name}, {each.method}, {each.engine}: {each.detail}" for each in results if each.passed is False]


def detail(results: list[InvariantResult], name: str) -> str:
    (found,) = [each.detail for each in results if each.name == name]
    return found


# ---- what passes


@pytest.mark.parametrize(
    ("name", "engines"),
    [
        ("convolution_head", ("reference", "hooks", "compiled")),
        ("shared_norm", ("hooks", "compiled")),
        ("vgg_like", ("reference", "hooks")),
        ("norm_act", ("hooks",)),
        ("group_norm", ("hooks",)),
        ("dense_like", ("hooks",)),
    ],
)
def test_the_package_s_own_detectors_pass(name: str, engines: tuple[str, ...]) -> None:
    model, seen = build(name), list[InvariantResult]()
    before = copy.deepcopy(model.state_dict())
    results = check_detector(model, images(5), engines=engines, callback=seen.append)
    assert seen == results
    assert len(results) == len(INVARIANTS) * len(engines) * 2
    assert {(each.method, each.engine) for each in results} == {(m, e) for m in ("gaia-z", "gaia-a") for e in engines}
    assert all(each.detail for each in results)
    assert not failed(results)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    # What cannot be asked is known, and why is said.
    cannot = {(each.name, each.engine) for each in results if each.passed is None}
    expected = {("hooks_of_the_user_still_fire", engine) for engine in engines if engine != "hooks"}
    expected |= {("logits_and_scores_agree_with_float64", engine) for engine in engines if engine == "reference"}
    if name == "vgg_like":  # its first linear layer has room for one size
        expected |= {("odd_sizes_of_images_are_right", engine) for engine in engines}
        assert any("the model itself fails on (3, 3, 15, 13)" in each.detail for each in results)
    assert cannot == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_pass(dtype: torch.dtype) -> None:
    results = check_detector(build("strided_shortcut", dtype), images(3, dtype=dtype), engines=("hooks",))
    assert not failed(results)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_the_mode_of_the_caller_does_not_matter(mode: Callable[[], Any]) -> None:
    model = build("parallel")
    expected = check_detector(model, images(3), engines=("hooks",))
    with mode():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
        assert check_detector(model, images(3), engines=("hooks",)) == expected
        after = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
    assert before == after


def test_options_reach_the_detectors(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def noting(method: str, model: nn.Module, **options: Any) -> Any:
        asked.append({"method": method, **options})
        return make_detector(method, model, **options)

    monkeypatch.setattr(invariants, "make_detector", noting)
    monkeypatch.setattr(
        invariants, "INVARIANTS", {name: INVARIANTS[name] for name in (FIRST, "logits_and_scores_agree_with_float64")}
    )
    options: dict[str, Any] = {"head": "fc", "fusion": "inner", "statistic": "mean_abs", "engines": ("hooks",)}
    layers = {"gaia-z": "last_stage", "gaia-a": ["stem.1"]}
    check_detector(build("strided_shortcut"), images(1), layers=layers, **options)
    assert asked == [
        {"method": "gaia-z", "layers": "last_stage", "engine": "hooks"},
        {
            "method": "gaia-a",
            "layers": ["stem.1"],
            "engine": "hooks",
            "head": "fc",
            "fusion": "inner",
            "statistic": "mean_abs",
        },
    ]


def test_what_the_user_left_in_the_model_stays() -> None:
    """Hooks, gradients, frozen parameters and what a forward pass keeps are the model's own."""

    class Keeping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls = build("strided_shortcut"), 0
            self.register_buffer("last", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.inner(x)
            self.logits = logits
            self.calls += 1
            self.last.copy_(x.detach().mean())  # type: ignore[operator]
            return logits

    model = Keeping().eval()
    model.inner.fc.weight.requires_grad_(False)  # type: ignore[union-attr]
    grad = torch.ones_like(model.inner.fc.bias)  # type: ignore[arg-type, union-attr]
    model.inner.fc.bias.grad = grad  # type: ignore[union-attr]
    seen: list[torch.Size] = []
    model.inner.stem.register_forward_hook(lambda _, __, out: seen.append(out.shape))  # type: ignore[union-attr]
    assert not failed(check_detector(model, images(3), engines=("hooks",)))
    assert seen
    assert model.inner.fc.bias.grad is grad  # type: ignore[union-attr]
    assert bool((grad == 1).all())
    assert (model.calls, float(model.last), hasattr(model, "logits")) == (0, 0, False)  # type: ignore[arg-type]


@pytest.mark.parametrize("warm", [False, True])
def test_a_model_that_keeps_something_by_size(warm: bool) -> None:
    """Whether it has seen such images before or not: a table of all sizes, and what is made for the last alone."""

    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.by_size = build("strided_shortcut"), dict[Any, Tensor]()
            self.last: torch.Size | None = None

        def forward(self, x: Tensor) -> Tensor:
            if x.shape not in self.by_size:
                self.by_size[x.shape] = x.new_ones(x.shape[2:])
            if self.last != x.shape:
                self.last = x.shape
            return self.inner(x * self.by_size[x.shape])

    model, x = Cached().eval(), images(3)
    if warm:
        model(x)
    before, last = dict(model.by_size), model.last
    assert not failed(check_detector(model, x, methods=("gaia-z",), engines=("hooks",)))
    assert (model.by_size, model.last) == (before, last)


# ---- what the model itself cannot do


def test_a_model_of_a_fixed_number_of_images() -> None:
    model = with_statistics(FixedBatch(3))
    results = check_detector(model, images(3), methods=("gaia-z",), engines=("hooks",))
    found = outcomes(results)
    assert found["any_number_of_images_has_as_many_scores"] is None
    assert "the model itself fails on (1, 3, 16, 16)" in detail(results, "any_number_of_images_has_as_many_scores")
    assert found["an_image_by_itself_scores_as_in_a_batch"] is None
    assert found["other_images_do_not_matter"]


def test_a_model_that_depends_on_the_batch() -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = build("parallel")

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x - x.mean(0))

    results = check_detector(Centred().eval(), images(3), methods=("gaia-z",), engines=("hooks", "compiled"))
    for name in ("an_image_by_itself_scores_as_in_a_batch", "other_images_do_not_matter"):
        assert outcomes([each for each in results if each.engine == "hooks"])[name] is None
    (refusal,) = [each for each in results if each.engine == "compiled"]  # nothing more is asked of it
    assert (refusal.name, refusal.passed) == (FIRST, None)
    assert "depends on how many others are in the batch" in refusal.detail


def test_a_model_that_cannot_be_pickled() -> None:
    model: Any = build("parallel")
    model.note = lambda: None
    results = check_detector(model, images(3), methods=("gaia-z",), engines=("hooks",))
    assert detail(results, "copies_score_alike").startswith("deepcopy: bit for bit; the model itself cannot be copied")


def test_a_model_that_turns_gradients_off_is_run_twice() -> None:
    class Off(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = build("parallel")

        def forward(self, x: Tensor) -> Tensor:
            with torch.set_grad_enabled(False):
                return self.inner(x)

    results = check_detector(Off().eval(), images(3), methods=("gaia-z",), engines=("hooks",))
    assert "calls, 11 in a plain pass" in detail(results, "hooks_of_the_user_still_fire")


def test_a_model_that_takes_any_channels() -> None:
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = build("parallel")

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x[:, :3])

    results = check_detector(First().eval(), images(3), methods=("gaia-z",), engines=("hooks",))
    assert outcomes(results)["wrong_channels_are_refused"] is None


@pytest.mark.parametrize("kind", [ValueError, AssertionError])
def test_a_model_that_refuses_images_by_an_error_of_its_own(kind: type[Exception]) -> None:
    class Strict(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = build("parallel")

        def forward(self, x: Tensor) -> Tensor:
            if x.shape[1:] != (3, 16, 16):
                raise kind(f"images are {tuple(x.shape)}")
            return self.inner(x)

    results = check_detector(Strict().eval(), images(3), methods=("gaia-z",), engines=("hooks",))
    assert (
        detail(results, "wrong_channels_are_refused") == f"the model's own {kind.__name__}: images are (3, 4, 16, 16)"
    )
    assert outcomes(results)["odd_sizes_of_images_are_right"] is None


# ---- what is refused


def test_what_no_engine_takes_is_refused() -> None:
    x = images(2)
    without_norms = nn.Sequential(nn.Flatten(), nn.Linear(768, 4)).eval()
    with pytest.raises(LayerError, match="norm"):
        check_detector(without_norms, x, engines=("hooks",))
    results = check_detector(without_norms, x, engines=("hooks",), on_fail="return")
    assert [(each.name, each.method, each.passed) for each in results] == [
        (FIRST, "gaia-z", None),
        (FIRST, "gaia-a", None),
    ]
    assert all("norm" in each.detail for each in results)
    with pytest.raises(LayerError, match="nope"):  # although gaia-z needs no head
        check_detector(build("parallel"), x, head="nope", engines=("hooks",))


def test_what_is_no_model_or_no_images_is_refused_whatever_is_asked() -> None:
    x = images(2)
    with pytest.raises(ModelError, match="training mode"):
        check_detector(build("parallel").train(), x, on_fail="return")
    for bad in (x[0], x.double(), x * float("nan")):
        with pytest.raises(InputError):
            check_detector(build("parallel"), bad, on_fail="return")


@pytest.mark.parametrize(
    "options",
    [
        {"on_fail": "warn"},
        {"methods": ("gaia-b",)},
        {"methods": "gaia-z"},
        {"engines": ()},
        {"engines": ("export",)},
        {"fusion": "sum"},
        {"example": images(0)},
        {"layers": {"gaia-a": ["left.1"]}, "methods": ("gaia-z",)},
    ],
    ids=str,
)
def test_options_that_do_not_exist(options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError):
        check_detector(build("parallel"), **{"example": images(1), **options})


def test_it_is_public_and_costs_nothing_until_it_is_used() -> None:
    program = "import sys, gaia_fast; assert not {'sklearn', 'gaia_fast.evaluation'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert gaia_fast.check_detector is check_detector
    with pytest.raises(AttributeError, match="check_everything"):
        _ = gaia_fast.check_everything


# ---- each invariant can fail


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[bool | None, str]]:
    """Asks one invariant of GAIA-Z, and checks that the model is left as it was."""

    def ask(name: str, engine: str = "hooks", model: nn.Module | None = None) -> tuple[bool | None, str]:
        model = build("strided_shortcut") if model is None else model
        before = ModelState(model)
        monkeypatch.setattr(invariants, "INVARIANTS", {each: INVARIANTS[each] for each in (FIRST, name)})
        results = check_detector(model, images(3), methods=("gaia-z",), engines=(engine,), on_fail="return")
        assert before.changes() == []
        if name != FIRST:
            assert results[0].passed
        return results[-1].passed, results[-1].detail

    return ask


def breaking(monkeypatch: pytest.MonkeyPatch, broken: Broken) -> None:
    """Has `broken(right, detector, images)` in the place of GaiaZ's score."""
    right = GaiaZ.score
    monkeypatch.setattr(GaiaZ, "score", lambda self, x, **options: broken(right, self, x))


def changing(change: Callable[[GaiaOutput], GaiaOutput], when: Callable[[Tensor], Any] = lambda x: True) -> Broken:
    return lambda right, self, x: change(right(self, x)) if when(x) else right(self, x)


def times(factor: float, when: Callable[[Tensor], Any] = lambda x: True) -> Broken:
    return changing(lambda out: out._replace(score=out.score * factor), when)


def doing(what: Callable[[GaiaZ, Tensor], Any]) -> Broken:
    def score(right: Score, self: GaiaZ, x: Tensor) -> GaiaOutput:
        out = right(self, x)
        what(self, x)
        return out

    return score


def refusing(error: Exception, when: Callable[[Tensor], Any] = lambda x: True) -> Broken:
    def score(right: Score, self: GaiaZ, x: Tensor) -> GaiaOutput:
        if when(x):
            raise error
        return right(self, x)

    return score


def zeros(when: Callable[[Tensor], Any]) -> Broken:
    """A number for what should be refused."""

    def score(right: Score, self: GaiaZ, x: Tensor) -> GaiaOutput:
        return GaiaOutput(torch.zeros(3, 5), torch.zeros(3)) if when(x) else right(self, x)

    return score


def in_eval_mode(right: Score, self: GaiaZ, x: Tensor) -> GaiaOutput:
    self.model.eval()
    return right(self, x)


def eval_mode_behind(right: Score, self: GaiaZ, x: Tensor) -> GaiaOutput:
    try:
        return right(self, x)
    finally:
        self.model.eval()


def last_on_failure(right: Score, self: GaiaZ, x: Tensor) -> GaiaOutput:
    try:
        return right(self, x)
    except Exception:
        return GaiaOutput(torch.zeros(3, 5), torch.zeros(3))


def hook_left_on_failure(right: Score, self: GaiaZ, x: Tensor) -> GaiaOutput:
    try:
        return right(self, x)
    except Exception:
        self.model.get_submodule("stem").register_forward_hook(lambda *_: None)
        raise


def batch_mean(right: Score, self: GaiaZ, x: Tensor) -> GaiaOutput:
    out = right(self, x)
    return out._replace(score=out.score + x.mean())


def without_hooks_on_a_norm(right: Score, self: GaiaZ, x: Tensor) -> GaiaOutput:
    norm = self.model.get_submodule(NORM)
    hooks = norm._forward_hooks.copy()
    norm._forward_hooks.clear()
    try:
        return right(self, x)
    finally:
        norm._forward_hooks.update(hooks)


def with_hooks_in_another_order(right: Score, self: GaiaZ, x: Tensor) -> GaiaOutput:
    out = right(self, x)
    self.model.get_submodule(NORM)(torch.zeros(1, 8, 2, 2))
    return out


def rank_3(x: Tensor) -> bool:
    return x.ndim == 3


REFUSED: dict[str, Callable[[Tensor], Any]] = {
    "one_image_without_a_batch_is_refused": rank_3,
    "wrong_channels_are_refused": lambda x: x.shape[1] == 4,
    "integer_images_are_refused": lambda x: not x.is_floating_point(),
    "images_that_are_not_finite_are_refused": lambda x: x.device.type != "meta" and not x.isfinite().all(),
    "another_dtype_is_refused": lambda x: x.dtype == torch.float64,
    "another_device_is_refused": lambda x: x.device.type == "meta",
}
FIRST_WEIGHT, NORM = "stem.0.weight", "stem.1"
BROKEN: list[tuple[str, Broken, str]] = [
    (FIRST, refusing(RuntimeError("raw")), "RuntimeError: raw"),
    (FIRST, refusing(ModelError("")), "ModelError"),
    (
        "scores_are_float32_detached_and_finite",
        changing(lambda out: out._replace(score=out.score.double())),
        "torch.float64",
    ),
    ("scores_are_float32_detached_and_finite", times(float("nan")), "not finite"),
    (
        "scores_are_float32_detached_and_finite",
        changing(lambda out: out._replace(score=out.score.requires_grad_())),
        "graph",
    ),
    (
        "scores_are_float32_detached_and_finite",
        changing(lambda out: out._replace(score=out.score[:, None])),
        "(3, 1)",
    ),
    ("logits_and_scores_agree_with_float64", times(1.01), "the score is off by 0.01"),
    (
        "logits_and_scores_agree_with_float64",
        changing(lambda out: out._replace(logits=out.logits * 1.01)),
        "the logits is off by 0.01",
    ),
    (
        "the_same_call_gives_the_same_bits",
        changing(lambda out: out._replace(score=out.score * (1 + 1e-6 * torch.rand(3)))),
        "the second call",
    ),
    (
        "the_same_call_gives_the_same_bits",
        changing(lambda out: out._replace(logits=out.logits + 1e-6 * torch.rand(3, 1))),
        "the second call's logits",
    ),
    ("odd_sizes_of_images_are_right", times(1.01, lambda x: x.shape[2] % 2), "off by 0.01"),
    ("odd_sizes_of_images_are_right", refusing(ValueError("odd"), lambda x: x.shape[2] % 2), "ValueError: odd"),
    ("any_number_of_images_has_as_many_scores", zeros(lambda x: x.shape[0] == 0), "0 images have scores (3,)"),
    ("any_number_of_images_has_as_many_scores", zeros(lambda x: x.shape[0] == 1), "1 images have scores (3,)"),
    ("an_image_by_itself_scores_as_in_a_batch", times(1.01, lambda x: x.shape[0] == 1), "1 of the images"),
    ("an_image_by_itself_scores_as_in_a_batch", batch_mean, "apart"),
    ("other_images_do_not_matter", batch_mean, "beside other images"),
    (
        "channels_last_images_score_alike",
        times(1.01, lambda x: not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)),
        "another memory layout",
    ),
    ("sliced_images_score_alike", times(1 + 1e-6, lambda x: x.stride(0) > x[0].numel()), "another memory layout"),
    ("expanded_images_score_alike", times(1 + 1e-6, lambda x: x.stride(0) == 0), "another memory layout"),
    ("transposed_images_score_alike", times(1 + 1e-6, lambda x: x.stride(2) == 1), "another memory layout"),
    (
        "works_inside_no_grad",
        refusing(RuntimeError("no graph"), lambda x: not torch.is_grad_enabled()),
        "RuntimeError: no graph",
    ),
    (
        "works_inside_inference_mode",
        refusing(RuntimeError("no graph"), lambda x: torch.is_inference_mode_enabled()),
        "RuntimeError: no graph",
    ),
    ("works_inside_enable_grad", doing(lambda self, x: torch.set_grad_enabled(False)), "changes (gradients"),
    (
        "works_with_frozen_parameters",
        lambda right, self, x: refusing(
            RuntimeError("frozen"), lambda x: not next(self.model.parameters()).requires_grad
        )(right, self, x),
        "RuntimeError: frozen",
    ),
    ("works_with_frozen_parameters", doing(lambda self, x: self.model.requires_grad_()), "frozen parameters"),
    (
        "images_are_left_as_they_were",
        doing(lambda self, x: setattr(x, "grad", torch.ones_like(x)) if x.requires_grad else None),
        ".grad",
    ),
    (
        "images_are_left_as_they_were",
        doing(lambda self, x: x.data.mul_(2) if x.requires_grad else None),
        "pixels",
    ),
    ("autocast_is_right_or_refused", times(1.5, lambda x: torch.is_autocast_enabled("cpu")), "under autocast"),
    ("training_mode_is_refused", in_eval_mode, "not refused"),
    ("training_mode_is_refused", eval_mode_behind, "to eval mode by itself"),
    *((name, zeros(when), "not refused") for name, when in REFUSED.items()),
    *((name, refusing(RuntimeError("deep"), when), "a RuntimeError, none of") for name, when in REFUSED.items()),
    *((name, refusing(InputError("no"), when), "does not name") for name, when in REFUSED.items()),
    ("integer_images_are_refused", refusing(InputError(""), lambda x: x.dtype == torch.uint8), "without a message"),
    ("hooks_of_the_user_still_fire", without_hooks_on_a_norm, "less often than in a plain pass on stem.1"),
    ("hooks_of_the_user_still_fire", with_hooks_in_another_order, "in another order"),
    ("the_model_is_left_as_it_was_when_it_raises", last_on_failure, "nevertheless"),
    ("the_model_is_left_as_it_was_when_it_raises", hook_left_on_failure, "stem._forward_hooks"),
]


@pytest.mark.parametrize(("name", "broken", "says"), BROKEN, ids=lambda each: each if isinstance(each, str) else "")
def test_a_detector_that_breaks_it_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
    asked: Callable[..., tuple[bool | None, str]],
    name: str,
    broken: Broken,
    says: str,
) -> None:
    assert asked(name)[0] is True
    breaking(monkeypatch, broken)
    passed, detail = asked(name)
    assert passed is False
    assert says in detail


def note(*_: Any) -> None:
    """A hook."""


TRACES: list[tuple[str, Callable[[nn.Module], Any]]] = [
    ("stem.1._forward_hooks", lambda model: model.get_submodule(NORM).register_forward_hook(note)),
    ("stem.1._backward_hooks", lambda model: model.get_submodule(NORM).register_full_backward_hook(note)),
    ("every module._global_forward_hooks", lambda model: nn.modules.module.register_module_forward_hook(note)),
    (f"{FIRST_WEIGHT}.grad", lambda model: setattr(model.get_parameter(FIRST_WEIGHT), "grad", torch.ones(8, 3, 3, 3))),
    (f"{FIRST_WEIGHT}.requires_grad", lambda model: model.get_parameter(FIRST_WEIGHT).requires_grad_(False)),
    (f"the values of {FIRST_WEIGHT}", lambda model: model.get_parameter(FIRST_WEIGHT).data[0, 0, 0].mul_(1 + 2**-23)),
    ("the values of stem.1.running_mean", lambda model: model.get_buffer("stem.1.running_mean").add_(1e-3)),
    ("the values of stem.1.num_batches_tracked", lambda model: model.get_buffer("stem.1.num_batches_tracked").add_(1)),
    ("stem.1.training", lambda model: setattr(model.get_submodule(NORM), "training", True)),
    ("stem.1.eps", lambda model: setattr(model.get_submodule(NORM), "eps", 1e-3)),
    ("fc.weight_seen", lambda model: setattr(model.fc, "weight_seen", 1)),
    ("the model._modules", lambda model: model.register_module("more", nn.Identity())),
    ("stem.1._parameters", lambda model: setattr(model.get_submodule(NORM), "bias", nn.Parameter(torch.ones(8)))),
]


@pytest.mark.parametrize(("place", "leave"), TRACES, ids=[place for place, _ in TRACES])
def test_what_a_call_leaves_behind_is_named_and_taken_away(
    monkeypatch: pytest.MonkeyPatch,
    asked: Callable[..., tuple[bool | None, str]],
    place: str,
    leave: Callable[[nn.Module], Any],
) -> None:
    breaking(monkeypatch, doing(lambda self, x: leave(self.model)))
    passed, detail = asked("the_model_is_left_as_it_was")
    assert passed is False
    assert place in detail


def test_what_any_other_check_leaves_behind_is_told_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    leave = doing(lambda self, x: setattr(self.model, "seen", 1) if x.shape[0] == 0 else None)
    breaking(monkeypatch, leave)
    model = build("parallel")
    results = check_detector(model, images(3), methods=("gaia-z",), engines=("hooks",), on_fail="return")
    assert failed(results) == [
        "the_model_is_left_as_it_was, gaia-z, hooks: after any_number_of_images_has_as_many_scores: the model.seen"
    ]
    assert not hasattr(model, "seen")


def test_a_plan_of_another_engine(
    monkeypatch: pytest.MonkeyPatch, asked: Callable[..., tuple[bool | None, str]]
) -> None:
    name, plan = "the_plan_names_what_runs", GaiaZ.plan
    for change, says in (
        ({"engine": Choice("reference", "")}, "engine='hooks' was asked for, and engine reference"),
        ({"backend": Choice("cuda", "")}, "cannot run"),
    ):
        monkeypatch.setattr(GaiaZ, "plan", lambda self, x, change=change: replace(plan(self, x), **change))
        passed, detail = asked(name)
        assert passed is False
        assert says in detail
    monkeypatch.setattr(GaiaZ, "plan", plan)
    assert asked(name, "compiled")[0] is True
    monkeypatch.setattr(GaiaZ, "program", lambda self, x: None)
    assert asked(name, "compiled")[0] is False


@pytest.mark.parametrize("engine", ["reference", "hooks", "compiled"])
def test_what_was_forced_and_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, asked: Callable[..., tuple[bool | None, str]], engine: str
) -> None:
    name = "what_cannot_run_is_refused_when_forced"
    assert asked(name, engine)[0] is True

    def deaf(*args: Any, backend: str = "", runtime: str = "", **options: Any) -> Any:
        return make_detector(*args, **options)

    monkeypatch.setattr(invariants, "make_detector", deaf)
    passed, detail = asked(name, engine)
    assert passed is False
    assert "cannot run here, and 3 scores came of it" in detail

    def mute(*args: Any, backend: str = "", runtime: str = "", **options: Any) -> Any:
        if backend or runtime:
            raise CompilationError("")
        return make_detector(*args, **options)

    monkeypatch.setattr(invariants, "make_detector", mute)
    assert "without a reason" in asked(name, engine)[1]


DECISIONS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "is_ood is": lambda patch: patch.setattr(GaiaZ, "is_ood", lambda self, x: self.predict(x) >= _known(self)),
    "before there is a threshold": lambda patch: patch.setattr(GaiaZ, "is_ood", lambda self, x: self.predict(x) > 0),
    "accepts 100%": lambda patch: patch.setattr(GaiaZ, "calibrate", _accept_all),
    "from images": lambda patch: patch.setattr(GaiaZ, "calibrate", _by_kind),
    "is_ood is None": lambda patch: patch.setattr(GaiaOutput, "is_ood", None),
}


def _known(detector: GaiaZ) -> float:
    if detector.threshold is None:
        raise gaia_fast.errors.CalibrationError("there is no threshold yet")
    return detector.threshold


def _accept_all(detector: GaiaZ, source: Tensor, id_tpr: float) -> None:
    detector.threshold = 1e9


def _by_kind(detector: GaiaZ, source: Tensor, id_tpr: float) -> None:
    detector.threshold = float(source.ndim)


@pytest.mark.parametrize("says", DECISIONS)
def test_decisions_of_another_threshold(
    monkeypatch: pytest.MonkeyPatch, asked: Callable[..., tuple[bool | None, str]], says: str
) -> None:
    assert asked("decisions_follow_the_threshold")[0] is True
    DECISIONS[says](monkeypatch)
    passed, detail = asked("decisions_follow_the_threshold")
    assert passed is False
    assert says in detail


def test_copies_that_score_otherwise_or_cannot_be_made(
    monkeypatch: pytest.MonkeyPatch, asked: Callable[..., tuple[bool | None, str]]
) -> None:
    name, setstate, right = "copies_score_alike", GaiaZ.__setstate__, GaiaZ.score
    assert asked(name) == (True, "pickle and deepcopy: bit for bit")

    def marked(self: GaiaZ, state: dict[str, Any]) -> None:
        setstate(self, state)
        self.copied = True  # type: ignore[attr-defined]

    with monkeypatch.context() as patch:
        patch.setattr(GaiaZ, "__setstate__", marked)
        breaking(patch, lambda right, self, x: times(1 + 1e-6 * hasattr(self, "copied"))(right, self, x))
        passed, detail = asked(name)
        assert passed is False
        assert "a copy by pickle and deepcopy" in detail
    assert GaiaZ.score is right

    def refuse(self: GaiaZ) -> None:
        raise TypeError("no copies")

    monkeypatch.setattr(GaiaZ, "__getstate__", refuse)
    assert asked(name) == (False, "pickle fails where the model alone can be: no copies")


# ---- what is made of failures


def test_failures_are_raised_with_all_that_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    breaking(monkeypatch, times(1.01, lambda x: x.shape[0] == 1))
    model, x = build("parallel"), images(3)
    with pytest.raises(InvariantError) as caught:
        check_detector(model, x, engines=("hooks", "reference"))
    message = str(caught.value)
    assert "2 of 128 checks fail on Parallel" in message
    assert "an_image_by_itself_scores_as_in_a_batch (gaia-z, hooks): 1 of the images" in message
    assert isinstance(caught.value, AssertionError)
    assert caught.value.results == check_detector(model, x, engines=("hooks", "reference"), on_fail="return")


def test_an_engine_that_passes_is_proposed(monkeypatch: pytest.MonkeyPatch) -> None:
    breaking(
        monkeypatch,
        lambda right, self, x: times(1.01 if self._options.engine == "hooks" else 1.0)(right, self, x),
    )
    with pytest.raises(InvariantError, match="use engine='reference', which passes"):
        check_detector(build("parallel"), images(3), methods=("gaia-z",), engines=("hooks", "reference"))


def test_units_that_are_zero_to_rounding_are_allowed_for(
    monkeypatch: pytest.MonkeyPatch, asked: Callable[..., tuple[bool | None, str]]
) -> None:
    """A score that is off by more than rounding, on images where weights that are off by rounding do as much."""
    name = "logits_and_scores_agree_with_float64"
    breaking(monkeypatch, times(1 + 3e-4))
    assert asked(name)[0] is False
    monkeypatch.setattr(Verifier, "sensitivity", lambda self, x, truth, size: torch.full((1, 3), 2e-4))
    assert asked(name)[0] is True
    breaking(monkeypatch, times(1.01))
    assert asked(name)[0] is False


def test_a_wrapped_model_is_taken_out_and_few_images_are_enough() -> None:
    model = nn.DataParallel(with_statistics(Pooled(nn.Sequential(*conv_norm(3, 4), nn.ReLU()), 4)))
    assert not failed(check_detector(model, images(1), methods=("gaia-z",), engines=("hooks",)))
