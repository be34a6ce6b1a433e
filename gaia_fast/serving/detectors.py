"""Detectors of one score and of several, told alike: everything by the scores' names."""

from collections.abc import Mapping

from gaia_fast.calibration import Calibration
from gaia_fast.evaluation.image_sets import Detector
from gaia_fast.gaia import Gaia


def score_names(detector: Detector | Gaia) -> tuple[str, ...]:
    """What a detector's scores are called, in order."""
    return detector.scores if isinstance(detector, Gaia) else (str(detector.method.name),)


def thresholds_of(detector: Detector | Gaia) -> dict[str, float | None]:
    """The threshold of each score, None where there is none."""
    if isinstance(detector, Gaia):
        return {name: detector.thresholds.get(name) for name in detector.scores}
    return dict.fromkeys(score_names(detector), detector.threshold)


def set_thresholds(detector: Detector | Gaia, thresholds: Mapping[str, float]) -> None:
    """Sets the threshold of each score that one is given for. ArgumentError: it is no finite number."""
    if isinstance(detector, Gaia):
        detector.thresholds.update(thresholds)
    else:
        detector.threshold = thresholds.get(score_names(detector)[0])


def calibrations_of(detector: Detector | Gaia) -> dict[str, Calibration]:
    """What the threshold of each score was taken from, where that is known."""
    if isinstance(detector, Gaia):
        return dict(detector.calibrations)
    return {} if detector.calibration is None else dict.fromkeys(score_names(detector), detector.calibration)
