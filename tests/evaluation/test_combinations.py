import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from gaia_fast.errors import CalibrationError
from gaia_fast.evaluation import combinations
from gaia_fast.evaluation.combinations import COMBINATIONS, cross_fitted, max_standardised, rank_average, title
from gaia_fast.evaluation.image_sets import ScoredSet, compare
from gaia_fast.evaluation.metrics import ood_metrics


def draw(seed: int, count: int, mean: float = 0.0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "gaia-z": random.normal(mean, 2, count).astype(np.float32),
        "gaia-a": np.exp(random.normal(mean, 1, count)).astype(np.float32),
    }


def scored(scores: dict[str, np.ndarray]) -> ScoredSet:
    count = scores["gaia-z"].size
    names = [str(index) for index in range(count)]
    return ScoredSet(names, None, np.zeros(count, int), {**scores, "msp": np.arange(count)}, [])


def test_ranks_by_hand() -> None:
    """Below, at a tie, between, at the largest, beyond."""
    calibration = {"gaia-z": np.array([3.0, 1.0, 3.0, 5.0])}
    below, tie, between, largest, beyond = rank_average(calibration, {"gaia-z": np.array([0.0, 3.0, 4.0, 5.0, 6.0])})
    std = np.sqrt(2)
    assert (tie, between, largest) == pytest.approx((0.5, 0.6875, 0.875))
    assert beyond == pytest.approx(0.875 + 0.125 * np.log1p(1 / std))
    assert below == pytest.approx(0.125 - 0.125 * np.log1p(1 / std))


def test_ranks_never_tie_where_scores_do_not() -> None:
    calibration = {"gaia-z": draw(0, 500)["gaia-z"]}
    scores = np.unique(np.concatenate([np.linspace(-50, 50, 5000), [1e6, 1.000001e6, 1e12, 1e30, 1.1e30]]))
    ranks = rank_average(calibration, {"gaia-z": scores.astype(np.float32).astype(np.float64)})
    assert (np.diff(ranks) > 0).all()
    assert np.isfinite(ranks).all()


def test_auroc_does_not_suffer_beyond_the_id_scores() -> None:
    """Of one method alone, ranks and standardised scores order images as the scores themselves do."""
    id_scores, ood_scores = draw(1, 50)["gaia-a"], draw(2, 300, 5)["gaia-a"]
    far = ood_scores > id_scores[::2].max()
    assert far.sum() > 100
    calibration = {"gaia-a": id_scores[::2]}
    tested = np.concatenate([id_scores[1::2], ood_scores])
    is_ood = np.arange(tested.size) >= 25
    for combination in COMBINATIONS.values():
        combined = combination(calibration, {"gaia-a": tested})
        assert np.array_equal(np.argsort(combined), np.argsort(tested))
        assert roc_auc_score(is_ood, combined) == roc_auc_score(is_ood, tested)


def test_the_larger_standardised_score_counts() -> None:
    calibration, scores = draw(3, 40), draw(4, 30)
    standard = [(scores[m] - calibration[m].mean(dtype=float)) / calibration[m].std(dtype=float) for m in calibration]
    assert max_standardised(calibration, scores) == pytest.approx(np.maximum(*standard))


@pytest.mark.parametrize("name", COMBINATIONS)
def test_no_id_image_is_combined_by_a_fit_that_has_seen_it(name: str) -> None:
    combination = COMBINATIONS[name]
    id_scores, ood = draw(5, 21), {"far": draw(6, 10, 2)}
    inside, outside = cross_fitted(combination, id_scores, ood)
    even, odd = ({method: each[start::2] for method, each in id_scores.items()} for start in (0, 1))
    assert np.array_equal(inside[::2], combination(odd, even))
    assert np.array_equal(inside[1::2], combination(even, odd))
    assert outside["far"] == pytest.approx((combination(odd, ood["far"]) + combination(even, ood["far"])) / 2)
    # Another score of the first image moves those of the odd images and its own, and no other even one.
    changed = {method: each.copy() for method, each in id_scores.items()}
    changed["gaia-z"][0] += 100
    again, _ = cross_fitted(combination, changed, ood)
    assert np.array_equal(again[2::2], inside[2::2])
    assert again[0] != inside[0]
    assert not np.array_equal(again[1::2], inside[1::2])


@pytest.mark.parametrize("name", COMBINATIONS)
def test_more_id_images_are_no_ood_images(name: str) -> None:
    aurocs = []
    for seed in range(30):
        inside, outside = cross_fitted(COMBINATIONS[name], draw(seed, 60), {"same": draw(1000 + seed, 60)})
        aurocs.append(ood_metrics(inside, outside["same"]).auroc)
    assert np.mean(aurocs) == pytest.approx(0.5, abs=4 * np.std(aurocs) / np.sqrt(30))


def test_they_stand_beside_the_papers_methods() -> None:
    id_scores, ood_scores = draw(7, 60), draw(8, 40, 1.5)
    found = compare(scored(id_scores), {"far": scored(ood_scores)}, resamples=50)
    assert list(found.results) == ["gaia-z", "gaia-a", "msp"]
    assert list(found.combinations) == ["rank_average", "max_standardised"]
    assert found.combinations["max_standardised"].title == "maximum of standardised scores of gaia-z and gaia-a"
    for name, each in found.combinations.items():
        inside, outside = cross_fitted(COMBINATIONS[name], id_scores, {"far": ood_scores})
        assert np.array_equal(each.id_scores, inside)
        assert each.result.metrics["far"] == ood_metrics(inside, outside["far"])
        low, high = each.result.intervals["far"].auroc
        assert low < each.result.metrics["far"].auroc < high
    del id_scores["gaia-a"]
    alone = compare(scored(id_scores), {"far": scored(ood_scores)})
    assert (alone.combinations, alone.not_combined) == ({}, "")


def test_scores_that_cannot_be_combined_say_so_and_the_methods_go_on() -> None:
    for count in (1, 3):
        found = compare(scored(draw(9, count)), {"far": scored(draw(10, 5))})
        assert found.combinations == {}
        assert "give more in-distribution images" in found.not_combined
        assert set(found.results) == {"gaia-z", "gaia-a", "msp"}


@pytest.mark.parametrize("combination", COMBINATIONS.values())
def test_bad_scores_give_no_number(combination: combinations.Combination) -> None:
    good = {"gaia-z": np.array([1.0, 2.0])}
    for bad in (np.array([1.0, np.nan]), np.array([np.inf, 1.0]), np.array([2.0, 2.0]), np.empty(0), np.ones((2, 2))):
        with pytest.raises(CalibrationError, match="gaia-z"):
            combination({"gaia-z": bad}, good)
    with pytest.raises(CalibrationError, match="infinite or NaN"):
        combination(good, {"gaia-z": np.array([np.nan])})
    with pytest.raises(CalibrationError, match="the same methods"):
        combination(good, {"gaia-a": np.array([1.0])})
    with pytest.raises(CalibrationError, match="nothing"):
        combination({}, {})


def test_titles() -> None:
    assert [title(name) for name in COMBINATIONS] == [
        "rank average of gaia-z and gaia-a",
        "maximum of standardised scores of gaia-z and gaia-a",
    ]
