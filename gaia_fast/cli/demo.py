"""`gaia-fast demo`: real images scored by both methods, with no arguments and no downloads."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from gaia_fast.cli import output
from gaia_fast.cli.options import FOLDER, json_option
from gaia_fast.data import digits
from gaia_fast.evaluation import image_sets, plots
from gaia_fast.evaluation.image_sets import BASELINE, Evaluation
from gaia_fast.evaluation.timing import Timing, measure_times
from gaia_fast.models import digits_resnet
from gaia_fast.plan import Plan
from gaia_fast.versions import processor

_TIMED_IMAGES = 64


@click.command()
@click.option(
    "--out",
    "folder",
    type=FOLDER,
    default=Path("gaia-demo"),
    show_default=True,
    help="Folder of the picture; made if need be.",
)
@json_option
def demo(folder: Path, json_file: Path | None) -> None:
    """Scores real images by both methods: scikit-learn's handwritten digits against pictures that are none.

    The network is a small ResNet trained on the digits; it ships with the package. In distribution: the digits held
    out of its training. Out of distribution: patches of photographs, letters, mirrored and inverted digits, noise.
    The layers are those of the paper's CIFAR ResNet: all for gaia-z, the last two stages for gaia-a.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = digits_resnet(pretrained=True)
    detectors = {
        "gaia-a": image_sets.make_detector("gaia-a", model, layers=["layer3", "layer4"]),
        "gaia-z": image_sets.make_detector("gaia-z", model),
    }
    id_source, sources = digits.digits_sources()
    x = next(id_source.batches(_TIMED_IMAGES)).images
    for method, detector in detectors.items():
        click.echo(_compact(method, detector.prepare(x).plan(x)))

    with output.progress("scoring", len(id_source) + sum(len(each) for each in sources.values())) as advance:
        found = image_sets.evaluate(detectors, id_source, sources, advance=advance)
    click.echo()
    _print_summary(found)
    click.echo(output.accuracy_line(found))
    thresholds = ", ".join(f"{method} {result.threshold:.4g}" for method, result in found.results.items())
    click.echo(f"thresholds that accept 95 % of them: {thresholds}")
    weak = image_sets.weak_spots(found)
    click.echo(
        "\n" + "\n".join(["Where the methods fail:", *weak] if weak else ["No method has an AUROC below 0.8 here."])
    )

    by_hooks = {
        "gaia-a": image_sets.make_detector("gaia-a", model, layers=["layer3", "layer4"], engine="hooks"),
        "gaia-z": image_sets.make_detector("gaia-z", model, engine="hooks"),
    }
    timings = []
    for images in (x[:1], x):
        engines = {method: detector.plan(images).engine.name for method, detector in detectors.items()}
        timed = {f"{method}, {engines[method]}": detector for method, detector in detectors.items()}
        timed |= {f"{method}, hooks, without prepare": detector for method, detector in by_hooks.items()}
        timings.append(measure_times(timed, images))
    click.echo(f"\n{_times(timings)}")
    if plots.missing():
        output.note(f"no picture: {plots.missing()}")
    else:
        path = folder / "demo.png"
        pictures = {"held-out digits": digits.held_out_pictures()[0]} | {
            name: make() for name, make in digits.OOD_PICTURES.items()
        }
        plots.save_overview(path, found, pictures)
        click.echo(f"picture: {path}")
    output.write_json(json_file, {**output.evaluation_record(found), "timing": [asdict(each) for each in timings]})


def _compact(method: str, plan: Plan) -> str:
    lines = [
        f"{method}: {len(plan.maps)} layers from {plan.maps[0].name} to {plan.maps[-1].name}, {plan.channels} channels",
        f"  engine {plan.engine.name} ({plan.engine.why}), backend {plan.backend.name} ({plan.backend.why})",
    ]
    if plan.head:
        lines.append(f"  head {plan.head}, A_last = output of {plan.last}")
    return "\n".join(lines)


def _print_summary(found: Evaluation) -> None:
    """One row per method, one column per OOD set."""
    sets = {name: f"{name}\n(n={len(each.names)})" for name, each in found.ood_sets.items()}
    rows = [
        (
            "MSP (baseline, no GAIA)" if method == BASELINE else method,
            *(f"{result.metrics[name].auroc:.3f} / {result.metrics[name].fpr95_id_positive:.3f}" for name in sets),
        )
        for method, result in found.results.items()
    ]
    title = f"AUROC / FPR95 (ID positive: share of OOD accepted), against {len(found.id_set.names)} held-out digits"
    output.print_table(title, ("method", *sets.values()), rows)


def _times(timings: Sequence[Timing]) -> str:
    """What a score costs, by engine."""
    lines = [
        "Prediction and score together, to the model's own plain forward pass, measured just now on",
        f"{processor()}, {timings[0].threads} threads (medians of {timings[0].repeats} interleaved repeats):",
    ]
    for timing in timings:
        images = f"{timing.images} image{'s' if timing.images > 1 else ''}"
        ratios = "; ".join(f"{what} {ratio:.2f}x" for what, ratio in timing.ratios.items())
        lines.append(f"  {images}, forward pass {timing.forward_ms:.2f} ms: {ratios}")
    return "\n".join(lines)
