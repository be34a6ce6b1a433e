"""`gaia-fast calibrate`: a detector with its threshold, as a file."""

from pathlib import Path

import click

from gaia_fast.cli import output
from gaia_fast.cli.calibration import CalibrationOptions
from gaia_fast.cli.options import (
    DetectorOptions,
    ModelOptions,
    PresetOptions,
    batch_size_option,
    detector_options,
    max_pixels_option,
    model_options,
    output_option,
    preset_options,
)
from gaia_fast.data import load_images
from gaia_fast.gaia import SCORES
from gaia_fast.scorers import thresholds_of


@click.command()
@click.argument("images")
@output_option(required=True, help="The .gaia file, for `gaia-fast serve --detector` and gaia_fast.load.")
@click.option(
    "--id-tpr",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.95,
    show_default=True,
    help="The share of the images that the threshold accepts.",
)
@model_options
@preset_options
@max_pixels_option
@detector_options(default=("gaia-z",), choices=SCORES)
@batch_size_option
def calibrate(
    images: str,
    out: Path,
    id_tpr: float,
    model: ModelOptions,
    preset: PresetOptions,
    max_pixels: int,
    detectors: DetectorOptions,
    batch_size: int,
) -> None:
    """Takes the threshold of each method from in-distribution IMAGES, and writes options, layers, thresholds, the
    quantiles of the scores, and how the images were prepared to a file.

    The model is not in it: the file is for one with the same modules and weights, and refused with any other. An image
    that cannot be read is named on stderr and left out; the exit code is then 3.
    """
    if out.suffix != ".gaia":
        raise click.BadParameter(f"{out} must end in .gaia", param_hint="--out")
    loaded = model.load()
    prepared = preset.of(loaded)
    source = load_images(images, prepared, max_pixels)
    output.report_skipped(source)
    detector = detectors.build_one(loaded.model)
    unreadable = CalibrationOptions(images, id_tpr).calibrate(detector, source, detectors.engine, batch_size)
    detector.save(out, prepared)
    for name, threshold in thresholds_of(detector).items():
        output.note(f"{name}: threshold {threshold!r}, from {len(source) - unreadable} images")
    output.finish(unreadable)
