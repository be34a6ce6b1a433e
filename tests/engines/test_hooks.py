"""The hooks engine against the reference, on every network of the zoo and in every mode it can be called in."""

import copy
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gaia_fast import GaiaA, GaiaError, GaiaZ, reference
from gaia_fast.errors import LayerError, ModelError
from gaia_fast.options import BackendOption, FusionOption, StatisticOption

from zoo import ZOO, Dangling, Pooled, build, conv_norm, image_size, images

SCORE_TOLERANCE = 1e-5  # what the project promises for float32, relative to float64
BACKENDS = ["torch", "cpu"]


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything that a call must leave as it was."""
    return {
        "tensors": {name: each.clone() for name, each in model.state_dict().items()},
        "grads": {name: each.grad for name, each in model.named_parameters()},
        "requires_grad": {name: each.requires_grad for name, each in model.named_parameters()},
        "training": {name: each.training for name, each in model.named_modules()},
        "hooks": {
            name: (len(each._forward_hooks), len(each._forward_pre_hooks), len(each._backward_hooks))
            for name, each in model.named_modules()
        },
    }


@pytest.fixture
def unchanged() -> Iterator[Callable[[nn.Module], nn.Module]]:
    """Checks, when the test ends, that the models given to it are what they were."""
    watched: list[tuple[nn.Module, dict[str, Any]]] = []

    def watch(model: nn.Module) -> nn.Module:
        watched.append((model, state_of(model)))
        return model

    grad_mode, inference_mode = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    yield watch
    assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == (grad_mode, inference_mode)
    for model, before in watched:
        after = state_of(model)
        tensors = before.pop("tensors"), after.pop("tensors")
        assert before == after
        assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


def relative_error(score: Tensor, truth: Tensor) -> float:
    return ((score.double() - truth.double()).abs() / truth.double().abs()).max().item()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ZOO)
def test_gaia_z_equals_the_reference(
    name: str, backend: BackendOption, unchanged: Callable[[nn.Module], nn.Module]
) -> None:
    model, x = unchanged(build(name)), images(3, image_size(name))
    out = GaiaZ(model, engine="hooks", backend=backend).score(x, return_matrix=True)
    # Counts are exact: the same forward pass in the same dtype has the same zeros.
    same = reference.gaia_z(model, x)
    assert out.matrix is not None
    for row, abnormality in enumerate(same.abnormality):
        assert torch.equal(out.matrix[:, row, : abnormality.shape[1]], abnormality)
    truth = reference.gaia_z(copy.deepcopy(model).double(), x.double())
    assert relative_error(out.score, truth.score) < SCORE_TOLERANCE
    assert torch.allclose(out.logits.double(), truth.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("statistic", ["abs_mean", "mean_abs"])
@pytest.mark.parametrize("name", ZOO)
def test_gaia_a_equals_the_reference(
    name: str, statistic: StatisticOption, backend: BackendOption, unchanged: Callable[[nn.Module], nn.Module]
) -> None:
    model, x = unchanged(build(name)), images(3, image_size(name))
    out = GaiaA(model, statistic=statistic, engine="hooks", backend=backend).score(x, return_matrix=True)
    truth = reference.gaia_a(copy.deepcopy(model).double(), x.double(), statistic=statistic)
    assert relative_error(out.score, truth.score) < SCORE_TOLERANCE
    plain = reference.gaia_a(model, x, statistic=statistic)
    assert out.matrix is not None
    for row, (exact, float32) in enumerate(zip(truth.abnormality, plain.abnormality, strict=True)):
        width = exact.shape[1]
        error = (out.matrix[:, row, :width].double() - exact).abs().max()
        assert error <= 2 * (float32.double() - exact).abs().max() + 1e-6 * exact.max()
        assert not out.matrix[:, row, width:].any()


@pytest.mark.parametrize("fusion", ["division", "inner", "output", "top1"])
@pytest.mark.parametrize("name", ["strided_shortcut", "vgg_like", "convolution_head", "norm_act"])
def test_fusions_equal_the_reference(name: str, fusion: FusionOption) -> None:
    model, x = build(name), images(3)
    truth = reference.gaia_a(copy.deepcopy(model).double(), x.double(), fusion=fusion).score
    assert relative_error(GaiaA(model, fusion=fusion, engine="hooks")(x), truth) < SCORE_TOLERANCE


@pytest.mark.parametrize("count", [1, 3, 7])
@pytest.mark.parametrize("detector", [GaiaA, GaiaZ])
def test_scores_do_not_depend_on_the_batch(detector: type, count: int) -> None:
    model, x = build("strided_shortcut", torch.float64), images(7, dtype=torch.float64)
    whole = detector(model)(x)
    assert torch.allclose(detector(model)(x[:count]), whole[:count], rtol=1e-6)


@pytest.mark.parametrize("detector", [GaiaA, GaiaZ])
def test_no_images_give_no_scores(detector: type, unchanged: Callable[[nn.Module], nn.Module]) -> None:
    out = detector(unchanged(build("vgg_like"))).score(images(0), return_matrix=True)
    assert out.score.shape == (0,)
    assert out.score.dtype == torch.float32
    assert out.logits.shape == (0, 5)
    assert out.matrix.shape == (0, 2, 12)


@pytest.mark.parametrize("detector", [GaiaA, GaiaZ])
@pytest.mark.parametrize("name", ["resnet34", "dense_like", "group_norm", "parallel"])
def test_channels_last_images_and_models(name: str, detector: type) -> None:
    x = images(3, image_size(name))
    model: Any = build(name)
    expected = detector(model)(x)
    last = torch.channels_last
    assert relative_error(detector(model)(x.contiguous(memory_format=last)), expected) < SCORE_TOLERANCE
    model.to(memory_format=last)
    assert relative_error(detector(model)(x.contiguous(memory_format=last)), expected) < SCORE_TOLERANCE


@pytest.mark.parametrize("detector", [GaiaA, GaiaZ])
def test_sliced_and_expanded_images(detector: type) -> None:
    model = build("strided_shortcut")
    wide = images(6, 20)
    sliced = wide[::2, :, 2:18, 2:18]
    assert torch.equal(detector(model)(sliced), detector(model)(sliced.contiguous()))
    expanded = images(1).expand(4, -1, -1, -1)
    assert relative_error(detector(model)(expanded), detector(model)(images(1)).expand(4)) < SCORE_TOLERANCE


@pytest.mark.parametrize("name", ["resnet34", "dense_like", "group_norm", "vgg_like"])
def test_bfloat16(name: str) -> None:
    """The engine adds no error of its own: against the reference in the same dtype."""
    model, x = build(name, torch.bfloat16), images(3, image_size(name), torch.bfloat16)
    z = GaiaZ(model).score(x)
    assert z.score.dtype == torch.float32
    assert z.logits.dtype == torch.bfloat16
    # Gradients of 8 bits that differ in rounding cancel to zero at other places: some counts in ten thousand.
    assert relative_error(z.score, reference.gaia_z(model, x).score) < 1e-4
    truth = reference.gaia_a(copy.deepcopy(model).double(), x.double()).score
    plain = reference.gaia_a(model, x).score
    assert relative_error(GaiaA(model)(x), truth) < 2 * relative_error(plain, truth) + 2**-7


@pytest.mark.parametrize("detector", [GaiaA, GaiaZ])
def test_float64_goes_to_plain_pytorch(detector: type) -> None:
    model, x = build("resnet34", torch.float64), images(2, 32, torch.float64)
    scorer = detector(model)
    assert scorer.plan(x).backend.name == "torch"
    method = reference.gaia_z if detector is GaiaZ else reference.gaia_a
    assert relative_error(scorer(x), method(model, x).score) < 1e-7


@pytest.mark.parametrize("detector", [GaiaA, GaiaZ])
@pytest.mark.parametrize("name", ["resnet34", "parallel", "small_bit"])
def test_frozen_parameters(name: str, detector: type, unchanged: Callable[[nn.Module], nn.Module]) -> None:
    model, x = build(name), images(2, image_size(name))
    expected = detector(model)(x)
    assert torch.equal(detector(unchanged(model.requires_grad_(False)))(x), expected)


@pytest.mark.parametrize("detector", [GaiaA, GaiaZ])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("name", ["dense_like", "vgg_like"])
def test_inside_every_grad_mode(
    name: str, mode: type, detector: type, unchanged: Callable[[nn.Module], nn.Module]
) -> None:
    model = build(name)
    expected = detector(model)(images(2))
    with mode():
        out = detector(unchanged(model)).score(images(2))
        assert torch.equal(out.score, expected)
    assert not out.score.requires_grad
    assert not out.logits.requires_grad


@pytest.mark.parametrize("detector", [GaiaA, GaiaZ])
def test_repeated_calls_agree_bit_for_bit(detector: type) -> None:
    scorer, x = detector(build("resnet34")), images(4, 32)
    first = scorer.score(x)
    for _ in range(3):
        again = scorer.score(x)
        assert torch.equal(again.score, first.score)
        assert torch.equal(again.logits, first.logits)


@pytest.mark.parametrize("detector", [GaiaA, GaiaZ])
def test_a_module_that_raises_leaves_no_trace(detector: type, unchanged: Callable[[nn.Module], nn.Module]) -> None:
    class Boom(Exception):
        pass

    class Fuse(nn.Module):
        lit = False

        def forward(self, x: Tensor) -> Tensor:
            if self.lit:
                raise Boom("in mid-forward")
            return x

    fuse = Fuse()
    model = unchanged(Pooled(nn.Sequential(*conv_norm(3, 4), nn.ReLU(), *conv_norm(4, 4), fuse), 4).eval())
    scorer, x = detector(model), images(2)
    expected = scorer(x)
    fuse.lit = True
    with pytest.raises(Boom, match="in mid-forward"):
        scorer(x)
    assert torch.is_grad_enabled()
    fuse.lit = False
    assert torch.equal(scorer(x), expected)


@pytest.mark.parametrize("detector", [GaiaA, GaiaZ])
def test_images_that_do_not_fit_raise_and_leave_no_trace(
    detector: type, unchanged: Callable[[nn.Module], nn.Module]
) -> None:
    scorer = detector(unchanged(build("vgg_like")))
    with pytest.raises(ModelError, match=r"'features.0' on .* images of shape \(2, 1, 16, 16\)"):
        scorer(images(2)[:, :1])
    with pytest.raises(ModelError, match="'classifier.0'"):
        scorer(images(2, 24))


def test_an_inspected_map_that_nothing_reads_is_named() -> None:
    model = Dangling().eval()
    with pytest.raises(LayerError, match="'unused'"):
        GaiaZ(model)(images(1))
    assert GaiaZ(model, layers=["used"])(images(1)).isfinite().all()


@pytest.mark.parametrize("cut", ["detach", "no_grad", "inference_mode"])
def test_a_model_that_cuts_its_gradient_is_refused(cut: str) -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
            self.fc = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            if cut == "detach":
                x = self.second(x.detach())
            else:
                with getattr(torch, cut)():
                    x = self.second(x)
            return self.fc(x.mean((2, 3)))

    with pytest.raises(GaiaError, match="gradient"):
        GaiaZ(Cut().eval())(images(1))


def test_layers_named_by_the_user_that_are_no_norms() -> None:
    """A ReLU keeps its output for the backward pass, and a convolution's output may be changed in place behind it."""
    model, x = build("strided_shortcut"), images(2)
    names = ["stem.0", "stem.2", "residual.2", "pool"]
    truth = reference.gaia_z(copy.deepcopy(model).double(), x.double(), names)
    assert relative_error(GaiaZ(model, layers=names)(x), truth.score) < SCORE_TOLERANCE


def test_layers_that_start_in_the_middle_do_not_record_what_is_before() -> None:
    model, x = build("resnet34"), images(2, 32)
    recorded: list[bool] = []
    handles = [
        model.get_submodule(name).register_forward_hook(lambda _, __, out: recorded.append(out.requires_grad))
        for name in ("layer1", "layer2", "layer3.0.conv1")
    ]
    GaiaZ(model, layers=["layer3", "layer4"])(x)
    for handle in handles:
        handle.remove()
    assert recorded == [False, False, False]


def test_hooks_of_the_user_still_fire() -> None:
    model, x = build("strided_shortcut"), images(2)
    seen: list[torch.Size] = []
    handle = model.get_submodule("stem.1").register_forward_hook(lambda _, __, out: seen.append(out.shape))
    GaiaZ(model)(x)
    handle.remove()
    assert seen == [torch.Size((2, 8, 16, 16))]


def test_hooks_of_the_user_that_change_a_norm_s_output_count() -> None:
    """The engine's short cut through BatchNorm2d would not see the factor."""
    model, x = build("strided_shortcut"), images(2)
    plain = GaiaA(model, fusion="inner")(x)
    model.get_submodule("residual.1").register_forward_hook(lambda _, __, out: out * 2)
    truth = reference.gaia_a(copy.deepcopy(model).double(), x.double(), fusion="inner").score
    assert relative_error(GaiaA(model, fusion="inner")(x), truth) < SCORE_TOLERANCE
    assert relative_error(plain, truth) > 0.01


def test_a_norm_whose_forward_was_replaced_counts() -> None:
    model, x = build("strided_shortcut"), images(2)
    norm = model.get_submodule("residual.1")
    plain = norm.forward
    norm.forward = lambda x: plain(x) * 2
    truth = reference.gaia_a(model, x, fusion="inner").score
    assert relative_error(GaiaA(model, fusion="inner")(x), truth) < SCORE_TOLERANCE


def test_gradient_hooks_of_the_user_on_a_norm_still_fire() -> None:
    model, x = build("smooth"), images(2)
    seen: list[torch.Size] = []
    norm = model.get_submodule("trunk.4")
    handle = norm.register_full_backward_hook(lambda _, grad_in, grad_out: seen.append(grad_in[0].shape))
    GaiaZ(model)(x)
    handle.remove()
    assert seen == [torch.Size((2, 8, 16, 16))]


def test_threads_do_not_see_each_other_s_pass() -> None:
    model = build("resnet34")
    batches = [images(2, 32, seed=seed) for seed in range(4)]
    scorer = GaiaZ(model)
    expected = [scorer(x) for x in batches]
    found: dict[int, list[Tensor]] = {i: [] for i in range(4)}

    def work(i: int) -> None:
        found[i] = [scorer(batches[i]) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        assert len(found[i]) == 3
        assert all(relative_error(each, expected[i]) < SCORE_TOLERANCE for each in found[i])


@pytest.mark.parametrize("detector", [GaiaA, GaiaZ])
def test_a_call_leaves_nothing_behind_without_the_garbage_collector(detector: type) -> None:
    """No reference cycle holds the graph: its tensors die with the call, not some time later."""
    model, x = build("strided_shortcut"), images(2)
    scorer = detector(model)
    scorer(x)
    maps: list[weakref.ref[Tensor]] = []
    handle = model.get_submodule("residual.0").register_forward_hook(lambda _, __, out: maps.append(weakref.ref(out)))
    gc.collect()
    gc.disable()
    try:
        before = sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())
        for _ in range(5):
            scorer(x)
        after = sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())
    finally:
        gc.enable()
        handle.remove()
    assert maps
    assert all(ref() is None for ref in maps)
    assert after == before


def test_autocast() -> None:
    model, x = build("resnet34"), images(2, 32)
    with torch.autocast("cpu", torch.bfloat16):
        score = GaiaZ(model)(x)
    assert score.dtype == torch.float32
    assert relative_error(score, GaiaZ(model)(x)) < 0.02
