"""`gaia-fast serve`: scores by HTTP."""

import os
import warnings
from pathlib import Path

import click
import torch
from torch import Tensor, nn

from gaia_fast.cli import output
from gaia_fast.cli.calibration import CalibrationOptions, calibration_options
from gaia_fast.cli.options import (
    FILE,
    FOLDER,
    DetectorOptions,
    ModelOptions,
    PresetOptions,
    batch_size_option,
    detector_options,
    model_options,
    preset_options,
    threshold_option,
    thresholds_by_method,
)
from gaia_fast.errors import ArgumentError
from gaia_fast.evaluation.image_sets import Detector, model_input
from gaia_fast.gaia import SCORES, Gaia
from gaia_fast.loading import load
from gaia_fast.serving.app import Service, make_app
from gaia_fast.serving.detectors import calibrations_of, set_thresholds, thresholds_of
from gaia_fast.serving.ray_serve import deployed
from gaia_fast.serving.server import run

_EXAMPLES = 4  # images that replicas are prepared on


@click.command()
@model_options
@preset_options
@detector_options(default=("gaia-z",), choices=SCORES)
@click.option(
    "--detector",
    "saved",
    type=FILE,
    metavar="FILE",
    help="A .gaia file, of `gaia-fast calibrate` or det.save: method, layers and threshold come from there.",
)
@threshold_option("Scores above it are out of distribution. Of several methods: whose it is.")
@calibration_options
@batch_size_option
@click.option("--labels", type=FILE, metavar="FILE", help="Names of the classes, one a line.")
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 to be reached from other machines.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any that is free.")
@click.option("--replicas", type=click.IntRange(1), default=1, show_default=True, help="Processes that score.")
@click.option(
    "--threads", type=click.IntRange(1), help="Of each replica.  [default: this machine's processors, shared equally]"
)
@click.option(
    "--max-batch",
    type=click.IntRange(1),
    default=16,
    show_default=True,
    help="Images that go through the network together; none waits for others to come.",
)
@click.option(
    "--max-images",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Images that are decoded, wait or are scored at one time; what comes beyond is answered by 503.",
)
@click.option(
    "--max-pixels", type=click.IntRange(1), default=Service.max_pixels, show_default=True, help="Of an image: else 413."
)
@click.option(
    "--max-bytes", type=click.IntRange(1), default=Service.max_bytes, show_default=True, help="Of an image: else 413."
)
@click.option(
    "--window",
    type=click.FloatRange(1),
    default=Service.window,
    show_default=True,
    help="Of the drift report, seconds.",
)
@click.option(
    "--cache-dir",
    type=FOLDER,
    help="Keeps programs, so that replicas start in a second: of this run's later ones, too.",
)
@click.option(
    "--ray", "address", metavar="ADDRESS", help="A running Ray cluster.  [default: one on this machine alone]"
)
def serve(
    model: ModelOptions,
    preset: PresetOptions,
    detectors: DetectorOptions,
    saved: Path | None,
    thresholds: tuple[str, ...],
    calibrating: CalibrationOptions,
    batch_size: int,
    labels: Path | None,
    host: str,
    port: int,
    replicas: int,
    threads: int | None,
    max_batch: int,
    max_images: int,
    max_pixels: int,
    max_bytes: int,
    window: float,
    cache_dir: Path | None,
    address: str | None,
) -> None:
    """Scores images by HTTP, on Ray Serve (the extra `serve`), until it is interrupted.

    POST /score takes the bytes of an image file, and answers JSON: predicted, label, score, is_ood (of several methods
    scores and is_ood by name). GET / is a page to drop images on; /healthz and /readyz are for probes, /metrics for
    Prometheus, /drift says whether scores are still those of the calibration. There is no encryption and no login:
    put a proxy in front of it where others can reach it.
    """
    if saved is not None and (thresholds or calibrating.path is not None):
        raise click.UsageError("--detector has its threshold: leave --threshold and --calibrate-on out")
    warnings.filterwarnings("ignore", module="PIL")  # of metadata; what is wrong with pixels is an error
    loaded = model.load()
    prepared = preset.of(loaded)
    if prepared.input_size is None:
        raise click.UsageError("images of one size are served: give --crop, --resize HxW, or a --preset with one")
    detector = _detector(loaded.model, detectors, saved)
    example = torch.randn((_EXAMPLES, 3, *prepared.input_size), generator=torch.Generator().manual_seed(0))
    unreadable = 0
    source = calibrating.source(prepared, max_pixels)
    if source is not None:
        example = source.first(_EXAMPLES).images
        unreadable = calibrating.calibrate(detector, source, detectors.engine, batch_size)
    elif thresholds:
        set_thresholds(detector, thresholds_by_method(thresholds, detectors.methods))
    names = None if labels is None else _names(labels, detector, example)
    service = Service(
        type(loaded.model).__name__,
        prepared,
        thresholds_of(detector),
        calibrations_of(detector),
        labels=names,
        replicas=replicas,
        max_batch=max_batch,
        max_images=max_images,
        max_pixels=max_pixels,
        max_bytes=max_bytes,
        window=window,
    )
    threads = threads or max(1, (os.cpu_count() or 1) // replicas)
    output.note(f"starting {replicas} {'replica' if replicas == 1 else 'replicas'}, {threads} threads each")
    with deployed(
        detector,
        example.numpy(),
        replicas=replicas,
        batches_a_replica=service.batches_a_replica,
        threads=threads,
        cache_dir=cache_dir,
        address=address,
    ) as scoring:
        run(make_app(service, scoring), host, port, lambda url: output.note(f"serving at {url}"))
    output.finish(unreadable)


def _detector(network: nn.Module, asked: DetectorOptions, saved: Path | None) -> Detector | Gaia:
    if saved is None:
        return asked.build_one(network)
    if saved.suffix != ".gaia":
        raise click.BadParameter(f"{saved} is no .gaia file; `gaia-fast calibrate` writes one", param_hint="--detector")
    return load(saved, network)


def _names(labels: Path, detector: Detector | Gaia, example: Tensor) -> list[str]:
    try:
        names = labels.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise ArgumentError(f"--labels {labels} cannot be read ({error}); give a text file, a name a line") from error
    classes = len(detector.score(model_input(detector.model, example[:1])).logits[0])
    if len(names) != classes:
        raise ArgumentError(
            f"--labels {labels} has {len(names)} names for {classes} classes; give one for each, a line"
        )
    return names
