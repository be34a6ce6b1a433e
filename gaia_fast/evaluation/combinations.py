"""Two scores of one image made into one. Not in the paper: what anybody could do with both of its scores.

A combination is fitted on in-distribution (ID) scores alone. So that no ID image is judged by a fit that has seen it,
the ID images are halved, every other one, and each half is combined by the fit on the other; an OOD image gets the mean
of what both fits say.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from gaia_fast.errors import CalibrationError

METHODS = ("gaia-z", "gaia-a")  # what is combined

Scores = Mapping[str, np.ndarray]  # (N,) by method
Combination = Callable[[Scores, Scores], np.ndarray]


def rank_average(calibration: Scores, scores: Scores) -> np.ndarray:
    """Returns the (N,) float64 means of the ranks of an image's scores among the calibration scores of each method.

    The rank of a score is the share of calibration scores below it, those equal to it counted half, and between two of
    them on the straight line. Beyond the largest one all ranks would be 1, so that they go on from there, by half a
    step times log(1 + distance in standard deviations); likewise below the smallest. So a larger score has a larger
    rank wherever it lies, as far as float64 can tell.

    Args:
        calibration: ID scores by method, (M,) each.
        scores: what is combined, by the same methods, (N,) each.

    Raises:
        CalibrationError: scores that are not finite, other methods, no two different calibration scores.

    Example:
        >>> calibration = {"gaia-z": np.array([1.0, 2.0, 3.0, 4.0]), "gaia-a": np.array([10.0, 20.0, 20.0, 30.0])}
        >>> rank_average(calibration, {"gaia-z": np.array([2.0, 2.5]), "gaia-a": np.array([20.0, 30.0])}).tolist()
        [0.4375, 0.6875]
    """
    _check(calibration, scores)
    return np.mean([_ranks(calibration[method], scores[method]) for method in calibration], axis=0)


def max_standardised(calibration: Scores, scores: Scores) -> np.ndarray:
    """Returns the (N,) float64 largest of an image's scores, each less its ID mean and over its ID standard deviation.

    Args:
        calibration, scores: as in `rank_average`.

    Raises:
        CalibrationError: as `rank_average`.

    Example:
        >>> calibration = {"gaia-z": np.array([1.0, 3.0]), "gaia-a": np.array([10.0, 30.0])}
        >>> max_standardised(calibration, {"gaia-z": np.array([2.0, 5.0]), "gaia-a": np.array([40.0, 20.0])}).tolist()
        [2.0, 3.0]
    """
    _check(calibration, scores)
    return np.max([(scores[method] - each.mean()) / each.std() for method, each in _wide(calibration).items()], axis=0)


COMBINATIONS: dict[str, Combination] = {"rank_average": rank_average, "max_standardised": max_standardised}


def title(name: str, methods: Sequence[str] = METHODS) -> str:
    """Returns what people call a combination of `COMBINATIONS`.

    Example:
        >>> title("rank_average")
        'rank average of gaia-z and gaia-a'
    """
    words = {"rank_average": "rank average", "max_standardised": "maximum of standardised scores"}[name]
    return f"{words} of {' and '.join(methods)}"


def cross_fitted(
    combination: Combination, id_scores: Scores, ood_scores: Mapping[str, Scores]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns the combined scores of the ID images and of the OOD images of each set, fitted on ID scores alone.

    The even ID images, by their places, are combined by the fit on the odd ones and the odd by the fit on the even.

    Args:
        combination: of `COMBINATIONS`.
        id_scores: by method, (N,) each.
        ood_scores: by the name of the set, and by the same methods.

    Returns:
        float64 (N,), and float64 of each set by its name.

    Raises:
        CalibrationError: as `rank_average`, where a half of the ID images is what it is fitted on.
    """
    halves = [{method: each[start::2] for method, each in id_scores.items()} for start in (0, 1)]
    inside = np.empty(max((each.size for each in id_scores.values()), default=0))
    for start in (0, 1):
        inside[start::2] = combination(halves[1 - start], halves[start])
    outside = {
        name: np.mean([combination(half, scores) for half in halves], axis=0) for name, scores in ood_scores.items()
    }
    return inside, outside


def _ranks(calibration: np.ndarray, scores: np.ndarray) -> np.ndarray:
    values, counts = np.unique(calibration.astype(np.float64), return_counts=True)
    scores = scores.astype(np.float64)
    ranks = (np.cumsum(counts) - counts / 2) / calibration.size
    beyond = np.maximum(scores - values[-1], 0) - np.maximum(values[0] - scores, 0)
    half_step = 0.5 / calibration.size
    # The logarithm is bounded by no number, as a share of what is left up to 1 would be in floating point.
    tail = half_step * np.sign(beyond) * np.log1p(np.abs(beyond) / calibration.astype(np.float64).std())
    return np.interp(scores, values, ranks) + tail


def _wide(scores: Scores) -> dict[str, np.ndarray]:
    return {method: each.astype(np.float64) for method, each in scores.items()}


def _check(calibration: Scores, scores: Scores) -> None:
    if not calibration or calibration.keys() != scores.keys():
        raise CalibrationError(
            f"a combination of {', '.join(calibration) or 'nothing'} was given scores of {', '.join(scores)}; give "
            "both the same methods"
        )
    for method, each in calibration.items():
        if not all(np.isfinite(values).all() for values in (each, scores[method])):
            raise CalibrationError(f"scores of {method} are infinite or NaN; find the images they are of")
        if each.ndim != 1 or np.unique(each).size < 2 or not each.astype(np.float64).std() > 0:
            raise CalibrationError(
                f"the {each.size} scores of {method} that a combination is fitted on are of shape {each.shape} and "
                "hold no two that differ; give more in-distribution images"
            )
