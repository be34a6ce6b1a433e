from dataclasses import replace

import numpy as np
import pytest
import torch

from gaia_fast import GaiaA, GaiaZ
from gaia_fast.data import PRESETS, ImageSource
from gaia_fast.data.digits import held_out_pictures, noise_pictures
from gaia_fast.errors import DataError, LayerError
from gaia_fast.measurement import FeatureMap
from gaia_fast.models import digits_resnet
from gaia_fast.options import EngineOption
from gaia_fast.reproduction.networks import NETWORKS
from gaia_fast.reproduction.score_cache import ScoreCache
from gaia_fast.reproduction.scoring import GaiaScore, NetworkScores, places_of

import torchvision_schemas  # noqa: F401  (before pytorch-ood)
from digit_sources import Damaged, source

DIGITS = replace(NETWORKS["resnet34_cifar10"], make=lambda: digits_resnet(pretrained=True), preset=PRESETS["digits"])
MAPS = [
    FeatureMap("bn", 8, 8, 8),
    FeatureMap("a.bn1", 8, 4, 4),
    FeatureMap("a.bn2", 8, 2, 2),
    FeatureMap("ab", 8, 2, 2),
]


def scores_of(digits: ImageSource, fit: ImageSource | None = None, engine: EngineOption = "hooks") -> NetworkScores:
    example = torch.stack([digits[0], digits[1]])
    return NetworkScores(DIGITS, DIGITS.make(), example, fit, ScoreCache(None), engine, batch_size=16)


@pytest.fixture(scope="module")
def digits() -> ImageSource:
    pictures, labels = held_out_pictures()
    return source(pictures[:40], labels[:40])


@pytest.mark.parametrize(
    ("layers", "places"),
    [
        (None, [0, 1, 2, 3]),
        (["a"], [1, 2]),
        (["a.bn2", "bn"], [0, 2]),
        (["last_stage"], [2, 3]),
        (["last_two_stages"], [1, 2, 3]),
        (["8x8", "2x2"], [0, 2, 3]),
    ],
)
def test_places_of_layers(layers: list[str] | None, places: list[int]) -> None:
    assert places_of(MAPS, layers) == places


def test_layers_that_are_not_there() -> None:
    with pytest.raises(LayerError, match="'c'"):
        places_of(MAPS, ["a", "c"])


@pytest.mark.parametrize("p", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("layers", [None, ("layer3", "layer4")])
def test_gaia_scores_are_the_detectors(digits: ImageSource, layers: tuple[str, ...] | None, p: float) -> None:
    """One pass over all layers gives what a detector of these layers and this norm does."""
    scores = scores_of(digits)
    images = torch.stack([digits[index] for index in range(len(digits))])
    for score, detector in (
        (GaiaScore("gaia-z", layers=layers, p=p), GaiaZ(scores.model, layers=layers, p=p)),
        (GaiaScore("gaia-a", layers=layers, p=p), GaiaA(scores.model, layers=layers, p=p)),
        (GaiaScore("gaia-a", "output", layers, p), GaiaA(scores.model, layers=layers, p=p, fusion="output")),
        (GaiaScore("gaia-a", "top1", layers, p), GaiaA(scores.model, layers=layers, p=p, fusion="top1")),
    ):
        np.testing.assert_allclose(scores.gaia(score, digits), detector(images).numpy(), rtol=1e-4)


def test_unreadable_images_are_left_out_by_name() -> None:
    pictures, labels = held_out_pictures()
    good = source(pictures[:20], labels[:20])

    scores = scores_of(good)
    damaged = Damaged(good)
    found, labels_found = scores.representation(damaged)
    assert found.logits.shape[0] == 18
    assert labels_found is None
    assert scores.gaia(GaiaScore("gaia-z"), damaged).shape == (18,)
    assert list(scores.unreadable) == ["3: damaged", "7: damaged"]


def test_a_set_of_which_nothing_can_be_read() -> None:
    good = source(held_out_pictures()[0][:4])
    empty = ImageSource(["a"], [b"no image"], PRESETS["digits"])
    with pytest.raises(DataError, match="none of the 1 images"):
        scores_of(good).representation(empty)


def test_baselines_from_features_and_from_images(digits: ImageSource) -> None:
    pytest.importorskip("pytorch_ood", reason="pytorch-ood is not installed")
    pictures, labels = held_out_pictures()
    scores = scores_of(digits, fit=source(pictures[100:300], labels[100:300]))
    noise = source(noise_pictures()[:30])
    for name in ("energy", "knn", "odin"):
        assert scores.baseline(name, digits).shape == (40,)
        assert scores.baseline(name, noise).shape == (30,)
    assert scores.seconds["forward pass"] > 0
    assert scores.seconds["odin"] > 0


def test_fitting_needs_labels(digits: ImageSource) -> None:
    pytest.importorskip("pytorch_ood", reason="pytorch-ood is not installed")
    with pytest.raises(DataError, match="no labels"):
        scores_of(digits, fit=source(held_out_pictures()[0][100:150])).baseline("knn", digits)
