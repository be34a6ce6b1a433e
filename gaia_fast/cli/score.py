"""`gaia-fast score`: one row per image."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from gaia_fast.cli import output
from gaia_fast.cli.calibration import CalibrationOptions, calibration_options
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
    threshold_option,
    thresholds_by_method,
)
from gaia_fast.cli.preparing import prepare_for
from gaia_fast.cli.tables import Row, table
from gaia_fast.data import load_images
from gaia_fast.errors import DataError
from gaia_fast.evaluation.image_sets import METHODS, scored_batches
from gaia_fast.gaia import SCORES

_FIRST = {"image": "string", "predicted": "int64"}


@click.command()
@click.argument("images")
@model_options
@preset_options
@max_pixels_option
@detector_options(default=("gaia-z",), choices=SCORES)
@batch_size_option
@output_option(
    help="Where the rows go: .csv or .parquet (the extra `parquet`), put in place when all are scored: a run that "
    "fails leaves an earlier file as it was. Default: CSV to stdout, each batch as it is scored."
)
@threshold_option("Adds the column is_ood: score > threshold. Of several methods: whose it is.")
@calibration_options
@json_option
def score(
    images: str,
    model: ModelOptions,
    preset: PresetOptions,
    max_pixels: int,
    detectors: DetectorOptions,
    batch_size: int,
    out: Path | None,
    thresholds: tuple[str, ...],
    calibrating: CalibrationOptions,
    json_file: Path | None,
) -> None:
    """Scores IMAGES: a folder of images (any depth), one image, or an .npz with x uint8 (N, H, W, 3).

    One row per image: image (path or index), predicted (class), score (larger = further out of distribution), and
    is_ood where a threshold is known. With several methods, which share the pass through the network, there is a column
    for each, called by its name, and is_ood_NAME. An image that cannot be read is named on stderr and left out; the
    exit code is then 3.
    """
    methods = detectors.methods
    decided = thresholds_by_method(thresholds, methods)
    writing = table(out, "--out")
    loaded = model.load()
    prepared = preset.of(loaded)
    alone = len(methods) == 1 and methods[0] in METHODS
    chosen = detectors.build(loaded.model) if alone else detectors.build_joint(loaded.model)
    source = load_images(images, prepared, max_pixels)
    unreadable = 0
    id_source = calibrating.source(prepared, max_pixels)
    total = len(source) + (0 if id_source is None else len(id_source))
    prepare_for(chosen, detectors.engine, source, prepared, total, batch_size)

    calibration = calibrating.run(chosen, methods, id_source, batch_size)
    if calibration is not None:
        decided = calibration.thresholds
        unreadable += len(calibration.unreadable)

    columns = _columns(methods, decided)
    kept: list[Row] = []  # for the JSON alone: a CSV is written as images come
    count, flagged = 0, dict.fromkeys(decided, 0)
    types = {each.name: "float32" if each.threshold is None else "bool" for each in columns}
    with writing({**_FIRST, **types}) as write:
        with output.progress("scoring", len(source)) as advance:
            for batch in scored_batches(chosen, source, batch_size):
                rows: list[Row] = []
                values = {method: batch.scores[method].tolist() for method in methods}
                for place, (name, predicted) in enumerate(zip(batch.names, batch.predicted.tolist(), strict=True)):
                    row: Row = {"image": name, "predicted": predicted}
                    for each in columns:
                        value = values[each.method][place]
                        row[each.name] = value if each.threshold is None else value > each.threshold
                        if each.threshold is not None:
                            flagged[each.method] += row[each.name]
                    rows.append(row)
                write(rows)
                count += len(rows)
                kept += rows if json_file else []
                advance(len(rows))
        output.report_unreadable(source.unreadable)
        if not count and source.unreadable:  # in here, so that a table of nothing replaces no other
            raise DataError(f"none of the {len(source)} images of {images} can be read")

    for method in methods:
        verdict = ""
        if method in decided:
            verdict = f", {flagged[method]} of them OOD at the threshold {decided[method]:.6g}"
        output.note(f"{method}: {count} images scored{verdict}")
    unreadable += len(source.unreadable)
    asked: dict[str, Any] = {"methods": methods, "thresholds": decided}
    if len(methods) == 1:
        asked = {"method": methods[0], "threshold": decided.get(methods[0])}
    output.write_json(
        json_file,
        {
            **asked,
            "preprocessing": described(prepared),
            "calibration": None if calibration is None else calibration.record(),
            "count": count,
            "images": kept,
            "unreadable": output.unreadable_record(source.unreadable),
        },
    )
    output.finish(unreadable)


class _Column(NamedTuple):
    """A method's scores; with a threshold, whether they are above it."""

    name: str
    method: str
    threshold: float | None = None


def _columns(methods: Sequence[str], thresholds: Mapping[str, float]) -> list[_Column]:
    """What a row holds beside the image and its class."""
    alone = len(methods) == 1
    found = []
    for method in methods:
        found.append(_Column("score" if alone else method, method))
        if method in thresholds:
            found.append(_Column("is_ood" if alone else f"is_ood_{method}", method, thresholds[method]))
    return found
