import torchvision_schemas  # noqa: F401  isort: skip  before pytorch-ood

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from gaia_fast.baselines import BASELINES, Hyperparameters, Representation, SplitNetwork, pytorch_ood
from gaia_fast.baselines.methods import FitImages
from gaia_fast.data import ImageSource
from gaia_fast.data.digits import held_out_pictures, noise_pictures
from gaia_fast.errors import BackendError, DataError
from gaia_fast.evaluation.metrics import ood_metrics
from gaia_fast.models import digits_resnet

from digit_sources import Damaged, source

THERE = importlib.util.find_spec("pytorch_ood") is not None
needs_library = pytest.mark.skipif(not THERE, reason="pytorch-ood is not installed")
UNABLE = ("exgrad", "gradnorm", "lee-alregib", "nac", "rankfeat", "scale", "vra")  # to tell noise from these digits
OPTIONS = Hyperparameters(pixel_std=(0.5, 0.5, 0.5), neighbour_share=0.02, nac_layers=("layer4",))


def images_of(of: ImageSource) -> Tensor:
    return torch.stack([of[index] for index in range(len(of))])


@pytest.fixture(scope="module")
def network() -> SplitNetwork:
    return SplitNetwork(digits_resnet(pretrained=True), torch.zeros(1, 3, 32, 32))


@pytest.fixture(scope="module")
def fit(network: SplitNetwork) -> FitImages:
    pictures, labels = held_out_pictures()
    of = source(pictures[100:500], labels[100:500])
    return FitImages(of, torch.from_numpy(labels[100:500]), network.represent(images_of(of)))


@pytest.fixture(scope="module")
def inside() -> Tensor:
    return images_of(source(held_out_pictures()[0][:60]))


@pytest.fixture(scope="module")
def outside() -> Tensor:
    return images_of(source(noise_pictures()[:60]))


def scores(name: str, network: SplitNetwork, fit: FitImages, images: Tensor) -> Tensor:
    method = BASELINES[name]
    score = method.scorer(network, OPTIONS, fit if method.fitted else None)
    return score(images if method.of_images else network.represent(images))


@needs_library
@pytest.mark.parametrize("name", BASELINES)
def test_every_method_tells_noise_from_digits(
    name: str, network: SplitNetwork, fit: FitImages, inside: Tensor, outside: Tensor
) -> None:
    """The sign is right: larger is more out of distribution."""
    found = scores(name, network, fit, inside)
    assert found.shape == (60,)
    assert bool(torch.isfinite(found).all())
    assert not found.requires_grad
    metrics = ood_metrics(found, scores(name, network, fit, outside))
    if name not in UNABLE:
        assert metrics.auroc > 0.6
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in network.model.modules())


@needs_library
@pytest.mark.parametrize("name", BASELINES)
def test_images_do_not_change_each_others_scores(
    name: str, network: SplitNetwork, fit: FitImages, inside: Tensor
) -> None:
    together = scores(name, network, fit, inside[:4])
    alone = torch.cat([scores(name, network, fit, each[None]) for each in inside[:4]])
    torch.testing.assert_close(together.double(), alone.double(), rtol=1e-3, atol=1e-4)


@needs_library
def test_scores_are_what_their_papers_define(network: SplitNetwork, fit: FitImages, inside: Tensor) -> None:
    logits, features = network.represent(inside)
    p = logits.softmax(1)
    classes = logits.shape[1]
    expected = {
        "msp": -p.amax(1),
        "max-logit": -logits.amax(1),
        "energy": -logits.logsumexp(1),
        "gradnorm": -features.abs().sum(1) * (p - 1 / classes).abs().sum(1),
        "knn": _knn(features, fit.found.features, round(0.02 * len(fit.labels))),
    }
    for name, each in expected.items():
        torch.testing.assert_close(
            scores(name, network, fit, inside).double(),
            each.double(),
            rtol=1e-3,
            atol=1e-4,
            msg=name,
        )


def _knn(features: Tensor, fitted: Tensor, k: int) -> Tensor:
    unit, others = torch.nn.functional.normalize(features, dim=1), torch.nn.functional.normalize(fitted, dim=1)
    return torch.cdist(unit.double(), others.double()).kthvalue(k, dim=1).values


@needs_library
def test_odin_steps_by_the_pixels_scale(network: SplitNetwork, inside: Tensor) -> None:
    """An image is moved by eps over the deviation that pixels were divided by: twice as far where that is half."""
    small = BASELINES["odin"].scorer(network, Hyperparameters(pixel_std=(0.25,) * 3))(inside)
    large = BASELINES["odin"].scorer(network, Hyperparameters(pixel_std=(0.5,) * 3))(inside)
    assert not torch.equal(small, large)


def test_unfitted_methods_are_refused_by_name(network: SplitNetwork) -> None:
    for name, method in BASELINES.items():
        if method.fitted:
            with pytest.raises(DataError, match=name):
                method.scorer(network, OPTIONS)


@needs_library
@pytest.mark.parametrize(
    ("name", "kept", "reason"),
    [
        ("mahalanobis", slice(0, 5), "images of all 10 classes"),
        ("she", slice(0, 5), "classified rightly of all 10 classes"),
        ("vim", slice(0, 10), "more than 64 images"),
        ("nnguide", slice(0, 5), "at least 10 images"),
    ],
)
def test_too_few_images_to_fit_on(name: str, kept: slice, reason: str, network: SplitNetwork, fit: FitImages) -> None:
    few = FitImages(fit.source, fit.labels[kept], Representation(fit.found.logits[kept], fit.found.features[kept]))
    with pytest.raises(DataError, match=reason):
        BASELINES[name].scorer(network, OPTIONS, few)


@needs_library
def test_nac_needs_layers(network: SplitNetwork, fit: FitImages) -> None:
    with pytest.raises(DataError, match="layers"):
        BASELINES["nac"].scorer(network, Hyperparameters(pixel_std=(0.5,) * 3), fit)


class _Blocked:
    """Refuses to import some packages, as where they are missing or do not fit."""

    names: tuple[str, ...] = ()
    error: type[Exception] = RuntimeError

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.split(".")[0] in self.names:
            raise self.error(f"{name} is blocked")


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Blocked]:
    """Modules imported so far forgotten, and some refused; put back afterwards."""
    blocked = _Blocked()
    for name in [name for name in sys.modules if name.split(".")[0] in ("pytorch_ood", "torchvision")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [blocked, *sys.meta_path])
    pytorch_ood.detectors.cache_clear()
    yield blocked
    pytorch_ood.detectors.cache_clear()


@needs_library
def test_detectors_need_no_torchvision(without: _Blocked) -> None:
    without.names = ("torchvision",)
    assert pytorch_ood.detectors().KNN.__name__ == "KNN"
    assert not any(name.split(".")[0] == "pytorch_ood" for name in sys.modules)  # half a package is left to nobody


def test_without_pytorch_ood_the_extra_is_named(without: _Blocked, monkeypatch: pytest.MonkeyPatch) -> None:
    without.names = ("pytorch_ood",)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"gaia-fast\[baselines\]"):
        pytorch_ood.detectors()


@needs_library
def test_nac_leaves_damaged_images_out_and_no_hook_behind(network: SplitNetwork, fit: FitImages) -> None:
    damaged = FitImages(Damaged(source(held_out_pictures()[0][:20])), fit.labels, fit.found)
    score = BASELINES["nac"].scorer(network, OPTIONS, damaged)
    with pytest.raises(BackendError, match="nac failed"):
        score(torch.rand(2, 5, 32, 32))
    assert not any(each._forward_hooks for each in network.model.modules())


class WithLogits(torch.nn.Module):
    """As Hugging Face's models do."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> object:
        return SimpleNamespace(logits=self.model(x))


@needs_library
@pytest.mark.parametrize("name", ["odin", "lee-alregib", "nac"])
def test_models_that_return_an_object_of_logits(
    name: str, network: SplitNetwork, fit: FitImages, inside: Tensor
) -> None:
    wrapped = SplitNetwork(WithLogits(network.model).eval(), inside[:1])
    options = replace(OPTIONS, nac_layers=("model.layer4",))
    found = BASELINES[name].scorer(wrapped, options, fit)(inside[:4])
    torch.testing.assert_close(found, BASELINES[name].scorer(network, OPTIONS, fit)(inside[:4]))
