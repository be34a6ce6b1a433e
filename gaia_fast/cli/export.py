"""`gaia-fast export`: prediction and scores as one file that needs neither this package nor Python."""

from pathlib import Path

import click
import torch
from torch import Tensor

from gaia_fast.cli import output
from gaia_fast.cli.images import blank_images, first_images
from gaia_fast.cli.options import (
    DetectorOptions,
    ModelOptions,
    PresetOptions,
    detector_options,
    max_pixels_option,
    model_options,
    preset_options,
    threshold_option,
    thresholds_by_method,
)
from gaia_fast.compiler.package.writing import FORMATS
from gaia_fast.data import Preset
from gaia_fast.evaluation.image_sets import METHODS, Detector, model_input
from gaia_fast.gaia import SCORES, Gaia


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@model_options
@preset_options
@max_pixels_option
@detector_options(default=("gaia-z",), choices=SCORES, engines=False)
@click.option("--images", metavar="SOURCE", help="Images to check the program on before it is written; else noise.")
@click.option("--size", metavar="H[xW]", help="Size of the input, where no images are given.")
@threshold_option("Put into the file; scores above it are out of distribution. Of several methods: whose it is.")
def export(
    file: Path,
    model: ModelOptions,
    preset: PresetOptions,
    max_pixels: int,
    detectors: DetectorOptions,
    images: str | None,
    size: str | None,
    thresholds: tuple[str, ...],
) -> None:
    """Writes FILE, model.onnx or model.pt2: images in, logits and scores out, for any number of images.

    One output for each method: "score" where gaia-z or gaia-a is the only one, else "gaia_z", "msp" and so on.

    An .onnx file runs in onnxruntime and holds standard operators alone; a .pt2 file is an AOTInductor package, for
    PyTorch's C++ library. Threshold, method and layers are in the file's metadata. The score of an image that the
    program cannot score is NaN.
    """
    if images is not None and size is not None:
        raise click.UsageError("give --images or --size, not both")
    if file.suffix not in FORMATS:
        raise click.BadParameter(f"{file} ends in neither of {', '.join(FORMATS)}", param_hint="FILE")
    loaded = model.load()
    network = loaded.model
    x = _example(images, size, preset.of(loaded), max_pixels)
    given = thresholds_by_method(thresholds, detectors.methods)
    detector: Detector | Gaia
    if detectors.methods[0] in METHODS and len(detectors.methods) == 1:
        (detector,) = detectors.build(network).values()
        detector.threshold = given.get(detectors.methods[0])
    else:
        detector = detectors.build_joint(network)
        detector.thresholds = given
    written = detector.export(file, model_input(network, x))
    output.note(f"checked on {x.shape[0]} {'images' if images else 'images of noise'} of {tuple(x.shape[1:])}")
    click.echo(f"{written}: {written.stat().st_size / 2**20:.1f} MiB")


def _example(images: str | None, size: str | None, preset: Preset, max_pixels: int) -> Tensor:
    if images is not None:
        return first_images(images, preset, max_pixels, 8)
    blank = blank_images(size, preset)
    return torch.randn((8, *blank.shape[1:]), generator=torch.Generator().manual_seed(0))
