"""`gaia-fast layers`: what a detector inspects, and how it will work."""

from dataclasses import asdict
from pathlib import Path

import click

from gaia_fast.cli import output
from gaia_fast.cli.images import blank_images, first_images
from gaia_fast.cli.options import (
    DetectorOptions,
    ModelOptions,
    PresetOptions,
    detector_options,
    json_option,
    max_pixels_option,
    model_options,
    preset_options,
)
from gaia_fast.evaluation.image_sets import model_input


@click.command()
@click.argument("image", required=False)
@model_options
@preset_options
@max_pixels_option
@detector_options()
@click.option("--size", metavar="H[xW]", help="Size of the input, such as 32 or 480x640, in place of an image.")
@json_option
def layers(
    image: str | None,
    model: ModelOptions,
    preset: PresetOptions,
    max_pixels: int,
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
    loaded = model.load(trained=False)
    network, prepared = loaded.model, preset.of(loaded, scored=False)
    x = first_images(image, prepared, max_pixels, 1) if image is not None else blank_images(size, prepared)
    plans = {method: each.plan(model_input(network, x)) for method, each in detectors.build(network).items()}
    click.echo("\n\n".join(str(plan) for plan in plans.values()))
    output.write_json(
        json_file,
        {"plans": {method: {**asdict(plan), "channels": plan.channels} for method, plan in plans.items()}},
    )
