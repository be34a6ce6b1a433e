"""`gaia-fast score`: one row per image."""

import contextlib
import csv
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
from gaia_fast.data import load_images
from gaia_fast.errors import ArgumentError, DataError
from gaia_fast.evaluation.image_sets import score_set, scored_batches
from gaia_fast.files import replacing

Row = dict[str, Any]

_ROWS_AT_ONCE = 65536  # rows of a Parquet row group: a compressed column of few rows wastes space


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
    writing = _writer(out)
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
    with writing(threshold is not None) as write:
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


Write = Callable[[list[Row]], None]


def _writer(out: Path | None) -> Callable[[bool], contextlib.AbstractContextManager[Write]]:
    """What writes rows to `out`; its argument says whether they have is_ood."""
    if out is None or out.suffix.lower() == ".csv":
        return lambda decided: _csv(out, decided)
    if out.suffix.lower() != ".parquet":
        raise click.UsageError(f"--out {out}: the name must end in .csv or .parquet")
    if importlib.util.find_spec("pyarrow") is None:
        raise ArgumentError(
            f"--out {out} needs pyarrow, which is not installed: pip install 'gaia-fast[parquet]', or write a .csv"
        )
    return lambda decided: _parquet(out, decided)


@contextlib.contextmanager
def _csv(out: Path | None, decided: bool) -> Iterator[Write]:
    columns = ["image", "predicted", "score"] + ["is_ood"] * decided
    with _text_file(out) as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        begun = False

        def write(rows: list[Row]) -> None:
            nonlocal begun
            if not begun:  # not before there is something: a run that fails leaves no table of nothing
                writer.writeheader()
                begun = True
            # Nine digits tell any two float32 numbers apart.
            shown = [{**row, "score": f"{row['score']:.9g}"} for row in rows]
            writer.writerows([{k: str(v).lower() if k == "is_ood" else v for k, v in row.items()} for row in shown])
            file.flush()

        yield write
        write([])


@contextlib.contextmanager
def _text_file(out: Path | None) -> Iterator[Any]:
    if out is None:
        yield sys.stdout
        return
    # A name that is no valid Unicode goes out as the bytes that it came in as.
    with (
        replacing(out) as written,
        written.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        yield file


@contextlib.contextmanager
def _parquet(out: Path, decided: bool) -> Iterator[Write]:
    import pyarrow as pa
    from pyarrow import parquet

    fields = [("image", pa.string()), ("predicted", pa.int64()), ("score", pa.float32())]
    schema = pa.schema(fields + [("is_ood", pa.bool_())] * decided)
    waiting: list[Row] = []
    with replacing(out) as written, parquet.ParquetWriter(written, schema) as writer:

        def flush() -> None:
            if waiting:
                writer.write_table(pa.Table.from_pylist(waiting, schema))
                waiting.clear()

        def write(rows: list[Row]) -> None:
            waiting.extend(rows)
            if len(waiting) >= _ROWS_AT_ONCE:
                flush()

        yield write
        flush()
