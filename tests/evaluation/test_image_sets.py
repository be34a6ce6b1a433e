import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gaia_fast import Gaia, GaiaA, GaiaZ
from gaia_fast.data import PRESETS, ImageSource, surrogate_sources
from gaia_fast.data.digits import digits_sources, held_out_digits
from gaia_fast.errors import ArgumentError, DataError, NonFiniteError
from gaia_fast.evaluation import image_sets
from gaia_fast.evaluation.image_sets import MethodResult, ScoredSet, compare, make_detector, score_set, weak_spots
from gaia_fast.models import digits_resnet
from gaia_fast.models.resnet import ResNet


@pytest.fixture(scope="module")
def model() -> ResNet:
    return digits_resnet(pretrained=True)


@pytest.fixture(scope="module")
def sources() -> tuple[ImageSource, dict[str, ImageSource]]:
    id_source, ood = digits_sources()
    return id_source, ood


def first(source: ImageSource, count: int) -> ImageSource:
    labels = None if source.labels is None else source.labels[:count]
    return ImageSource(source.names[:count], source._pictures[:count], source.preset, labels)


def scored(scores: Sequence[float], baseline: Sequence[float] | None = None) -> ScoredSet:
    array = np.asarray(scores, dtype=np.float32)
    by_method = {"gaia-z": array, "msp": array if baseline is None else np.asarray(baseline)}
    return ScoredSet([str(i) for i in range(len(scores))], None, np.zeros(len(scores), int), by_method, [])


def test_make_detector(model: nn.Module) -> None:
    detector = make_detector("gaia-a", model, layers=["layer4"], fusion="inner", statistic="mean_abs", engine="hooks")
    assert isinstance(detector, GaiaA)
    assert (detector.method.fusion, detector.method.statistic) == ("inner", "mean_abs")
    assert isinstance(make_detector("gaia-z", model, backend="torch"), GaiaZ)
    with pytest.raises(ArgumentError, match="gaia-x"):
        make_detector("gaia-x", model)


def test_score_set_equals_the_detectors(model: nn.Module, sources: tuple[ImageSource, dict[str, ImageSource]]) -> None:
    source = first(sources[0], 13)
    detectors: dict[str, GaiaA | GaiaZ] = {"gaia-a": GaiaA(model, layers=["layer4"]), "gaia-z": GaiaZ(model)}
    done: list[int] = []
    found = score_set(detectors, source, batch_size=5, advance=done.append)
    assert done == [5, 5, 3]
    images, labels = held_out_digits()
    for method, detector in detectors.items():
        expected = torch.cat([detector.predict(batch) for batch in images[:13].split(5)])
        assert np.array_equal(found.scores[method], expected.numpy())
    with torch.no_grad():
        logits = model(images[:13]).double()
    assert found.names == [str(index) for index in range(13)]
    assert found.labels is not None
    assert np.array_equal(found.labels, labels[:13].numpy())
    assert np.array_equal(found.predicted, logits.argmax(1).numpy())
    assert found.accuracy == float((logits.argmax(1) == labels[:13]).double().mean())
    # To float32's rounding: the logits come from batches of another size.
    assert found.scores["msp"] == pytest.approx(-torch.softmax(logits, 1).amax(1).numpy(), rel=1e-5)


def test_one_detector_of_several_scores_reads_each_image_once_and_evaluates_the_same(
    model: nn.Module, sources: tuple[ImageSource, dict[str, ImageSource]]
) -> None:
    id_source, ood = first(sources[0], 40), {name: first(each, 20) for name, each in list(sources[1].items())[:2]}
    detectors: dict[str, GaiaA | GaiaZ] = {
        "gaia-a": GaiaA(model, layers=["layer4"], p=3.0),
        "gaia-z": GaiaZ(model, p=3.0),
    }
    joint = Gaia(model, scores=("gaia-a", "gaia-z"), layers={"gaia-a": ["layer4"]}, p=3.0)
    apart = image_sets.evaluate(detectors, id_source, ood, 16, by_layers=True)
    calls: list[int] = []
    with model.register_forward_hook(lambda *_: calls.append(1)):
        score_set(joint, id_source, 16)
        before = len(calls)
        score_set(joint, id_source, 16)
    assert len(calls) - before == 3
    together = image_sets.evaluate(joint, id_source, ood, 16, by_layers=True)
    assert list(together.results) == ["gaia-a", "gaia-z", "msp"]
    assert together.results == apart.results
    assert together.by_layers == apart.by_layers
    with_msp = score_set(Gaia(model, scores=("msp", "energy")), id_source)
    assert sorted(with_msp.scores) == ["energy", "msp"]
    np.testing.assert_allclose(with_msp.scores["msp"], apart.id_set.scores["msp"], rtol=1e-6)


def test_images_follow_the_models_dtype(model: nn.Module, sources: tuple[ImageSource, dict[str, ImageSource]]) -> None:
    double = digits_resnet(pretrained=True).double()
    found = score_set({"gaia-z": GaiaZ(double)}, first(sources[0], 4))
    expected = score_set({"gaia-z": GaiaZ(model)}, first(sources[0], 4))
    assert found.scores["gaia-z"] == pytest.approx(expected.scores["gaia-z"], rel=1e-4)


def test_unreadable_images_are_left_out(model: nn.Module) -> None:
    pictures = np.zeros((3, 8, 8, 3), dtype=np.uint8)
    small = ImageSource(["a", "b", "c"], pictures, PRESETS["cifar10"])
    with pytest.raises(DataError, match=r"none of the 3 images can be read \(a: .*smaller than the 32x32 crop"):
        score_set({"gaia-z": GaiaZ(model)}, small)


def test_an_image_without_a_score_is_named() -> None:
    class Flat(nn.Module):
        """Logits that are all equal, where GAIA-A's output component is zero."""

        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)
            self.head = nn.Linear(3, 4)
            nn.init.zeros_(self.head.weight)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(x).mean((2, 3)))

    source = ImageSource(["first.png", "last.png"], np.zeros((2, 8, 8, 3), dtype=np.uint8), PRESETS["none"])
    with pytest.raises(NonFiniteError, match=r"output component.*\(the batch from first.png to last.png\)"):
        score_set({"gaia-a": GaiaA(Flat().eval())}, source)


def test_compare() -> None:
    found = compare(scored([1, 2, 3, 4]), {"near": scored([3, 5]), "far": scored([8, 9])})
    assert set(found.results) == {"gaia-z", "msp"}
    result = found.results["gaia-z"]
    assert isinstance(result, MethodResult)
    assert result.threshold == 4
    assert result.metrics["near"].auroc == pytest.approx((2.5 + 4) / 8)
    assert result.metrics["near"].fpr95_id_positive == 0.5
    assert result.metrics["far"].auroc == 1


def test_surrogates_are_told_from_ood_data() -> None:
    near, surrogate = scored([0, 0]), dataclasses.replace(scored([0, 0]), surrogate=True)
    found = compare(scored([1, 2, 3, 4]), {"surrogate-noise": surrogate})
    assert found.on_surrogates
    assert "surrogates score lower than ID ones" in weak_spots(found)[0]
    found = compare(scored([1, 2, 3, 4]), {"near": near})
    assert not found.on_surrogates
    assert "OOD images score lower than ID ones" in weak_spots(found)[0]
    with pytest.raises(ArgumentError, match="OOD images and surrogates means nothing"):
        compare(scored([1, 2, 3, 4]), {"near": near, "surrogate-noise": surrogate})


def test_the_surrogates_of_a_source_are_scored_as_such(
    model: nn.Module, sources: tuple[ImageSource, dict[str, ImageSource]]
) -> None:
    id_source = first(sources[0], 8)
    found = image_sets.evaluate({"gaia-z": GaiaZ(model)}, id_source, surrogate_sources(id_source))
    assert found.on_surrogates
    assert not found.id_set.surrogate


def test_weak_spots_say_what_is_wrong() -> None:
    id_set = scored([1, 2, 3, 4], baseline=[0.1, 0.2, 0.3, 0.4])
    found = compare(
        id_set,
        {
            "good": scored([8, 9], baseline=[0.8, 0.1]),
            "bad": scored([3.5, 2.5], baseline=[0.1, 0.1]),
            "swapped": scored([0, 0], baseline=[0.35, 0.35]),
        },
    )
    bad, swapped, beaten = weak_spots(found)
    assert bad.startswith("gaia-z separates 'bad' badly (AUROC 0.625")
    assert "it accepts 100% of its images" in bad
    assert swapped.startswith("gaia-z separates 'swapped' the wrong way round")
    assert beaten.startswith("on 'swapped' the maximum softmax probability alone does better (AUROC 0.750)")
    assert "good" not in "".join(weak_spots(found, below=0.99))


def test_evaluate_on_the_demos_images(model: nn.Module, sources: tuple[ImageSource, dict[str, ImageSource]]) -> None:
    id_source, ood = first(sources[0], 60), {name: first(sources[1][name], 40) for name in ("photos", "noise")}
    found = image_sets.evaluate({"gaia-z": GaiaZ(model)}, id_source, ood)
    assert found.id_set.accuracy is not None
    assert found.id_set.accuracy > 0.95
    for name in ood:
        metrics = found.results["gaia-z"].metrics[name]
        assert (metrics.n_id, metrics.n_ood) == (60, 40)
        assert metrics.auroc > 0.97
    assert list(found.results) == ["gaia-z", "msp"]
