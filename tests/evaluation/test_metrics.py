from typing import Any

import numpy as np
import pytest
import torch

from gaia_fast.errors import CalibrationError
from gaia_fast.evaluation.metrics import bootstrap_intervals, ood_metrics


def test_perfect_separation() -> None:
    found = ood_metrics([1.0, 2.0, 3.0], [4.0, 5.0])
    assert (found.auroc, found.aupr_in, found.aupr_out) == (1, 1, 1)
    assert (found.fpr95_id_positive, found.fpr95_ood_positive) == (0, 0)
    assert (found.n_id, found.n_ood) == (3, 2)


def test_larger_scores_mean_ood() -> None:
    found = ood_metrics([4.0, 5.0], [1.0, 2.0, 3.0])
    assert found.auroc == 0
    assert (found.fpr95_id_positive, found.fpr95_ood_positive) == (1, 1)


def test_by_hand_with_ties() -> None:
    found = ood_metrics([1.0, 2.0, 2.0, 3.0], [2.0, 4.0])
    # Pairs (ID, OOD): the OOD 2 beats 1, ties twice, loses to 3; the OOD 4 beats all.
    assert found.auroc == pytest.approx((1 + 2 * 0.5 + 4) / 8)
    # All ID accepted at 3: the OOD 2 is accepted. All OOD flagged from 2 on: three of four ID images are at 2 or more.
    assert found.fpr95_id_positive == 0.5
    assert found.fpr95_ood_positive == 0.75
    # OOD positive, by falling threshold: 4 (1/1 right, recall 1/2), 3 (1/2, no more), 2 (2/5, recall 1).
    assert found.aupr_out == pytest.approx(0.5 * 1 + 0.5 * 2 / 5)
    # ID positive, by rising threshold: 1 (1/1, recall 1/4), 2 (3/4, recall 3/4), 3 (4/5, recall 1).
    assert found.aupr_in == pytest.approx(0.25 * 1 + 0.5 * 3 / 4 + 0.25 * 4 / 5)


def test_both_directions_of_fpr95() -> None:
    id_scores = np.arange(1.0, 101.0)  # 95 accepts 95 of them
    ood_scores = np.concatenate([[10.5], np.full(4, 50.5), np.full(10, 95.0), np.full(5, 200.0)])
    found = ood_metrics(id_scores, ood_scores)
    assert found.fpr95_id_positive == 15 / 20  # those at exactly 95 are accepted
    assert found.fpr95_ood_positive == 0.5  # 19 of 20 flagged from 50.5 on; 51, 52, ... 100 are too


@pytest.mark.parametrize(("n_id", "n_ood"), [(40, 30), (540, 500), (37, 11)])
def test_no_share_is_rounded_to_more_than_one(n_id: int, n_ood: int) -> None:
    found = ood_metrics(np.arange(n_id), n_id + np.arange(n_ood))
    assert (found.auroc, found.fpr95_id_positive, found.fpr95_ood_positive) == (1, 0, 0)
    for aupr in (found.aupr_in, found.aupr_out):
        assert 1 - 1e-12 < aupr <= 1


def test_all_scores_equal() -> None:
    found = ood_metrics([1.0, 1.0], [1.0, 1.0])
    assert (found.auroc, found.aupr_in, found.aupr_out) == (0.5, 0.5, 0.5)
    assert (found.fpr95_id_positive, found.fpr95_ood_positive) == (1, 1)


def test_order_and_kind_do_not_matter() -> None:
    rng = np.random.default_rng(0)
    id_scores, ood_scores = rng.normal(0, 1, 50).astype(np.float32), rng.normal(1, 1, 30).astype(np.float32)
    expected = ood_metrics(id_scores, ood_scores)
    assert ood_metrics(torch.from_numpy(id_scores), rng.permutation(ood_scores).tolist()) == expected
    # Swapping the roles and the sign swaps the directions.
    swapped = ood_metrics(-ood_scores, -id_scores)
    assert swapped.auroc == pytest.approx(expected.auroc)
    assert swapped.fpr95_id_positive == expected.fpr95_ood_positive
    assert swapped.fpr95_ood_positive == expected.fpr95_id_positive
    assert swapped.aupr_in == pytest.approx(expected.aupr_out)


@pytest.mark.parametrize(
    ("id_scores", "ood_scores", "message"),
    [
        ([], [1.0], "in-distribution scores have the shape"),
        ([1.0], [], "OOD scores have the shape"),
        ([[1.0]], [1.0], "in-distribution scores have the shape"),
        ([1.0, float("nan")], [1.0], "1 of 2 in-distribution scores"),
        ([1.0], [float("inf"), 2.0, float("-inf")], "2 of 3 OOD scores"),
    ],
)
def test_unusable_scores(id_scores: Any, ood_scores: Any, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        ood_metrics(id_scores, ood_scores)


def test_areas_under_straight_lines_and_under_steps() -> None:
    found = ood_metrics([1.0, 2.0, 2.0, 3.0], [2.0, 4.0])
    # OOD positive, (recall, precision): (0, 1), (1/2, 1), (1/2, 1/2), (1, 2/5): lines between them.
    assert found.aupr_out_trapezoid == pytest.approx(0.5 * 1 + 0.5 * (1 / 2 + 2 / 5) / 2)
    # ID positive: (0, 1), (1/4, 1), (3/4, 3/4), (1, 4/5).
    assert found.aupr_in_trapezoid == pytest.approx(0.25 + 0.5 * (1 + 3 / 4) / 2 + 0.25 * (3 / 4 + 4 / 5) / 2)


@pytest.mark.parametrize("round_to", [None, 0])
def test_intervals_are_those_of_metrics_of_resamples(round_to: int | None) -> None:
    rng = np.random.default_rng(0)
    id_scores, ood_scores = rng.normal(0, 1, 80), rng.normal(1, 1, 50)
    if round_to is not None:  # ties
        id_scores, ood_scores = id_scores.round(round_to), ood_scores.round(round_to)
    found = bootstrap_intervals(id_scores, ood_scores, 3000)
    resampled = [ood_metrics(rng.choice(id_scores, 80), rng.choice(ood_scores, 50)) for _ in range(1000)]
    for metric in ("auroc", "fpr95_id_positive"):
        values = [getattr(each, metric) for each in resampled]
        assert getattr(found, metric) == pytest.approx(np.percentile(values, (2.5, 97.5)), abs=0.04)
    assert found == bootstrap_intervals(id_scores, ood_scores, 3000)
    assert found != bootstrap_intervals(id_scores, ood_scores, 3000, seed=1)


def test_intervals_of_what_cannot_move() -> None:
    found = bootstrap_intervals([1.0, 2.0], [3.0], 50)
    assert (found.auroc, found.fpr95_id_positive) == ((1.0, 1.0), (0.0, 0.0))
    with pytest.raises(CalibrationError, match="OOD scores"):
        bootstrap_intervals([1.0], [])
