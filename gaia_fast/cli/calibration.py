"""--calibrate-on: the thresholds of a command's methods, from in-distribution images."""

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import click

from gaia_fast.calibration import check_informative, threshold_for
from gaia_fast.cli import output
from gaia_fast.cli.options import Command
from gaia_fast.cli.preparing import prepare_for
from gaia_fast.data import ImageSource, Preset, load_images
from gaia_fast.errors import ArgumentError
from gaia_fast.evaluation.image_sets import Detector, Detectors, ScoredSet, score_set
from gaia_fast.gaia import Gaia


@dataclass(frozen=True)
class CalibratedThresholds:
    """What thresholds were taken from.

    Attributes:
        thresholds: by method.
        images: how many were scored.
        unreadable: (name, reason) of each that was left out.
    """

    thresholds: dict[str, float]
    images: int
    unreadable: list[tuple[str, str]]

    def record(self) -> dict[str, Any]:
        """What it is in JSON."""
        return {"images": self.images, "unreadable": output.unreadable_record(self.unreadable)}


@dataclass(frozen=True)
class CalibrationOptions:
    """--calibrate-on and --id-tpr."""

    path: str | None
    id_tpr: float

    def source(self, preset: Preset, max_pixels: int) -> ImageSource | None:
        """The images asked for, of which is said what is skipped beside them; None where none are."""
        if self.path is None:
            return None
        source = load_images(self.path, preset, max_pixels)
        output.report_skipped(source, f"{self.path}: ")
        return source

    def check_sizes(self, source: ImageSource, sizes: Collection[tuple[int, ...]], batch_size: int) -> None:
        """Raises ArgumentError for an image of none of these sizes, (height, width): a score depends on the size."""
        known = source.preset.input_size is not None
        for batch in [source.first(batch_size)] if known else source.batches(batch_size):
            size = tuple(batch.images.shape[2:])
            if size not in sizes:
                raise ArgumentError(
                    f"--calibrate-on: {batch.names[0]} becomes {size[0]}x{size[1]}, and the file is for "
                    f"{' or '.join(f'{h}x{w}' for h, w in sizes)}, where scores are others: give --size "
                    f"{size[0]}x{size[1]}, or a --preset that makes images of the file's size"
                )

    def run(
        self, detectors: Detectors, methods: Sequence[str], source: ImageSource | None, batch_size: int
    ) -> CalibratedThresholds | None:
        """Scores the images asked for, and names on stderr those that cannot be read; None where none are asked for.

        Raises:
            GaiaError: the images, or their scores, are no use.
        """
        if source is None:
            return None
        found = self._scored(detectors, source, batch_size)
        thresholds = {}
        for method in methods:
            check_informative(found.scores[method])
            thresholds[method] = threshold_for(found.scores[method], self.id_tpr)
        return CalibratedThresholds(thresholds, len(found.names), found.unreadable)

    def calibrate(self, detector: Detector | Gaia, source: ImageSource, engine: str, batch_size: int) -> int:
        """Calibrates a detector on a source; returns how many of its images cannot be read: they are named on stderr.

        Raises:
            GaiaError: the images, or their scores, are no use.
        """
        detectors: Detectors = detector if isinstance(detector, Gaia) else {detector.method.name: detector}
        prepare_for(detectors, engine, source, source.preset, len(source), batch_size)
        found = self._scored(detectors, source, batch_size)
        if isinstance(detector, Gaia):
            detector.calibrate(found.scores, self.id_tpr)
        else:
            detector.calibrate(found.scores[detector.method.name], self.id_tpr)
        return len(found.unreadable)

    def _scored(self, detectors: Detectors, source: ImageSource, batch_size: int) -> ScoredSet:
        """The images with their scores; those that cannot be read are named on stderr."""
        with output.progress("calibrating", len(source)) as advance:
            found = score_set(detectors, source, batch_size, advance)
        output.report_unreadable(found.unreadable, f"{self.path}: ")
        return found


def calibration_options(command: Command) -> Command:
    """Adds the options, which exclude --threshold; the command gets them as `calibrating`, a CalibrationOptions."""

    @click.option("--calibrate-on", metavar="PATH", help="In-distribution images to take the thresholds from.")
    @click.option(
        "--id-tpr",
        type=click.FloatRange(0, 1, min_open=True),
        help="The share of those that the threshold accepts.  [default: 0.95]",
    )
    @functools.wraps(command)
    def wrapped(
        *args: Any, thresholds: tuple[str, ...], calibrate_on: str | None, id_tpr: float | None, **kwargs: Any
    ) -> Any:
        if thresholds and calibrate_on is not None:
            raise click.UsageError("give --threshold or --calibrate-on, not both")
        if id_tpr is not None and calibrate_on is None:
            raise click.UsageError("--id-tpr says how to calibrate; it needs --calibrate-on")
        options = CalibrationOptions(calibrate_on, 0.95 if id_tpr is None else id_tpr)
        return command(*args, thresholds=thresholds, calibrating=options, **kwargs)

    return wrapped
