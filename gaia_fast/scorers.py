"""What scores images and decides by thresholds: detectors, and files that were exported of them."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from gaia_fast import calibration
from gaia_fast.calibration import Calibration
from gaia_fast.errors import ArgumentError, CalibrationError
from gaia_fast.method import Method
from gaia_fast.outputs import GaiaOutput, GaiaScores


class Scorer(ABC):
    """One score, and its threshold.

    Attributes:
        method: what is measured.
        calibration: what the threshold was taken from; None before that.
    """

    method: Method
    calibration: Calibration | None = None
    _threshold: float | None = None

    @property
    def threshold(self) -> float | None:
        """Scores above it are out of distribution; None before there is one. To set no finite number: ArgumentError."""
        return self._threshold

    @threshold.setter
    def threshold(self, value: float | None) -> None:
        self._threshold = None if value is None else calibration.checked(value)
        self.calibration = None  # it was taken from no images, as far as is known

    @abstractmethod
    def score(self, x: Tensor) -> GaiaOutput:
        """Predicts and scores a batch in one call."""

    def predict(self, x: Tensor) -> Tensor:
        """Returns the (N,) float32 scores alone; larger = more out of distribution. See `score`.

        Example:
            >>> from gaia_fast import GaiaZ
            >>> from gaia_fast.data.digits import held_out_digits
            >>> from gaia_fast.models import digits_resnet
            >>> model, (x, labels) = digits_resnet(pretrained=True), held_out_digits()
            >>> detector = GaiaZ(model)
            >>> torch.equal(detector.predict(x[:4]), detector(x[:4]))
            True
        """
        return self.score(x).score

    def __call__(self, x: Tensor) -> Tensor:
        return self.predict(x)

    def calibrate(self, loader_or_scores: Iterable[Any], id_tpr: float = 0.95) -> Self:
        """Sets `threshold` so that at least the share `id_tpr` of in-distribution images is accepted.

        Args:
            loader_or_scores: in-distribution scores (1-D tensor, array or list), or batches of in-distribution images:
                a tensor, or an iterable of tensors, (images, labels) pairs or mappings with "data",
                "image", "images", "x" or "pixel_values".
            id_tpr: the share to accept.

        Returns:
            Itself.

        Raises:
            CalibrationError: nothing to calibrate on. GaiaError: as `score`.

        Example:
            >>> from gaia_fast import GaiaZ
            >>> from gaia_fast.data.digits import held_out_digits
            >>> from gaia_fast.models import digits_resnet
            >>> model, (x, labels) = digits_resnet(pretrained=True), held_out_digits()
            >>> detector = GaiaZ(model).calibrate(x[:500])
            >>> bool((detector(x[:500]) <= detector.threshold).float().mean() >= 0.95)
            True
        """
        scores: Any = loader_or_scores
        if not calibration.looks_like_scores(loader_or_scores):
            found = [self.predict(images).cpu() for images in calibration.image_batches(loader_or_scores)]
            scores = torch.cat(found) if found else []
        threshold, calibrated = calibration.threshold_for(scores, id_tpr), Calibration.of(scores, id_tpr)
        calibration.check_informative(scores)
        self.threshold, self.calibration = threshold, calibrated
        return self

    def is_ood(self, x: Tensor) -> Tensor:
        """Returns the (N,) bool decisions score > threshold (Eq. 1); CalibrationError before `calibrate`.

        Example:
            >>> from gaia_fast import GaiaZ
            >>> from gaia_fast.data.digits import held_out_digits
            >>> from gaia_fast.models import digits_resnet
            >>> model, (x, labels) = digits_resnet(pretrained=True), held_out_digits()
            >>> detector = GaiaZ(model).calibrate(x[:500])
            >>> detector.is_ood(x[:4]).dtype
            torch.bool
        """
        if self.threshold is None:
            raise CalibrationError(
                "there is no threshold yet: call calibrate(...) with in-distribution images or scores, or set "
                ".threshold"
            )
        return calibration.decide(self.predict(x), self.threshold)


class JointScorer(ABC):
    """Several scores from one call, each with its threshold.

    Attributes:
        scores: the scores' names, in order.
        thresholds: by score, once there are any.
        calibrations: by score, what its threshold was taken from.
    """

    scores: tuple[str, ...]
    thresholds: dict[str, float]
    calibrations: dict[str, Calibration]

    @abstractmethod
    def score(self, x: Tensor) -> GaiaScores:
        """Predicts and scores a batch in one call."""

    def predict(self, x: Tensor) -> dict[str, Tensor]:
        """Returns the scores alone, by name, each (N,) float32; larger = more out of distribution. See `score`.

        Example:
            >>> from gaia_fast import Gaia
            >>> from gaia_fast.data.digits import held_out_digits
            >>> from gaia_fast.models import digits_resnet
            >>> model, (x, labels) = digits_resnet(pretrained=True), held_out_digits()
            >>> sorted(Gaia(model).predict(x[:4]))
            ['gaia-a', 'gaia-z']
        """
        return self.score(x).scores

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        return self.predict(x)

    def calibrate(self, loader_or_scores: Any, id_tpr: float = 0.95) -> Self:
        """Sets `thresholds` so that at least the share `id_tpr` of in-distribution images is accepted by each score.

        Args:
            loader_or_scores: batches of in-distribution images, as in `GaiaZ.calibrate`; or in-distribution scores, a
                mapping with (N,) of them for each score.
            id_tpr: the share to accept.

        Returns:
            Itself.

        Raises:
            CalibrationError: nothing to calibrate a score on; no threshold is changed. GaiaError: as `score`.

        Example:
            >>> from gaia_fast import Gaia
            >>> from gaia_fast.data.digits import held_out_digits
            >>> from gaia_fast.models import digits_resnet
            >>> model, (x, labels) = digits_resnet(pretrained=True), held_out_digits()
            >>> detector = Gaia(model, scores=("gaia-z", "energy")).calibrate(x[:500])
            >>> sorted(detector.thresholds)
            ['energy', 'gaia-z']
        """
        thresholds, calibrations = {}, {}
        for name, scores in self._id_scores(loader_or_scores).items():
            try:
                thresholds[name] = calibration.threshold_for(scores, id_tpr)
                calibrations[name] = Calibration.of(scores, id_tpr)
                calibration.check_informative(scores)
            except CalibrationError as error:
                raise CalibrationError(f"score {name!r}: {error}") from error
        self.thresholds, self.calibrations = thresholds, calibrations
        return self

    def _id_scores(self, source: Any) -> dict[str, Any]:
        if isinstance(source, Mapping):
            if missing := [name for name in self.scores if name not in source]:
                raise CalibrationError(
                    f"there are no calibration scores for {missing}; give some for each of the scores"
                )
            return {name: source[name] for name in self.scores}
        if calibration.looks_like_scores(source):
            raise CalibrationError(
                f"calibration scores are given by name, a mapping with some for each of {self.scores}"
            )
        found: dict[str, list[Tensor]] = {name: [] for name in self.scores}
        for images in calibration.image_batches(source):
            for name, score in self.predict(images).items():
                found[name].append(score.cpu())
        return {name: torch.cat(scores) if scores else [] for name, scores in found.items()}

    def is_ood(self, x: Tensor) -> dict[str, Tensor]:
        """Returns by name the (N,) bool decisions score > threshold (Eq. 1); CalibrationError before `calibrate`.

        Example:
            >>> from gaia_fast import Gaia
            >>> from gaia_fast.data.digits import held_out_digits
            >>> from gaia_fast.models import digits_resnet
            >>> model, (x, labels) = digits_resnet(pretrained=True), held_out_digits()
            >>> detector = Gaia(model, scores=("gaia-z", "energy")).calibrate(x[:500])
            >>> {name: found.dtype for name, found in detector.is_ood(x[:4]).items()}
            {'gaia-z': torch.bool, 'energy': torch.bool}
        """
        if missing := [name for name in self.scores if self.thresholds.get(name) is None]:
            raise CalibrationError(
                f"there is no threshold yet for {', '.join(missing)}: call calibrate(...) with in-distribution images "
                "or scores, or set .thresholds"
            )
        return self.score(x).is_ood

    def _known_thresholds(self) -> dict[str, float]:
        """What a user set may be any kind of number, or none."""
        found = {}
        for name, value in self.thresholds.items():
            if value is None:
                continue
            try:
                found[name] = calibration.checked(value)
            except ArgumentError as error:
                raise ArgumentError(f"score {name!r}: {error}") from error
        return found


def score_names(scorer: Scorer | JointScorer) -> tuple[str, ...]:
    """Returns what the scores are called, in order."""
    return scorer.scores if isinstance(scorer, JointScorer) else (str(scorer.method.name),)


def thresholds_of(scorer: Scorer | JointScorer) -> dict[str, float | None]:
    """Returns the threshold of each score by its name, None where there is none."""
    if isinstance(scorer, JointScorer):
        known = scorer._known_thresholds()
        return {name: known.get(name) for name in scorer.scores}
    return dict.fromkeys(score_names(scorer), scorer.threshold)


def set_thresholds(scorer: Scorer | JointScorer, thresholds: Mapping[str, float]) -> None:
    """Sets the threshold of each score that one is given for. ArgumentError: it is no finite number."""
    checked = {name: calibration.checked(threshold) for name, threshold in thresholds.items()}
    if isinstance(scorer, JointScorer):
        scorer.thresholds.update(checked)
    else:
        for threshold in checked.values():
            scorer.threshold = threshold


def calibrations_of(scorer: Scorer | JointScorer) -> dict[str, Calibration]:
    """Returns what the threshold of each score was taken from, by its name, where that is known."""
    if isinstance(scorer, JointScorer):
        return dict(scorer.calibrations)
    return {} if scorer.calibration is None else dict.fromkeys(score_names(scorer), scorer.calibration)
