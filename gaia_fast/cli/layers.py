"""`gaia-fast layers`: what a detector inspects, and how it will work."""

import re
from dataclasses import asdict
from pathlib import Path

import click
import torch
from torch import Tensor

from gaia_fast.cli import output
from gaia_fast.cli.options import (
    DetectorOptions,
    ModelOptions,
    detector_options,
    json_option,
    model_options,
    preset_option,
)
from gaia_fast.data import PRESETS, load_images
from gaia_fast.errors import DataError
from gaia_fast.evaluation import model_input


@click.command()
@click.argument("image", required=False)
@model_options
@preset_option
@detector_options()
@click.option("--size", metavar="H[xW]", help="Size of the input, such as 32 or 480x640, in place of an image.")
@json_option
def layers(
    image: str | None,
    model: ModelOptions,
    preset: str,
    detectors: DetectorOptions,
    size: str | None,
    json_file: Path | None,
) -> None:
    """Prints the plan of each method: inspected layers with their channels and map sizes, head, engine, backend.

    The maps depend on the size of the input: that of IMAGE (its first readable one, if a folder or .npz) as the preset
    prepares it, of --size, or else of the preset's own crop. No weights are needed.
    """
    if image is not None and size is not None:
        raise click.UsageError("give an image or --size, not both")
    network = model.load(trained=False)
    x = _first_image(image, preset) if image is not None else _blank(size, preset)
    plans = {method: each.plan(model_input(network, x)) for method, each in detectors.build(network).items()}
    click.echo("\n\n".join(str(plan) for plan in plans.values()))
    output.write_json(
        json_file,
        {"plans": {method: {**asdict(plan), "channels": plan.channels} for method, plan in plans.items()}},
    )


def _first_image(path: str, preset: str) -> Tensor:
    source = load_images(path, preset)
    batch = next(source.batches(1), None)
    if batch is None:
        raise DataError(f"no image in {path} can be read ({source.unreadable[0][1]})")
    return batch.images


def _blank(size: str | None, preset: str) -> Tensor:
    if size is None:
        side = PRESETS[preset].crop or PRESETS[preset].resize
        if side is None:
            raise click.UsageError("the size of the input is unknown: give an image, --size, or a --preset with a crop")
        return torch.zeros(1, 3, side, side)
    match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", size)
    if match is None:
        raise click.BadParameter(f"{size!r} is not H or HxW, such as 32 or 480x640", param_hint="--size")
    return torch.zeros(1, 3, int(match[1]), int(match[2] or match[1]))
