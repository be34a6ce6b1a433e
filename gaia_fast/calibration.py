"""The decision threshold gamma of Eq. 1, from in-distribution scores."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gaia_fast.errors import ArgumentError, CalibrationError

QUANTILES = 1000


@dataclass(frozen=True, eq=False)
class Calibration:
    """What a threshold was taken from.

    Attributes:
        images: how many in-distribution images there were.
        id_tpr: the share of them that the threshold accepts.
        quantiles: (1001,) float64: the smallest score, and the smallest that so many thousandths of the scores are not
            above; each is a score of an image.
    """

    images: int
    id_tpr: float
    quantiles: Tensor

    @classmethod
    def of(cls, scores: Any, id_tpr: float) -> "Calibration":
        """Returns the calibration by (N,) in-distribution scores; CalibrationError where there can be none."""
        values = _sorted(scores, id_tpr)
        return cls(values.size, float(id_tpr), torch.from_numpy(values[_ranks(values.size) - 1]))

    def cdf(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the distinct quantiles, ascending, and the share of the scores that are at most each, (K,) float64
        both. A share is exact of up to 1000 images, of more by less than a thousandth too small.
        """
        values, from_the_end = np.unique(self.quantiles.numpy()[::-1], return_index=True)
        return values, _ranks(self.images)[QUANTILES - from_the_end] / self.images

    def accepted_by(self, threshold: float) -> float:
        """Returns the share of the images that a threshold accepts: `id_tpr` of that which was taken, but where equal
        scores, or few, do not allow it; of others of more than 1000 images, to a thousandth.
        """
        count = int((self.quantiles <= threshold).sum())
        ranks = _ranks(self.images)
        least = ranks[count - 1] / self.images if count else 0.0
        most = (ranks[count] - 1) / self.images if count <= QUANTILES else 1.0
        return float(min(max(self.id_tpr, least), most))


def _ranks(count: int) -> np.ndarray:
    """(1001,) int64: which of so many sorted scores the quantiles are, counted from 1 as `threshold_for` counts."""
    # In whole numbers: number ceil(k n / 1000).
    return np.maximum(-(-np.arange(QUANTILES + 1) * count // QUANTILES), 1)


def threshold_for(scores: Any, id_tpr: float = 0.95) -> float:
    """The smallest threshold that accepts at least the share `id_tpr` of in-distribution scores.

    An image is accepted where score <= threshold (Eq. 1: "out" where score > threshold). The threshold is one of the
    scores, rounded nowhere: of n sorted scores it is number ceil(id_tpr * n).

    Args:
        scores: (N,) in-distribution scores: tensor, array or sequence of numbers.
        id_tpr: share of in-distribution images to accept, in (0, 1].

    Raises:
        CalibrationError: no scores, not finite, not one-dimensional, or a share outside (0, 1].
    """
    values = _sorted(scores, id_tpr)
    # The small slack keeps 0.95 * 20 at 19 although the product is 19.000000000000004 or so.
    rank = max(math.ceil(id_tpr * values.size - 1e-9), 1)
    return float(values[rank - 1])


def _as_array(scores: Any) -> np.ndarray:
    return np.asarray(scores.detach().cpu() if isinstance(scores, Tensor) else scores, dtype=np.float64)


def _sorted(scores: Any, id_tpr: float) -> np.ndarray:
    """(N,) float64, ascending; CalibrationError for scores, or a share of them, that nothing can be calibrated on."""
    if not 0 < id_tpr <= 1:
        raise CalibrationError(f"id_tpr={id_tpr} is not a share of the in-distribution images; use a number in (0, 1]")
    values = _as_array(scores)
    if values.ndim != 1 or values.size == 0:
        raise CalibrationError(f"calibration needs a non-empty list of scores of shape (N,), got shape {values.shape}")
    if not np.isfinite(values).all():
        raise CalibrationError(
            f"{int((~np.isfinite(values)).sum())} of {values.size} calibration scores are not finite"
        )
    return np.sort(values)


def checked(threshold: Any) -> float:
    """Returns a threshold as a number; ArgumentError where it is none that a score could be above or below."""
    try:
        value = float(threshold)
    except (TypeError, ValueError, RuntimeError) as error:  # a tensor of several numbers
        raise ArgumentError(f"a threshold is a number, not {threshold!r}; calibrate(...) finds one") from error
    if not math.isfinite(value):
        raise ArgumentError(f"the threshold is {value}, which decides nothing; give a finite number, or None for none")
    return value


def decide(scores: Tensor, threshold: float) -> Tensor:
    """Returns the (N,) bool decisions score > threshold (Eq. 1). A score that is NaN, of an image that a file cannot
    score, is not known to be at most the threshold: that image is flagged too.
    """
    return (scores <= threshold).logical_not()


def check_informative(scores: Any) -> None:
    """Raises CalibrationError if several scores are all equal: a threshold between equal scores means nothing."""
    values = _as_array(scores)
    if values.size > 1 and (values == values.flat[0]).all():
        raise CalibrationError(
            f"all {values.size} calibration scores are {values.flat[0]:g}: they tell nothing apart. GAIA-Z needs maps "
            "before a ReLU (outputs of norms); behind one, and in networks without ReLU, gradients are dense everywhere"
        )


def looks_like_scores(source: Any) -> bool:
    """Returns whether `source` is scores rather than batches of images to be scored."""
    if isinstance(source, (Tensor, np.ndarray)):
        return source.ndim != 4
    return isinstance(source, (list, tuple)) and all(
        isinstance(each, (int, float, np.floating)) or (isinstance(each, Tensor) and each.ndim == 0) for each in source
    )


def image_batches(source: Iterable[Any]) -> Iterable[Tensor]:
    """Yields the images of each batch of a loader: a tensor, a sequence whose first item is one, or a mapping with one
    under "data", "image", "images", "x" or "pixel_values".

    Raises:
        CalibrationError: a batch of another kind.
    """
    if isinstance(source, Tensor):
        source = [source]
    if not isinstance(source, Iterable):
        raise CalibrationError(f"calibration needs scores or batches of images, got a {type(source).__name__}")
    for batch in source:
        images = batch
        if isinstance(batch, Mapping):
            images = next(
                (batch[key] for key in ("data", "image", "images", "x", "pixel_values") if key in batch), None
            )
        elif isinstance(batch, (list, tuple)) and batch:
            images = batch[0]
        if not isinstance(images, torch.Tensor):
            raise CalibrationError(
                f"a calibration batch is a {type(batch).__name__} without images; give tensors, (images, labels) "
                "pairs, or mappings with 'data' (or image, images, x, pixel_values)"
            )
        if images.ndim == 3:
            raise CalibrationError("calibration got single images; put a DataLoader around the dataset")
        yield images
