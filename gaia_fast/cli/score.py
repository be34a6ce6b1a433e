"""`gaia-fast score`: one row per image."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from gaia_fast import files
from gaia_fast.batch_scoring.chunks import ChunkScorer, Part, Prepared, chunk_size, score_chunks
from gaia_fast.batch_scoring.parts import PROGRAMS, PartsFolder
from gaia_fast.batch_scoring.request import Request, model_identity
from gaia_fast.batch_scoring.rows import Row, columns, types
from gaia_fast.cli import output
from gaia_fast.cli.calibration import CalibratedThresholds, CalibrationOptions, calibration_options
from gaia_fast.cli.options import (
    DetectorOptions,
    ModelOptions,
    PresetOptions,
    batch_size_option,
    check_apart,
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
from gaia_fast.cli.ray_options import RayOptions, ray_options
from gaia_fast.cli.resuming import resumable
from gaia_fast.cli.tables import Table, table
from gaia_fast.data import ImageSource, Preset, load_images
from gaia_fast.errors import DataError
from gaia_fast.evaluation.image_sets import Detectors, each_of
from gaia_fast.gaia import SCORES

Prepare = Callable[..., Prepared | None]  # `prepare_for`, given all but where programs are kept


@click.command()
@click.argument("images")
@model_options
@preset_options
@max_pixels_option
@detector_options(default=("gaia-z",), choices=SCORES)
@batch_size_option
@output_option(
    help="Where the rows go: .csv or .parquet (the extra `parquet`), put in place when all are scored: a run that "
    "fails leaves an earlier file as it was. Until then they are kept in FILE.partial. Default: CSV to stdout, each "
    "batch as it is scored."
)
@click.option(
    "--resume",
    is_flag=True,
    help="Go on where an earlier run of the same command, which was interrupted, killed or failed, had come to.",
)
@ray_options
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
    resume: bool,
    on_ray: RayOptions | None,
    thresholds: tuple[str, ...],
    calibrating: CalibrationOptions,
    json_file: Path | None,
) -> None:
    """Scores IMAGES: a folder of images (any depth), one image, an .npz with x uint8 (N, H, W, 3), or Parquet or
    WebDataset (.tar), a file or a folder of them.

    One row per image: image (path or index), predicted (class), score (larger = further out of distribution), and
    is_ood where a threshold is known. With several methods, which share the pass through the network, there is a column
    for each, called by its name, and is_ood_NAME. An image that cannot be read, or has no finite score, is named on
    stderr and left out; the exit code is then 3.
    """
    if resume and out is None:
        raise click.UsageError("--resume goes on with a file of rows; it needs --out")
    if on_ray is not None and out is None:
        raise click.UsageError("--ray writes its rows to a file; it needs --out")
    check_apart({"--out": out, "--json": json_file})
    methods = detectors.methods
    decided = thresholds_by_method(thresholds, methods)
    writing = table(out, "--out")
    loaded = model.load()
    prepared = preset.of(loaded)
    chosen = detectors.build_all(loaded.model)
    source = load_images(images, prepared, max_pixels)
    output.report_skipped(source)
    id_source = calibrating.source(prepared, max_pixels)

    total = len(source) + (0 if id_source is None else len(id_source))
    prepare = partial(prepare_for, chosen, detectors.engine, source, prepared, total, batch_size)

    def report(found: _Found) -> None:
        """Says what came of it, and writes it down."""
        calibration = found.calibration
        known = decided if calibration is None else calibration.thresholds
        for method in methods:
            verdict = ""
            if method in known:
                verdict = f", {found.flagged[method]} of them OOD at the threshold {known[method]:.6g}"
            output.note(f"{method}: {found.count} images scored{verdict}")
        asked: dict[str, Any] = {"methods": methods, "thresholds": known}
        if len(methods) == 1:
            asked = {"method": methods[0], "threshold": known.get(methods[0])}
        output.write_json(
            json_file,
            {
                **asked,
                "preprocessing": described(prepared),
                "calibration": None if calibration is None else calibration.record(),
                "count": found.count,
                "images": found.rows,
                "unreadable": output.unreadable_record(found.unreadable),
                "skipped": dict(source.skipped),
            },
        )

    keep = json_file is not None
    job = _Job(chosen, methods, source, id_source, calibrating, decided, batch_size, prepare, on_ray, keep, report)
    if out is None or (not resume and on_ray is None and files.target(out) is None):  # a pipe has no place beside it
        found = job.streamed(writing)
    else:
        options = _options(model, detectors, prepared, max_pixels, batch_size, decided, calibrating)
        found = job.in_parts(writing, out, options, resume)
    output.finish(len(found.unreadable) + (0 if found.calibration is None else len(found.calibration.unreadable)))


def _options(
    model: ModelOptions,
    detectors: DetectorOptions,
    preset: Preset,
    max_pixels: int,
    batch_size: int,
    thresholds: Mapping[str, float],
    calibrating: CalibrationOptions,
) -> dict[str, Any]:
    """All options that rows hang on, but for the model and the images themselves."""
    return {
        "--method": list(detectors.methods),
        "--layers": {method: layers for method, layers in detectors.layers.items() if layers is not None},
        **{f"--{name}": detectors.gaia_a.get(name) for name in ("fusion", "statistic", "head")},
        "--engine": str(detectors.engine),
        "--backend": str(detectors.backend),
        "--runtime": str(detectors.runtime),
        "--device": model.device,
        "--batch-size": batch_size,
        "--preset": described(preset),
        "--max-pixels": max_pixels,
        "--threshold": dict(thresholds),
        "--id-tpr": None if calibrating.path is None else calibrating.id_tpr,
    }


@dataclass
class _Found:
    """What came of all images; `rows` only where they are kept."""

    calibration: CalibratedThresholds | None
    count: int
    flagged: dict[str, int]
    unreadable: list[tuple[str, str]]
    rows: list[Row]


@dataclass(frozen=True)
class _Job:
    """Which images are scored, by what, and who is told of it; `keep` says whether the rows are wanted there."""

    detectors: Detectors
    methods: Sequence[str]
    source: ImageSource
    id_source: ImageSource | None
    calibrating: CalibrationOptions
    thresholds: Mapping[str, float]
    batch_size: int
    prepare: Prepare
    on_ray: RayOptions | None
    keep: bool
    report: Callable[[_Found], None]

    def streamed(self, writing: Table) -> _Found:
        """Rows are written batch by batch."""
        self.prepare()
        calibration = self._calibrate()
        scorer = self._scorer(calibration)

        def parts() -> Iterator[Part]:
            with output.progress("scoring", len(self.source)) as advance:
                for part in scorer.parts(self.source):
                    yield part
                    advance(part.images)
            yield Part([], self.source.unreadable)

        return self._written(writing, scorer, parts(), calibration)

    def in_parts(self, writing: Table, out: Path, options: Mapping[str, Any], resume: bool) -> _Found:
        """Rows are kept in parts, and put together when there are all."""
        images = {"IMAGES": self.source.digest()}
        if self.id_source is not None:
            images["--calibrate-on"] = self.id_source.digest()
        model = each_of(self.detectors)[0].model
        request = Request(options, images, *model_identity(model), len(self.source), chunk_size(self.batch_size))
        with resumable(out, request, resume) as folder:
            missing, programs = folder.missing, folder.path / PROGRAMS
            with contextlib.ExitStack() as stack:  # left before the rows are put together
                workers = stack.enter_context(self.on_ray.connected()) if self.on_ray is not None and missing else None
                prepared = self.prepare(cache_dir=programs) if missing else None
                calibration = self._kept_calibration(folder)
                scorer = self._scorer(calibration)
                advance = stack.enter_context(output.progress("scoring", len(self.source), folder.done))
                if workers is None:
                    scored = score_chunks(scorer, self.source, missing, advance)
                else:
                    scored = workers.score_chunks(scorer, self.source, missing, prepared, programs, advance)
                for chunk, part in scored:
                    folder.write(chunk, part)
            return self._written(writing, scorer, folder.read(), calibration)

    def _calibrate(self) -> CalibratedThresholds | None:
        return self.calibrating.run(self.detectors, self.methods, self.id_source, self.batch_size)

    def _kept_calibration(self, folder: PartsFolder) -> CalibratedThresholds | None:
        """What an earlier run has calibrated; else what this one does, which is kept from then on."""
        if not folder.more:
            calibration = self._calibrate()
            folder.keep({"calibration": None if calibration is None else asdict(calibration)})
            return calibration
        kept = folder.more["calibration"]
        if kept is None:
            return None
        unreadable = [(name, reason) for name, reason in kept["unreadable"]]
        output.report_unreadable(unreadable, f"{self.calibrating.path}: ")
        return CalibratedThresholds(kept["thresholds"], kept["images"], unreadable)

    def _scorer(self, calibration: CalibratedThresholds | None) -> ChunkScorer:
        thresholds = self.thresholds if calibration is None else calibration.thresholds
        return ChunkScorer(self.detectors, columns(self.methods, thresholds), self.batch_size)

    def _written(
        self,
        writing: Table,
        scorer: ChunkScorer,
        parts: Iterable[Part],
        calibration: CalibratedThresholds | None,
    ) -> _Found:
        """Writes the table, all of it or nothing, and reports it."""
        decisions = {each.method: each.name for each in scorer.columns if each.threshold is not None}
        found = _Found(calibration, 0, dict.fromkeys(decisions, 0), [], [])
        with writing(types(scorer.columns)) as write:
            for part in parts:
                write(part.rows)
                found.count += len(part.rows)
                for method, name in decisions.items():
                    found.flagged[method] += sum(row[name] for row in part.rows)
                found.rows += part.rows if self.keep else []
                found.unreadable += part.unreadable
            output.report_unreadable(found.unreadable)
            if not found.count and found.unreadable:  # in here, so that a table of nothing replaces no other
                raise DataError(f"none of the {len(self.source)} images can be read and scored")
        self.report(found)
        return found
