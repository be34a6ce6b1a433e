"""`gaia-fast export`: prediction and scores as one file that needs neither this package nor Python."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import click
import torch
from torch import Tensor

from gaia_fast.cli import output
from gaia_fast.cli.calibration import CalibrationOptions, calibration_options
from gaia_fast.cli.images import blank_images, first_images
from gaia_fast.cli.options import (
    FILE,
    FOLDER,
    DetectorOptions,
    ModelOptions,
    PresetOptions,
    batch_size_option,
    described,
    detector_options,
    max_pixels_option,
    model_options,
    preset_options,
    threshold_option,
    thresholds_by_method,
)
from gaia_fast.cli.preparing import prepare_for
from gaia_fast.compiler.package.writing import FORMATS, check_format
from gaia_fast.data import Preset
from gaia_fast.evaluation.image_sets import Detector, model_input
from gaia_fast.gaia import SCORES, Gaia
from gaia_fast.integrations.triton_inference_server import export_model
from gaia_fast.integrations.triton_inference_server.repository import FORMATS as TRITON_FORMATS
from gaia_fast.integrations.triton_inference_server.repository import check_repository

Writer: TypeAlias = Callable[[Detector | Gaia, Sequence[Tensor], Preset | None], Path]


@click.command()
@click.argument("file", required=False, type=FILE)
@click.option(
    "--triton",
    "repository",
    type=FOLDER,
    metavar="DIR",
    help="In the place of FILE: a model repository of Triton Inference Server, made unless it is there. Writes "
    "DIR/NAME/config.pbtxt, DIR/NAME/1/model.py and the file beside it; of a model that is there, its next version.",
)
@click.option("--name", metavar="NAME", help="With --triton: what the server calls the model.  [default: gaia]")
@click.option("--format", type=click.Choice(TRITON_FORMATS), help="With --triton: of the file.  [default: onnx]")
@model_options
@preset_options
@max_pixels_option
@detector_options(default=("gaia-z",), choices=SCORES, engines=False)
@click.option("--images", metavar="SOURCE", help="Images to check the program on before it is written; else noise.")
@click.option(
    "--size",
    "sizes",
    multiple=True,
    metavar="H[xW]",
    help="Size of the input, where no images are given. Repeatable: the file takes each of these sizes.",
)
@click.option(
    "--preprocess",
    is_flag=True,
    help="The file takes uint8 RGB pictures (N, 3, H, W), and resizes, crops and normalises them itself, as the preset "
    "says: of any size where it resizes or crops.",
)
@threshold_option("Put into the file; scores above it are out of distribution. Of several methods: whose it is.")
@calibration_options
@batch_size_option
def export(
    file: Path | None,
    repository: Path | None,
    name: str | None,
    format: str | None,
    model: ModelOptions,
    preset: PresetOptions,
    max_pixels: int,
    detectors: DetectorOptions,
    images: str | None,
    sizes: tuple[str, ...],
    preprocess: bool,
    thresholds: tuple[str, ...],
    calibrating: CalibrationOptions,
    batch_size: int,
) -> None:
    """Writes FILE, model.onnx or model.pt2: images in, logits and scores out, for any number of images. Or, with
    --triton, a model for Triton Inference Server with such a file in it.

    One output for each method: "score" where gaia-z or gaia-a is the only one, else "gaia_z", "msp" and so on. And one
    for each threshold: "is_ood", else "is_ood_gaia_z" and so on.

    An .onnx file runs in onnxruntime and holds standard operators alone; a .pt2 file is an AOTInductor package, for
    PyTorch's C++ library. Threshold, method and layers are in the file's metadata. The score of an image that the
    program cannot score is NaN, and the image counts as out of distribution. If an image to calibrate on cannot be
    read, it is named on stderr and left out; the exit code is then 3. They must be of a size that the file is for: a
    score depends on the size. Of several sizes, one threshold serves all.
    """
    if images is not None and sizes:
        raise click.UsageError("give --images or --size, not both")
    if preprocess and len(sizes) > 1:
        raise click.UsageError("--preprocess makes images of one size; give one --size, or none")
    write = _writer(file, repository, name, format)
    loaded = model.load()
    network, prepared = loaded.model, preset.of(loaded)
    examples = [_example(images, size, prepared, max_pixels) for size in sizes or (None,)]
    given = thresholds_by_method(thresholds, detectors.methods)
    chosen = detectors.build_all(network)
    id_source = calibrating.source(prepared, max_pixels)
    if id_source is not None:
        of_file = list(dict.fromkeys(tuple(x.shape[2:]) for x in examples))
        calibrating.check_sizes(id_source, of_file, batch_size)
        if len(of_file) > 1:
            output.note("one threshold of each method serves all sizes, from the images to calibrate on at theirs")
        prepare_for(chosen, detectors.engine, id_source, prepared, len(id_source), batch_size)
    calibration = calibrating.run(chosen, detectors.methods, id_source, batch_size)
    if calibration is not None:
        given = calibration.thresholds
        for method, threshold in given.items():
            output.note(f"{method}: threshold {threshold:.6g}, from {calibration.images} images")
    detector: Detector | Gaia
    if isinstance(chosen, Gaia):
        detector = chosen
        detector.thresholds = given
    else:
        (detector,) = chosen.values()
        detector.threshold = given.get(detectors.methods[0])
    inputs = [model_input(network, x) for x in examples]
    written = write(detector, inputs, prepared if preprocess else None)
    for x in examples:
        output.note(f"checked on {x.shape[0]} {'images' if images else 'images of noise'} of {tuple(x.shape[1:])}")
    if preprocess:
        output.note(f"takes uint8 RGB pictures (N, 3, H, W): {described(prepared)}")
    click.echo(f"{written}: {written.stat().st_size / 2**20:.1f} MiB")
    output.finish(0 if calibration is None else len(calibration.unreadable))


def _writer(file: Path | None, repository: Path | None, name: str | None, format: str | None) -> Writer:
    """What writes the file, or the model for Triton; refuses now what can be known not to be written then."""
    if repository is None:
        if name is not None or format is not None:
            raise click.UsageError(f"{'--name' if name is not None else '--format'} needs --triton")
        if file is None:
            raise click.UsageError("give FILE, or --triton DIR")
        if file.suffix not in FORMATS:
            raise click.BadParameter(f"{file} ends in neither of {', '.join(FORMATS)}", param_hint="FILE")
        check_format(file)
        return lambda detector, inputs, preset: detector.export(file, inputs, preset=preset)
    if file is not None:
        raise click.UsageError("give FILE or --triton DIR, not both")
    name, format = name or "gaia", format or "onnx"
    check_repository(repository, name, format)
    return lambda detector, inputs, preset: export_model(
        detector, repository, inputs, name=name, format=format, preset=preset
    )


def _example(images: str | None, size: str | None, preset: Preset, max_pixels: int) -> Tensor:
    if images is not None:
        return first_images(images, preset, max_pixels, 8)
    blank = blank_images(size, preset)
    return torch.randn((8, *blank.shape[1:]), generator=torch.Generator().manual_seed(0))
