"""`gaia-fast serve`: scores by HTTP."""

import warnings
from dataclasses import replace
from pathlib import Path

import click
import torch
from click.core import ParameterSource
from joblib import cpu_count
from torch import Tensor

from gaia_fast.cli import output
from gaia_fast.cli.calibration import CalibrationOptions, calibration_options
from gaia_fast.cli.loading import Loaded
from gaia_fast.cli.options import (
    FILE,
    FOLDER,
    DetectorOptions,
    ModelOptions,
    PresetOptions,
    described,
    detector_options,
    model_options,
    preset_options,
    threshold_option,
    thresholds_by_method,
)
from gaia_fast.data import Preset
from gaia_fast.detector_file import SavedDetector
from gaia_fast.errors import ArgumentError
from gaia_fast.evaluation.image_sets import Detector, model_input
from gaia_fast.gaia import SCORES, Gaia
from gaia_fast.loading import load
from gaia_fast.scorers import calibrations_of, set_thresholds, thresholds_of
from gaia_fast.serving.app import Service, make_app
from gaia_fast.serving.ray_serve import Deployment, deployed
from gaia_fast.serving.server import bound, run

_EXAMPLES = 4  # images that replicas are prepared on
# What a detector's file says.
_OF_THE_FILE = (
    "method",
    "layers",
    "fusion",
    "statistic",
    "head",
    "engine",
    "backend",
    "runtime",
    "thresholds",
    "calibrate_on",
    "id_tpr",
)


@click.command()
@model_options
@preset_options
@detector_options(default=("gaia-z",), choices=SCORES)
@click.option(
    "--detector",
    "saved",
    type=FILE,
    metavar="FILE",
    help="A .gaia file, of `gaia-fast calibrate` or det.save: method, layers, threshold and preset come from there.",
)
@threshold_option("Scores above it are out of distribution. Of several methods: whose it is.")
@calibration_options
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
    help="Images that are received, decoded, wait or are scored at one time; what comes beyond is answered by 503.",
)
@click.option(
    "--max-pixels",
    type=click.IntRange(1),
    default=Service.max_pixels,
    show_default=True,
    help="Of an image, as it is and as it is resized: else 413.",
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
    help="Where programs are kept: a replica that finds its own there starts in a second.",
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
    warnings.filterwarnings("ignore", module="PIL")  # of metadata; what is wrong with pixels is an error
    if torch.device(model.device).index:
        raise click.UsageError(f"--device {model.device}: Ray gives each replica a device of its own; ask for cuda")
    loaded = model.load()
    detector: Detector | Gaia
    if saved is None:
        detector, prepared = detectors.build_one(loaded.model), preset.of(loaded)
    else:
        _check_no_others(click.get_current_context())
        detector, prepared = _saved(saved, loaded, preset)
    if prepared.input_size is None:
        raise click.UsageError("images of one size are served: give --crop, --resize HxW, or a --preset with one")
    example = torch.randn((_EXAMPLES, 3, *prepared.input_size), generator=torch.Generator().manual_seed(0))
    source = calibrating.source(prepared, max_pixels)
    if source is not None:
        example = source.first(_EXAMPLES).images
        calibrating.calibrate(detector, source, detectors.engine, max_batch)
    elif thresholds:
        set_thresholds(detector, thresholds_by_method(thresholds, detectors.methods))
    deployment = Deployment(
        replicas=replicas,
        max_batch=max_batch,
        threads=threads or max(1, cpu_count() // replicas),
        cache_dir=cache_dir,
        code=None if model.spec is None else Path.cwd(),
        address=address,
    )
    service = Service(
        type(loaded.model).__name__,
        prepared,
        thresholds_of(detector),
        calibrations_of(detector),
        labels=None if labels is None else _names(labels, detector, example),
        replicas=replicas,
        batches_a_replica=deployment.batches_a_replica,
        max_batch=max_batch,
        max_images=max_images,
        max_pixels=max_pixels,
        max_bytes=max_bytes,
        window=window,
    )
    output.note(f"starting {replicas} {'replica' if replicas == 1 else 'replicas'}, {deployment.threads} threads each")
    with bound(host, port) as at, deployed(detector, example.numpy(), deployment) as pool:
        run(make_app(service, pool), at, lambda url: output.note(f"serving at {url}"), max(512, 8 * max_images))


def _check_no_others(context: click.Context) -> None:
    """Raises click.UsageError for an option whose value comes from the detector's file."""
    for parameter in context.command.params:
        name = str(parameter.name)
        if name in _OF_THE_FILE and context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise click.UsageError(f"--detector says what is scored, and how: leave {parameter.opts[0]} out")


def _saved(saved: Path, loaded: Loaded, preset: PresetOptions) -> tuple[Detector | Gaia, Preset]:
    """The detector of a file, and the preset that it was calibrated with; what is asked for where that is not known."""
    if saved.suffix != ".gaia":
        raise click.BadParameter(f"{saved} is no .gaia file; `gaia-fast calibrate` writes one", param_hint="--detector")
    detector, own = load(saved, loaded.model), SavedDetector.read(saved).preset
    if own is None:
        return detector, preset.of(loaded)
    if preset.given and replace(preset.of(loaded), name=own.name) != own:
        raise click.UsageError(
            f"{saved} was calibrated on images that were prepared otherwise ({described(own)}), and its threshold is "
            "of those: leave the options of the preset out"
        )
    return detector, own


def _names(labels: Path, detector: Detector | Gaia, example: Tensor) -> list[str]:
    try:
        text = labels.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise ArgumentError(f"--labels {labels} cannot be read ({error}); give a text file, a name a line") from error
    names = text.removesuffix("\n").split("\n")
    classes = len(detector.score(model_input(detector.model, example[:1])).logits[0])
    if len(names) != classes:
        raise ArgumentError(
            f"--labels {labels} has {len(names)} names for {classes} classes; give one for each, a line"
        )
    return names
