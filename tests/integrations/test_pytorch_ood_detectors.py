import torchvision_schemas  # noqa: F401  isort: skip  before pytorch-ood

import importlib
import pickle
import sys
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, TensorDataset

from gaia_fast import GaiaA, GaiaZ
from gaia_fast.data.digits import held_out_digits
from gaia_fast.errors import ArgumentError, BackendError, InputError, LayerError, ModelError
from gaia_fast.evaluation.metrics import ood_metrics
from gaia_fast.models import digits_resnet

pytest.importorskip("pytorch_ood", reason="pytorch-ood is not installed")

from pytorch_ood.api import Detector, DetectorInfo, GradientDetector, ModelNotSetException, Task
from pytorch_ood.benchmark import Benchmark
from pytorch_ood.detector import MaxSoftmax
from pytorch_ood.utils import GridSearch

from gaia_fast.integrations.pytorch_ood import GAIAA, GAIAZ

from docstring_examples import check_examples

KINDS = {GAIAZ: GaiaZ, GAIAA: GaiaA}
both = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return digits_resnet(pretrained=True)


@pytest.fixture(scope="module")
def digits() -> TensorDataset:
    x, labels = held_out_digits()
    return TensorDataset(x[:40], labels[:40])


@pytest.fixture(scope="module")
def noise() -> TensorDataset:
    x = torch.rand(30, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, torch.full((30,), -1))


@pytest.fixture(scope="module")
def x(digits: TensorDataset) -> Tensor:
    return digits.tensors[0][:12]


class Digits(Benchmark):  # type: ignore[misc]  # the library has no types
    """Digits against noise."""

    ood_names = ("noise",)

    def __init__(self, digits: TensorDataset, noise: TensorDataset) -> None:
        self.sets = digits, noise

    def train_set(self) -> Dataset[Any]:
        return self.sets[0]

    def test_sets(self, known: bool = True, unknown: bool = True) -> list[Dataset[Any]]:
        return [ConcatDataset([each for each, asked in zip(self.sets, (known, unknown), strict=True) if asked])]


@both
def test_a_detector_as_the_library_has_them(kind: Any, model: nn.Module, digits: TensorDataset, x: Tensor) -> None:
    detector = kind(model)
    assert isinstance(detector, GradientDetector)
    assert "info" in vars(kind)
    assert isinstance(kind.info, DetectorInfo)
    assert kind.info.tasks == {Task.CLASSIFICATION}
    assert not kind.requires_fit
    assert detector.fit(DataLoader(digits, batch_size=8)) is detector
    assert detector.to("cpu") is detector
    assert detector.device == torch.device("cpu")
    scores = detector(x)
    assert torch.equal(scores, KINDS[kind](model)(x))
    assert torch.equal(scores, detector.predict(x))
    assert scores.shape == (12,)
    assert scores.dtype == torch.float32
    for other in ("predict_logits", "predict_features", "predict_feature_maps", "predict_structured"):
        assert not hasattr(detector, other)


@both
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_and_with_frozen_weights(kind: Any, mode: Any, model: nn.Module, x: Tensor) -> None:
    expected, frozen = kind(model)(x), deepcopy(model).requires_grad_(False)
    before = deepcopy(frozen.state_dict())
    with mode():
        detector = kind(frozen)
        assert torch.equal(detector.fit(None)(x.clone()), expected)
    assert torch.equal(detector(x), expected)
    assert all(torch.equal(each, before[name]) for name, each in frozen.state_dict().items())
    assert all(each.grad is None and not each.requires_grad for each in frozen.parameters())
    assert not any(each.training or each._forward_hooks or each._forward_pre_hooks for each in frozen.modules())


@both
@pytest.mark.parametrize("size", [1, 5, 12, 100])
def test_micro_batches_score_alike(kind: Any, size: int, model: nn.Module, x: Tensor) -> None:
    seen: list[int] = []
    watched = deepcopy(model)
    watched.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    torch.testing.assert_close(kind(watched, micro_batch_size=size)(x), kind(model)(x))
    assert max(seen) == min(size, 12)


@both
def test_an_empty_batch(kind: Any, model: nn.Module, x: Tensor) -> None:
    assert kind(model)(x[:0]).shape == kind(model, micro_batch_size=4)(x[:0]).shape == (0,)


@both
def test_hyperparameters(kind: Any, model: nn.Module, x: Tensor) -> None:
    detector = kind(model)
    before = detector(x)
    assert detector.get_hyperparameters() == {"layers": None, "p": 2.0}
    assert detector.set_hyperparameters(layers=["layer4"], p=3.0) is detector
    assert detector.get_hyperparameters() == {"layers": ["layer4"], "p": 3.0}
    assert torch.equal(detector(x), KINDS[kind](model, layers=["layer4"], p=3.0)(x))
    detector.layers.append("layer3")
    assert torch.equal(detector(x), KINDS[kind](model, layers=["layer4", "layer3"], p=3.0)(x))
    detector.p = 4.0
    assert torch.equal(detector(x), KINDS[kind](model, layers=["layer4", "layer3"], p=4.0)(x))
    assert torch.equal(detector.set_hyperparameters(layers=None, p=2.0)(x), before)
    assert {"layers", "p"} == set(kind.hyperparameter_space)
    assert all(detector.get_hyperparameters()[name] in each for name, each in kind.hyperparameter_space.items())


@both
@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"p": 3.0, "percentile": 0.9}, ValueError),
        ({"p": 0.5}, ArgumentError),
        ({"p": 3.0, "layers": ["nowhere"]}, LayerError),
    ],
)
def test_hyperparameters_that_cannot_be_change_nothing(
    kind: Any, wrong: dict[str, Any], error: type[Exception], model: nn.Module, x: Tensor
) -> None:
    detector = kind(model)
    before = detector(x)
    with pytest.raises(error):
        detector.set_hyperparameters(**wrong)
    assert detector.get_hyperparameters() == {"layers": None, "p": 2.0}
    assert torch.equal(detector(x), before)


@both
def test_the_model_is_followed(kind: Any, model: nn.Module, x: Tensor) -> None:
    changing = deepcopy(model)
    detector = kind(changing)
    detector.gaia.prepare(x)
    before, kept = detector(x), detector.gaia
    with torch.no_grad():
        for each in changing.parameters():
            each.add_(0.05)
    assert detector.gaia is kept
    changed = detector(x)
    torch.testing.assert_close(changed, KINDS[kind](changing)(x))
    assert not torch.allclose(changed, before)
    detector.model = nn.DataParallel(model)
    assert torch.equal(detector(x), kind(model)(x))


@both
def test_copied_and_pickled(kind: Any, model: nn.Module, x: Tensor) -> None:
    detector = kind(model, layers="last_stage", p=3.0, micro_batch_size=8, engine="hooks")
    expected = detector(x)
    for again in (pickle.loads(pickle.dumps(detector)), deepcopy(detector)):
        assert again.model is again.gaia.model is not model
        assert again.get_hyperparameters() == detector.get_hyperparameters()
        assert again.micro_batch_size == 8
        assert torch.equal(again(x), expected)


@both
def test_the_example_runs(kind: Any) -> None:
    check_examples(kind)


def test_options_of_gaia_fast(model: nn.Module, x: Tensor) -> None:
    assert torch.equal(GAIAA(model, fusion="inner", head="linear")(x), GaiaA(model, fusion="inner")(x))
    assert GAIAZ(model, engine="reference").gaia.plan(x).engine.name == "reference"
    with pytest.raises(ArgumentError, match=r"GAIAZ: GaiaZ has no option 'fusion'"):
        GAIAZ(model, fusion="inner")


@both
def test_what_is_wrong_is_said(kind: Any, model: nn.Module, x: Tensor) -> None:
    with pytest.raises(ModelNotSetException, match=kind.__name__):
        kind(None)
    detector = kind(model)
    detector.model = None
    with pytest.raises(ModelNotSetException):
        detector(x)
    with pytest.raises(ModelError, match="training mode"):
        kind(deepcopy(model).train())
    detector = kind(model)
    for size in (0, -1, 2.5, True):
        with pytest.raises(ArgumentError, match="micro_batch_size"):
            kind(model, micro_batch_size=size)
        with pytest.raises(ArgumentError, match="micro_batch_size"):
            detector.micro_batch_size = size
    assert detector.micro_batch_size is None
    for images in (x[0], x.numpy(), x.long()):
        with pytest.raises(InputError):
            kind(model, micro_batch_size=2)(images)


def test_the_library_s_benchmark_gives_our_metrics(
    model: nn.Module, digits: TensorDataset, noise: TensorDataset
) -> None:
    detectors: list[Detector] = [GAIAZ(model), GAIAA(model), MaxSoftmax(model)]
    with torch.no_grad():
        results = Digits(digits, noise).evaluate(detectors, loader_kwargs={"batch_size": 16})
    found = {each["Detector"]: each for each in results}
    assert list(found) == ["GAIAZ", "GAIAA", "MaxSoftmax"]
    for kind, own in KINDS.items():
        # Batches go across the border between both sets, so that scores are those of these images to rounding alone.
        expected = ood_metrics(own(model)(digits.tensors[0]), own(model)(noise.tensors[0]))
        assert found[kind.__name__]["AUROC"] == pytest.approx(expected.auroc, abs=1e-6)
        assert found[kind.__name__]["FPR95TPR"] == pytest.approx(expected.fpr95_ood_positive, abs=1e-6)
        assert found[kind.__name__]["AUROC"] > 0.9


@both
def test_the_library_s_search(kind: Any, model: nn.Module, digits: TensorDataset, noise: TensorDataset) -> None:
    detector = kind(model)
    search = GridSearch(detector, None, DataLoader(ConcatDataset([digits, noise]), batch_size=70))
    best = search.run()
    assert len(search.results_) == 9
    assert detector.get_hyperparameters() == best
    images = digits.tensors[0][:4]
    assert torch.equal(detector(images), KINDS[kind](model, **best)(images))


def test_without_pytorch_ood_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = "gaia_fast.integrations.pytorch_ood"
    for name in [name for name in sys.modules if name == ours or name.split(".")[0] == "pytorch_ood"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pytorch_ood", None)
    with pytest.raises(BackendError, match=r"gaia-fast\[pytorch-ood\]"):
        importlib.import_module(ours)
