"""The threshold: which score it is, and what is refused."""

import math
from collections import UserDict

import numpy as np
import pytest
import torch

from gaia_fast import GaiaOutput, GaiaScores
from gaia_fast.calibration import Calibration, decide, image_batches, looks_like_scores, threshold_for
from gaia_fast.errors import CalibrationError


@pytest.mark.parametrize(
    ("count", "share", "rank"), [(20, 0.95, 19), (100, 0.95, 95), (3, 0.5, 2), (7, 1.0, 7), (5, 0.01, 1), (1, 0.95, 1)]
)
def test_the_rank_of_the_threshold(count: int, share: float, rank: int) -> None:
    scores = np.random.default_rng(0).permutation(np.arange(1.0, count + 1))
    assert threshold_for(scores, share) == rank


def test_a_score_that_is_no_number_counts_as_above_any_threshold() -> None:
    scores = torch.tensor([1.0, 2.0, math.nan, 3.0])
    assert decide(scores, 2.0).tolist() == [False, False, True, True]
    assert GaiaOutput(torch.zeros(4, 2), scores, threshold=2.0).is_ood.tolist() == [False, False, True, True]  # type: ignore[union-attr]
    assert GaiaScores(torch.zeros(4, 2), {"msp": scores}, thresholds={"msp": 2.0}).is_ood["msp"].tolist() == [
        False, False, True, True,
    ]  # fmt: skip


@pytest.mark.parametrize("share", [0.5, 0.9, 0.95, 0.99])
def test_at_least_the_share_is_accepted_and_no_smaller_threshold_would_do(share: float) -> None:
    scores = torch.randn(137, generator=torch.Generator().manual_seed(0)).round(decimals=1)  # with ties
    threshold = threshold_for(scores, share)
    assert (scores.double() <= threshold).double().mean() >= share
    assert (scores.double() < threshold).double().mean() < share


@pytest.mark.parametrize("count", [1, 7, 1000, 1001, 20_000])
@pytest.mark.parametrize("decimals", [1, 17])
def test_what_a_calibration_still_knows_of_its_scores(count: int, decimals: int) -> None:
    scores = np.random.default_rng(0).normal(size=count).round(decimals)
    allowed = 1e-12 if count <= 1000 else 0.001
    for share in (0.05, 0.5, 0.95, 0.9999, 1.0):
        calibration, threshold = Calibration.of(scores, share), threshold_for(scores, share)
        assert calibration.accepted_by(threshold) == pytest.approx((scores <= threshold).mean(), abs=allowed)
        if count == 20_000 and decimals == 17:
            assert calibration.accepted_by(threshold) == share
        assert calibration.accepted_by(threshold + 100) == 1
        assert calibration.accepted_by(threshold - 100) == 0
    values, shares = calibration.cdf()
    assert (np.diff(values) > 0).all()
    exact = (scores <= values[:, None]).mean(axis=1)
    assert ((shares <= exact + 1e-12) & (shares >= exact - allowed)).all()


@pytest.mark.parametrize("bad", [[], [[1.0]], [1.0, math.nan], [math.inf], torch.zeros(2, 2)])
def test_unusable_scores(bad: object) -> None:
    with pytest.raises(CalibrationError):
        threshold_for(bad)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, 95, math.nan])
def test_unusable_shares(share: float) -> None:
    with pytest.raises(CalibrationError, match="id_tpr"):
        threshold_for([1.0, 2.0], share)


def test_scores_and_batches_are_told_apart() -> None:
    assert looks_like_scores(torch.zeros(3))
    assert looks_like_scores(np.zeros(3))
    assert looks_like_scores([1.0, np.float32(2.0), 3])
    assert not looks_like_scores(torch.zeros(2, 3, 4, 4))
    assert not looks_like_scores([torch.zeros(2, 3, 4, 4)])
    assert not looks_like_scores(iter([1.0]))


def test_batches_of_every_kind() -> None:
    x = torch.zeros(2, 3, 4, 4)
    for source in (x, [x], [(x, 1)], [[x]], [{"data": x}], [{"pixel_values": x}], [UserDict(image=x)]):
        assert [each.shape for each in image_batches(source)] == [x.shape]
    for bad in ([{"label": x}], ["a.png"], [None], [()]):
        with pytest.raises(CalibrationError, match="without images"):
            list(image_batches(bad))
