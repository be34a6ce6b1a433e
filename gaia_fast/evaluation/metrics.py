"""How well scores tell OOD images from in-distribution (ID) ones. Larger score = more OOD, in every function."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score
from torch import Tensor

from gaia_fast.calibration import threshold_for
from gaia_fast.errors import CalibrationError


@dataclass(frozen=True)
class OodMetrics:
    """The separation of one OOD set from the ID set; all shares are fractions of one.

    Attributes:
        auroc: the probability that an OOD image scores higher than an ID image, ties counted half.
        fpr95_id_positive: the share of OOD images accepted (score <= t) at the smallest t that accepts 95 % of ID
            images: the paper's FPR95.
        fpr95_ood_positive: the share of ID images flagged at the highest threshold that flags 95 % of OOD images: the
            FPR95 of libraries that take OOD as positive.
        aupr_in: average precision with ID positive: the area under steps.
        aupr_out: average precision with OOD positive.
        aupr_in_trapezoid, aupr_out_trapezoid: the area under straight lines between the same points, which some
            libraries report.
        n_id: number of ID images.
        n_ood: number of OOD images.
    """

    auroc: float
    fpr95_id_positive: float
    fpr95_ood_positive: float
    aupr_in: float
    aupr_out: float
    aupr_in_trapezoid: float
    aupr_out_trapezoid: float
    n_id: int
    n_ood: int


def average(metrics: Mapping[str, OodMetrics], field: str) -> float:
    """Returns the mean over OOD sets of a field of `OodMetrics`, each set counted once."""
    return float(np.mean([getattr(each, field) for each in metrics.values()]))


def ood_metrics(id_scores: Any, ood_scores: Any) -> OodMetrics:
    """The metrics of two sets of scores.

    Args:
        id_scores: (N,) scores of ID images: tensor, array or sequence of numbers.
        ood_scores: (M,) scores of OOD images.

    Raises:
        CalibrationError: a set is empty, not one-dimensional, or holds infinite or NaN scores.

    Example:
        >>> found = ood_metrics(id_scores=[1.0, 2.0, 3.0, 4.0], ood_scores=[4.0, 5.0])
        >>> found.auroc, found.fpr95_id_positive
        (0.9375, 0.5)
    """
    inside = _usable(id_scores, "in-distribution")
    outside = _usable(ood_scores, "OOD")
    scores = np.concatenate([inside, outside])
    is_ood = np.concatenate([np.zeros(inside.size, dtype=int), np.ones(outside.size, dtype=int)])
    return OodMetrics(
        auroc=float(roc_auc_score(is_ood, scores)),
        fpr95_id_positive=_false_positives(inside, outside),
        fpr95_ood_positive=_false_positives(-outside, -inside),
        aupr_in=_average_precision(1 - is_ood, -scores),
        aupr_out=_average_precision(is_ood, scores),
        aupr_in_trapezoid=_trapezoids(1 - is_ood, -scores),
        aupr_out_trapezoid=_trapezoids(is_ood, scores),
        n_id=inside.size,
        n_ood=outside.size,
    )


@dataclass(frozen=True)
class Intervals:
    """95 % intervals of metrics, (from, to), by the percentiles of bootstrap resamples of the images.

    Attributes:
        auroc, fpr95_id_positive: as in `OodMetrics`.
    """

    auroc: tuple[float, float]
    fpr95_id_positive: tuple[float, float]


def bootstrap_intervals(id_scores: Any, ood_scores: Any, resamples: int = 1000, seed: int = 0) -> Intervals:
    """Returns how far metrics would move with other images: each set drawn anew, with replacement.

    Args:
        id_scores, ood_scores: as in `ood_metrics`.
        resamples: how often.
        seed: of the draws.

    Raises:
        CalibrationError: as `ood_metrics`.

    Example:
        >>> found = bootstrap_intervals(id_scores=range(40), ood_scores=range(20, 60))
        >>> low, high = found.auroc
        >>> low < ood_metrics(range(40), range(20, 60)).auroc < high
        True
    """
    inside, outside = _usable(id_scores, "in-distribution"), _usable(ood_scores, "OOD")
    draw = np.random.default_rng(seed)
    # Counts at each value, in order, tell both metrics: nothing is sorted anew.
    values, places = np.unique(np.concatenate([inside, outside]), return_inverse=True)
    id_places, ood_places = places[: inside.size], places[inside.size :]
    rank = max(ceil(0.95 * inside.size - 1e-9), 1)  # as in `threshold_for`
    found = np.empty((resamples, 2))
    for each in found:
        drawn_id = np.bincount(draw.choice(id_places, inside.size), minlength=values.size)
        drawn_ood = np.bincount(draw.choice(ood_places, outside.size), minlength=values.size)
        below = np.cumsum(drawn_id)
        each[0] = (drawn_ood * (below - drawn_id / 2)).sum() / (inside.size * outside.size)
        each[1] = drawn_ood[: np.searchsorted(below, rank) + 1].sum() / outside.size
    low, high = np.percentile(found, (2.5, 97.5), axis=0)
    return Intervals((float(low[0]), float(high[0])), (float(low[1]), float(high[1])))


def _trapezoids(positive: np.ndarray, scores: np.ndarray) -> float:
    precision, recall, _ = precision_recall_curve(positive, scores)
    return min(float(auc(recall, precision)), 1.0)


def _average_precision(positive: np.ndarray, scores: np.ndarray) -> float:
    # A sum of shares that scikit-learn does not keep from rounding to more than one.
    return min(float(average_precision_score(positive, scores)), 1.0)


def _false_positives(positive: np.ndarray, negative: np.ndarray, tpr: float = 0.95) -> float:
    """The share of negatives accepted, value <= t, at the smallest t that accepts the share `tpr` of positives."""
    return float((negative <= threshold_for(positive, tpr)).mean())


def _usable(scores: Any, which: str) -> np.ndarray:
    values = np.asarray(scores.detach().cpu() if isinstance(scores, Tensor) else scores, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise CalibrationError(f"the {which} scores have the shape {values.shape}; metrics need a non-empty list")
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise CalibrationError(
            f"{bad} of {values.size} {which} scores are infinite or NaN; find the images they are of"
        )
    return values
