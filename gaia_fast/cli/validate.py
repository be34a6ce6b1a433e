"""`gaia-fast validate`: every engine, backend, runtime and export against float64, on the user's model and images; and
what must always hold of a detector."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import click
from torch import Tensor, nn

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
    preset_options,
)
from gaia_fast.data import ImageSource, load_images
from gaia_fast.errors import DataError, GaiaError
from gaia_fast.evaluation import validation
from gaia_fast.evaluation.image_sets import model_input
from gaia_fast.evaluation.invariants import INVARIANTS, InvariantResult, check_detector
from gaia_fast.evaluation.validation import SUBJECTS, TOLERANCE, Check, Validation
from gaia_fast.options import EngineName

RESULTS = {True: "pass", False: "FAIL", None: "-"}


@click.command()
@click.argument("images")
@model_options
@preset_options
@max_pixels_option
@detector_options(engines=False)
@batch_size_option
@click.option("--limit", type=click.IntRange(1), default=64, show_default=True, help="Use the first so many images.")
@click.option(
    "--engine",
    "engines",
    type=click.Choice(SUBJECTS),
    multiple=True,
    default=SUBJECTS,
    show_default=True,
    help="What is checked; repeatable. compiled and export take up to minutes, to compile.",
)
@click.option(
    "--invariants/--no-invariants",
    default=True,
    show_default=True,
    help="Whether to ask everything else that must always hold of a detector, on the first images: that the model is "
    "left as it was, that bad input is refused, and so on. Up to minutes, to compile.",
)
@json_option
def validate(
    images: str,
    model: ModelOptions,
    preset: PresetOptions,
    max_pixels: int,
    detectors: DetectorOptions,
    batch_size: int,
    limit: int,
    engines: tuple[str, ...],
    invariants: bool,
    json_file: Path | None,
) -> None:
    """Checks engines, backends, runtimes and exports on your model and IMAGES against plain PyTorch in float64.

    A row passes if no score is off by more than its limit (relative): 1e-5 for gaia-a and 1e-4 for gaia-z, or twice
    the error that plain PyTorch itself makes in the model's own dtype, whichever is larger. For gaia-z the number of
    non-zero gradients of every channel must also be exactly that of plain PyTorch in the model's dtype; for compiled
    programs, whose folded norms may make units active or inactive that are zero to rounding, it is told. What
    cannot run here is listed with the reason.

    A second table says whether what must always hold of a detector holds on this model: that a call leaves it as it
    was, also when it raises; that scores are the same in every call, batch, memory layout and gradient mode; that bad
    input is refused; that nothing falls back without a word; that decisions and copies agree.

    The exit code is 1 if a row or an invariant fails, and 3 if all pass but images could not be read.
    """
    loaded = model.load(trained=False)
    network = loaded.model
    prepared = preset.of(loaded, scored=False)
    source = load_images(images, prepared, max_pixels)
    first: list[Tensor] = []
    with output.progress("validating", min(limit, len(source))) as advance:

        def batches() -> Iterator[Tensor]:
            for x in _first(source, limit, batch_size, network):
                if not first:
                    first.append(x)
                yield x
                advance(x.shape[0])

        try:
            found = validation.validate(
                network, batches(), detectors.methods, detectors.layers, **detectors.gaia_a, engines=engines
            )
        except DataError:  # no image at all: why is what each of them says
            output.report_unreadable(source.unreadable)
            raise

    _print(found)
    held, error = _invariants(network, first[0], detectors, engines) if invariants else ([], None)
    passed = found.passed and error is None and not any(each.passed is False for each in held)
    click.echo("passed" if passed else "FAILED")
    output.write_json(
        json_file,
        {
            "preprocessing": described(prepared),
            "passed": passed,
            "tolerance": TOLERANCE,
            **asdict(found),
            "invariants": [asdict(each) for each in held],
            "unreadable": output.unreadable_record(source.unreadable),
        },
    )
    output.report_unreadable(source.unreadable)
    if error is not None:
        raise error
    if not passed:
        click.get_current_context().exit(1)
    output.finish(len(source.unreadable))


def _first(source: ImageSource, limit: int, batch_size: int, network: nn.Module) -> Iterator[Tensor]:
    left = limit
    for batch in source.batches(min(batch_size, limit)):
        yield model_input(network, batch.images[:left])
        left -= len(batch.names)
        if left <= 0:
            return


def _print(found: Validation) -> None:
    output.print_table(
        f"{found.images} images, {found.dtype}, against the float64 reference",
        ("method", "engine", "backend, runtime, file", "result", "largest relative error", "limit", "wrong counts"),
        [_row(check) for check in found.checks],
        texts=4,
    )
    for check in found.checks:
        if check.reason:
            click.echo(f"{check.method}, {check.engine}, {check.backend}: {check.reason}")
    for method, error in found.own_error.items():
        click.echo(f"{method}: plain PyTorch in {found.dtype} is itself off by {error:.2g} from float64")
    if found.float64_counts is not None:
        click.echo(
            f"gaia-z: {found.float64_counts} of {found.channels} channel counts differ between plain PyTorch in "
            f"{found.dtype} and in float64 (activations that are zero to rounding)"
        )


def _invariants(
    network: nn.Module, x: Tensor, detectors: DetectorOptions, engines: Sequence[str]
) -> tuple[list[InvariantResult], GaiaError | None]:
    """What must always hold of a detector, asked and printed, none where files alone are validated; and why not all of
    it could be asked."""
    asked = [engine for engine in engines if engine in EngineName.values()]
    if not asked:
        return [], None
    columns = [(method, engine) for method in detectors.methods for engine in asked]
    results: list[InvariantResult] = []
    error = None
    with output.progress("asking invariants", len(INVARIANTS) * len(columns)) as advance:

        def add(result: InvariantResult) -> None:
            results.append(result)
            advance(1)

        try:
            check_detector(
                network,
                x,
                methods=detectors.methods,
                layers=detectors.layers,
                **detectors.gaia_a,
                engines=asked,
                on_fail="return",
                callback=add,
            )
        except GaiaError as refusal:  # the model cannot be put back as it was, for one
            error = refusal
    cells = {(each.name, each.method, each.engine): RESULTS[each.passed] for each in results}
    output.print_table(
        "what must always hold of a detector",
        ("invariant", *("\n".join(column) for column in columns)),
        [(name, *(cells.get((name, *column), "-") for column in columns)) for name in INVARIANTS],
        texts=1 + len(columns),
    )
    reasons: dict[tuple[str, str], list[str]] = {}
    for each in results:
        if each.passed is not True:
            reasons.setdefault((each.name, each.detail), []).append(f"{each.method} {each.engine}")
    for (name, detail), of in reasons.items():
        click.echo(f"{name} ({', '.join(of)}): {detail}")
    return results, error


def _row(check: Check) -> tuple[str, ...]:
    result = "cannot run here" if check.passed is None else RESULTS[check.passed]
    error, limit = (f"{each:.2g}" if each is not None else "-" for each in (check.score_error, check.limit))
    counts = "-" if check.wrong_counts is None else str(check.wrong_counts)
    return check.method, check.engine, check.backend, result, error, limit, counts
