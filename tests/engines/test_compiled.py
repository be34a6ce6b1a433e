"""The compiled engine through the detectors: preparation, fallbacks, changes of the model."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gaia_fast import GaiaA, GaiaZ, reference
from gaia_fast.engines import compiled as engine_module
from gaia_fast.engines import hooks
from gaia_fast.errors import ArgumentError, InputError, ModelError, NonFiniteError
from gaia_fast.inspection import checks
from gaia_fast.options import RuntimeOption

import zoo


def test_closed_windows_are_scored_again_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    model, good, bad = zoo.sometimes_closed()
    detector = GaiaZ(model, engine="compiled", runtime="eager").prepare(good)
    assert set(detector.plan(good).derivations) == {"active units"}
    again: list[int] = []

    def measure(model: nn.Module, x: Tensor, *rest: Any) -> object:
        again.append(x.shape[0])
        return hooks_measure(model, x, *rest)

    hooks_measure = hooks.measure
    monkeypatch.setattr(hooks, "measure", measure)
    x = torch.cat([good[:1], bad, good[1:]])
    out = detector.score(x, return_matrix=True)
    truth = reference.gaia_z(model, x)
    assert again == [2]
    assert torch.allclose(out.score, truth.score, rtol=1e-6)
    assert out.matrix is not None
    for index, expected in enumerate(truth.abnormality):
        assert torch.allclose(out.matrix[:, index], expected, rtol=1e-6)


def test_auto_is_hooks_until_prepared() -> None:
    model, x = zoo.build("parallel"), zoo.images(3)
    detector = GaiaZ(model, runtime="eager")
    plan = detector.plan(x)
    assert (plan.engine.name, plan.runtime, plan.derivations) == ("hooks", None, ())
    assert "prepare(...)" in plan.engine.why
    before = detector(x)
    assert detector.prepare(x) is detector
    plan = detector.plan(x)
    assert plan.runtime is not None
    assert (plan.engine.name, plan.runtime.name, plan.derivations) == (
        "compiled",
        "eager",
        ("active units", "active units"),
    )
    assert "runtime  eager: asked for" in str(plan)
    assert "active units" in str(plan)
    assert torch.allclose(detector(x), before, rtol=1e-6)
    assert detector.plan(zoo.images(3, 20)).engine.name == "hooks"  # another size is another program


@pytest.mark.parametrize("runtime", ["eager", "native", "onnxruntime"])
def test_weights_that_change_are_seen(runtime: RuntimeOption) -> None:
    x = zoo.images(3)
    model: Any = zoo.build("strided_shortcut")
    detector = GaiaA(model, engine="compiled", runtime=runtime)
    detector(x)
    with torch.no_grad():
        model.residual[0].weight.mul_(1.3)
    assert torch.allclose(detector(x), reference.gaia_a(model, x).score, rtol=1e-5)
    model.stem[1].running_mean.add_(0.3)
    assert torch.allclose(detector(x), reference.gaia_a(model, x).score, rtol=1e-5)
    model.fc = nn.Linear(12, 4).eval()
    assert torch.allclose(detector(x), reference.gaia_a(model, x).score, rtol=1e-5)


def test_a_model_that_is_moved_is_compiled_again() -> None:
    model, x = zoo.build("strided_shortcut"), zoo.images(3)
    detector = GaiaA(model, engine="compiled", runtime="eager").prepare(x)
    model.double()
    out = detector.score(x.double())
    assert out.logits.dtype == torch.float64
    assert torch.allclose(out.score, reference.gaia_a(model, x.double()).score.float(), rtol=1e-6)
    model.train()
    with pytest.raises(ModelError, match="training mode"):
        detector(x.double())


def test_auto_goes_back_to_hooks_when_weights_change() -> None:
    x = zoo.images(3)
    model: Any = zoo.build("parallel")
    detector = GaiaZ(model, runtime="eager").prepare(x)
    with torch.no_grad():
        model.left[0].weight.add_(0.1)
    assert detector.plan(x).engine.name == "hooks"
    assert torch.allclose(detector(x), reference.gaia_z(model, x).score, rtol=1e-6)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_any_grad_mode_and_frozen_parameters(mode: type[torch.no_grad]) -> None:
    model, x = zoo.build("strided_shortcut").requires_grad_(False), zoo.images(3)
    expected = reference.gaia_a(zoo.build("strided_shortcut"), x).score
    detector = GaiaA(model, engine="compiled", runtime="eager")
    with mode():
        out = detector.score(x.clone())
    assert torch.allclose(out.score, expected, rtol=1e-5)
    assert not out.score.requires_grad
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_refusals_of_input_are_those_of_every_engine() -> None:
    x = zoo.images(3)
    model: Any = zoo.build("parallel")
    detector = GaiaA(model, engine="compiled", runtime="eager").prepare(x)
    assert detector.score(zoo.images(0)).score.shape == (0,)
    bad = x.clone()
    bad[1, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match="images 1 of the batch"):
        detector(bad)
    with torch.no_grad():
        model.fc.weight.zero_()
        model.fc.bias.zero_()
    with pytest.raises(NonFiniteError, match="logits are all equal"):
        detector(x)


def test_preparing_what_has_nothing_to_prepare() -> None:
    for engine in ("hooks", "reference"):
        with pytest.raises(ArgumentError, match="has nothing to prepare"):
            GaiaZ(zoo.build("parallel"), engine=engine).prepare(zoo.images(1))
    with pytest.raises(InputError, match="no images"):
        GaiaZ(zoo.build("parallel")).prepare(zoo.images(0))


@pytest.mark.parametrize("runtime", ["eager", "native"])
@pytest.mark.parametrize("detector", [GaiaZ, GaiaA])
def test_a_call_looks_once_and_closer_only_where_something_is_wrong(
    detector: type[GaiaZ] | type[GaiaA], runtime: RuntimeOption, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU each look waits for it."""
    looks: list[str] = []
    for name in ("check_pixels", "check_logits", "check_score", "check_output_component"):
        check = getattr(checks, name)

        def counted(*arguments: Any, name: str = name, check: Callable[..., object] = check) -> object:
            looks.append(name)
            return check(*arguments)

        monkeypatch.setattr(checks, name, counted)
    model, x = zoo.build("strided_shortcut"), zoo.images(4)
    compiled = detector(model, engine="compiled", runtime=runtime).prepare(x)
    looks.clear()
    compiled(x)
    assert not looks
    x[2, 1, 3, 3] = float("inf")
    with pytest.raises(InputError, match="images 2 of the batch hold infinite or NaN pixels"):
        compiled(x)
    x[2, 1, 3, 3] = 0
    x[1] *= 1e38
    with pytest.raises(NonFiniteError, match="a logit of images 1 of the batch"):
        compiled(x)


class Returns(nn.Module):
    """A network whose logits are of another dtype than it computes in."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.net, self.dtype = zoo.build("strided_shortcut"), dtype

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits.to(self.dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("runtime", ["eager", "native"])
def test_logits_of_another_dtype_are_checked_as_they_are(runtime: RuntimeOption, dtype: torch.dtype) -> None:
    x = zoo.images(3)
    compiled = GaiaZ(Returns(dtype).eval(), engine="compiled", runtime=runtime).prepare(x)
    expected = GaiaZ(Returns(dtype).eval(), engine="hooks").score(x)
    found = compiled.score(x)
    assert torch.equal(found.score, expected.score)
    assert torch.allclose(found.logits, expected.logits.to(torch.float32), rtol=1e-2)
    x[2] = x[2].sign() * 3e38
    with pytest.raises(NonFiniteError, match="a logit of images 2 of the batch"):
        compiled(x)


@pytest.mark.parametrize("runtime", ["native", "onnxruntime"])
def test_logits_that_half_precision_does_not_hold_are_refused(runtime: RuntimeOption) -> None:
    if runtime == "onnxruntime":
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    x = zoo.images(3).half()
    model: Any = zoo.build("strided_shortcut").half()
    with torch.no_grad():
        model.fc.bias.zero_()
        model.fc.weight *= 100 / model(x).abs().max()
    compiled = GaiaZ(model, engine="compiled", runtime=runtime).prepare(x)
    assert compiled(x).isfinite().all()
    x[1] *= 3e4 / x[1].abs().max()
    with pytest.raises(NonFiniteError, match="a logit of images 1 of the batch"):
        compiled(x)


class Incremental(nn.Module):
    """Heads for more and more classes on one pooled map."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU()
        self.heads = nn.ModuleList(nn.Linear(16, 2 + head) for head in range(heads))

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.relu(self.norm(self.conv(x))).mean((2, 3))
        out = self.heads[0](pooled)
        for head in self.heads[1:]:
            out = torch.cat([out, head(pooled)], 1)
        return out


@pytest.mark.parametrize("heads", [2, 3, 4])
@pytest.mark.parametrize("detector", [GaiaZ, GaiaA])
def test_heads_that_are_put_together_one_by_one(detector: type[GaiaZ] | type[GaiaA], heads: int) -> None:
    torch.manual_seed(0)
    model, x = Incremental(heads).eval(), zoo.images(3, 8)
    options: dict[str, Any] = {"head": model.heads[0]} if detector is GaiaA else {}
    try:
        expected = detector(model, engine="hooks", **options).score(x)
    except ModelError:
        pytest.skip("GAIA-A needs one head")
    compiled = detector(model, engine="compiled", runtime="native", **options).prepare(x)
    prepared = compiled.program(x)
    assert prepared is not None
    assert prepared.dynamic
    for images in (3, 1):
        found = compiled.score(x[:images])
        assert torch.allclose(found.logits, expected.logits[:images], rtol=1e-5, atol=1e-6)
        assert torch.allclose(found.score, expected.score[:images], rtol=1e-4)


def test_a_program_that_fails_is_made_again_only_where_the_model_has_changed() -> None:
    """The model is looked at while the program runs, and a changed one may be why it fails."""
    model, x = zoo.build("strided_shortcut"), zoo.images(2)
    compiled = GaiaZ(model, engine="compiled", runtime="native").prepare(x)

    def fail(x: Tensor, guard: Callable[[], None]) -> None:
        raise RuntimeError("tensors on two devices")

    object.__setattr__(compiled.program(x), "runner", fail)
    with pytest.raises(RuntimeError, match="two devices"):
        compiled(x)
    with torch.no_grad():
        next(model.parameters()).mul_(-1)
    torch.testing.assert_close(compiled(x), GaiaZ(model, engine="reference")(x), rtol=1e-4, atol=0)


@pytest.mark.parametrize("runtime", ["eager", "native"])
@pytest.mark.parametrize("change", ["training", "replaced"])
def test_a_model_that_changes_its_structure_is_looked_at_again(change: str, runtime: RuntimeOption) -> None:
    model, x = zoo.build("strided_shortcut"), zoo.images(2)
    compiled = GaiaZ(model, engine="compiled", runtime=runtime).prepare(x)
    name, first = next((name, each) for name, each in model.named_modules() if isinstance(each, nn.BatchNorm2d))
    if change == "training":
        first.train()
        with pytest.raises(ModelError, match="training mode"):
            compiled(x)
    else:
        model.set_submodule(name, nn.Sequential(copy.deepcopy(first), nn.BatchNorm2d(first.num_features)).eval())
        again = compiled.score(x, return_matrix=True)
        expected = GaiaZ(model, engine="reference").score(x, return_matrix=True)
        assert again.matrix is not None
        assert expected.matrix is not None
        assert again.matrix.shape == expected.matrix.shape
        torch.testing.assert_close(again.score, expected.score, rtol=1e-4, atol=0)


@pytest.mark.parametrize("runtime", ["eager", "native"])
def test_autocast_around_a_call_changes_nothing(runtime: RuntimeOption) -> None:
    model, x = zoo.build("vgg_like"), zoo.images(2)
    compiled = GaiaA(model, engine="compiled", runtime=runtime).prepare(x)
    expected = compiled.score(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = compiled.score(x)
    assert torch.equal(found.logits, expected.logits)
    assert torch.equal(found.score, expected.score)


@pytest.mark.parametrize("runtime", ["eager", "native"])
@pytest.mark.parametrize("images", [1, 3])
def test_what_is_returned_is_the_callers(images: int, runtime: RuntimeOption) -> None:
    """Even where a score is the same for every image: the gradient of Phi towards the map that is averaged to it."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)
    )
    x = zoo.images(images, 18)  # 16 x 16 positions: no sum is rounded, and all of it is a constant
    compiled = GaiaA(model.eval(), engine="compiled", runtime=runtime, fusion="inner").prepare(x)
    expected = compiled.score(x).score.clone()
    torch.testing.assert_close(expected, GaiaA(model, engine="reference", fusion="inner")(x))
    compiled.score(x).score.add_(100)
    assert torch.equal(compiled.score(x).score, expected)


def test_programs_are_bounded_and_the_plan_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes of images without end would keep a program each, with the model's weights in it."""
    monkeypatch.setattr(engine_module, "MOST_PROGRAMS", 2)
    model = zoo.build("parallel")
    compiled = GaiaA(model, engine="compiled", runtime="eager")
    for size in (8, 10, 12, 14):
        x = zoo.images(2, size)
        torch.testing.assert_close(compiled(x), reference.gaia_a(model, x).score, rtol=1e-5, atol=0)
    plan = compiled.plan(zoo.images(2, 14))
    assert "programs 2 of at most 2, one a size of images" in str(plan)
    assert compiled.program(zoo.images(2, 8)) is None
    assert compiled.program(zoo.images(2, 12)) is not None


def test_errors_of_a_runner_are_the_packages_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = zoo.build("parallel"), zoo.images(2)
    compiled = GaiaZ(model, engine="compiled", runtime="eager").prepare(x)

    def fail(x: Tensor, guard: Callable[[], None]) -> None:
        raise ValueError("squeezed away")

    object.__setattr__(compiled.program(x), "runner", fail)
    with pytest.raises(ModelError, match=r"runtime 'eager' failed on images of shape \(2, 3, 16, 16\): squeezed away"):
        compiled(x)
