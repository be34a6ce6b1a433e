"""`gaia-fast score`: one row per image."""

from pathlib import Path

import click

from gaia_fast.calibration import check_informative, threshold_for
from gaia_fast.cli import output
from gaia_fast.cli.options import (
    DetectorOptions,
    ModelOptions,
    PresetOptions,
    batch_size_option,
    described,
    detector_options,
    json_option,
    max_pixels_option,
    model_options,
    output_option,
    preset_options,
)
from gaia_fast.cli.tables import Row, table
from gaia_fast.data import load_images
from gaia_fast.errors import DataError
from gaia_fast.evaluation.image_sets import score_set, scored_batches

_COLUMNS = {"image": "string", "predicted": "int64", "score": "float32"}


@click.command()
@click.argument("images")
@model_options
@preset_options
@max_pixels_option
@detector_options(default=("gaia-z",), single=True)
@batch_size_option
@output_option(
    help="Where the rows go: .csv or .parquet (the extra `parquet`), put in place when all are scored: a run that "
    "fails leaves an earlier file as it was. Default: CSV to stdout, each batch as it is scored."
)
@click.option("--threshold", type=float, help="Adds the column is_ood: score > threshold.")
@click.option("--calibrate-on", metavar="PATH", help="In-distribution images to take the threshold from.")
@click.option(
    "--id-tpr",
    type=click.FloatRange(0, 1, min_open=True),
    help="The share of those that the threshold accepts.  [default: 0.95]",
)
@json_option
def score(
    images: str,
    model: ModelOptions,
    preset: PresetOptions,
    max_pixels: int,
    detectors: DetectorOptions,
    batch_size: int,
    out: Path | None,
    threshold: float | None,
    calibrate_on: str | None,
    id_tpr: float | None,
    json_file: Path | None,
) -> None:
    """Scores IMAGES: a folder of images (any depth), one image, or an .npz with x uint8 (N, H, W, 3).

    One row per image: image (path or index), predicted (class), score (larger = further out of distribution), and
    is_ood where a threshold is known. An image that cannot be read is named on stderr and left out; the exit code is
    then 3.
    """
    if threshold is not None and calibrate_on is not None:
        raise click.UsageError("give --threshold or --calibrate-on, not both")
    if id_tpr is not None and calibrate_on is None:
        raise click.UsageError("--id-tpr says how to calibrate; it needs --calibrate-on")
    writing = table(out, "--out")
    loaded = model.load()
    prepared = preset.of(loaded)
    chosen = detectors.build(loaded.model)
    (method,) = chosen
    source = load_images(images, prepared, max_pixels)
    unreadable = 0

    calibration = None
    if calibrate_on is not None:
        id_source = load_images(calibrate_on, prepared, max_pixels)
        with output.progress("calibrating", len(id_source)) as advance:
            id_set = score_set(chosen, id_source, batch_size, advance)
        check_informative(id_set.scores[method])
        threshold = threshold_for(id_set.scores[method], 0.95 if id_tpr is None else id_tpr)
        output.report_unreadable(id_set.unreadable, f"{calibrate_on}: ")
        unreadable += len(id_set.unreadable)
        calibration = {"images": len(id_set.names), "unreadable": output.unreadable_record(id_set.unreadable)}

    kept: list[Row] = []  # for the JSON alone: a CSV is written as images come
    count = flagged = 0
    columns = _COLUMNS if threshold is None else {**_COLUMNS, "is_ood": "bool"}
    with writing(columns) as write:
        with output.progress("scoring", len(source)) as advance:
            for batch in scored_batches(chosen, source, batch_size):
                rows = []
                for name, predicted, value in zip(
                    batch.names, batch.predicted.tolist(), batch.scores[method].tolist(), strict=True
                ):
                    row: Row = {"image": name, "predicted": predicted, "score": value}
                    if threshold is not None:
                        row["is_ood"] = value > threshold
                        flagged += row["is_ood"]
                    rows.append(row)
                write(rows)
                count += len(rows)
                kept += rows if json_file else []
                advance(len(rows))
        output.report_unreadable(source.unreadable)
        if not count and source.unreadable:  # in here, so that a table of nothing replaces no other
            raise DataError(f"none of the {len(source)} images of {images} can be read")

    verdict = "" if threshold is None else f", {flagged} of them OOD at the threshold {threshold:.6g}"
    output.note(f"{method}: {count} images scored{verdict}")
    unreadable += len(source.unreadable)
    output.write_json(
        json_file,
        {
            "method": method,
            "preprocessing": described(prepared),
            "threshold": threshold,
            "calibration": calibration,
            "count": count,
            "images": kept,
            "unreadable": output.unreadable_record(source.unreadable),
        },
    )
    output.finish(unreadable)
