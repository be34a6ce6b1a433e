"""What commands print and write: tables, progress, JSON, names of unreadable images, exit codes."""

import contextlib
import json
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from gaia_fast import files
from gaia_fast._version import __version__
from gaia_fast.data import ImageSource
from gaia_fast.errors import printable
from gaia_fast.evaluation.image_sets import BASELINE, Evaluation, MethodResult
from gaia_fast.evaluation.layer_sweep import proposal

_ENDINGS_SHOWN = 5

UNREADABLE = 3  # exit code: done, but some images could not be read

TITLES = {BASELINE: "baseline: maximum softmax probability (MSP), no GAIA"}
NOT_THE_PAPERS = "not in the paper; fitted on ID scores alone, each half of them for the other"


ON_SURROGATES = "on surrogates made from ID images, not on OOD data"


def note(message: str) -> None:
    """Prints a line for people, to stderr: stdout is for results."""
    click.echo(message, err=True)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> None:
    """Prints a table to stdout; of its columns, the first `texts` hold text and the others numbers."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < texts else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    # Names such as "[red]" or ":smile:" are names; a file or pipe has no width to fit.
    width = None if sys.stdout.isatty() else 140
    Console(width=width, markup=False, emoji=False, highlight=False).print(table)


@contextlib.contextmanager
def progress(what: str, images: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr, on a terminal only; yields what is called with each number of images done.

    Args:
        what: is being done.
        images: how many there are.
        done: how many of them are done already.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=images, completed=done)
        yield lambda more: bar.advance(task, more)


def write_json(path: Path | None, results: dict[str, Any]) -> None:
    """Writes the results of the running command with its options and the versions at work, if there is a path."""
    if path is None:
        return
    ctx = click.get_current_context()
    record = {
        "command": ctx.info_name,
        "options": ctx.params,
        "versions": {
            "gaia_fast": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        **results,
    }
    # default=str is for the paths among the options; NaN would be no JSON.
    files.write_text(path, json.dumps(record, indent=2, default=str, allow_nan=False) + "\n")


def report_unreadable(unreadable: Sequence[tuple[str, str]], where: str = "") -> None:
    """Names the images that were left out, each on a line of stderr."""
    for name, reason in unreadable:
        note(f"unreadable: {printable(where + name)}: {' '.join(reason.split())}")


def report_skipped(source: ImageSource, where: str = "") -> None:
    """Says how many files are no images by the ending of their names, by that ending, on a line of stderr."""
    if not source.skipped:
        return
    ordered = sorted(source.skipped.items(), key=lambda each: (-each[1], each[0]))
    shown = [f"{count:,} {printable(ending) or 'without an ending'}" for ending, count in ordered[:_ENDINGS_SHOWN]]
    if rest := ordered[_ENDINGS_SHOWN:]:
        shown.append(f"{sum(count for _, count in rest):,} of {len(rest)} other endings")
    note(f"skipped: {printable(where)}{', '.join(shown)}")


def finish(unreadable: int) -> None:
    """Ends the command, with the exit code that says whether images were left out."""
    if unreadable:
        note(f"{unreadable} unreadable images were left out")
        click.get_current_context().exit(UNREADABLE)


_SHARES = ("auroc", "fpr95_id_positive", "fpr95_ood_positive", "aupr_in", "aupr_out")


def print_evaluation(evaluation: Evaluation) -> None:
    """Prints a table per method, baseline and combination; with the average over several OOD sets."""
    results = {TITLES.get(method, method): result for method, result in evaluation.results.items()}
    results |= {f"{each.title} ({NOT_THE_PAPERS})": each.result for each in evaluation.combinations.values()}
    for title, result in results.items():
        _print_result(title, result, evaluation.on_surrogates)
    if evaluation.not_combined:
        click.echo(f"no combination of scores: {evaluation.not_combined}")


def _print_result(title: str, result: MethodResult, on_surrogates: bool) -> None:
    what = "surrogate" if on_surrogates else "OOD"
    columns = (
        f"{what} set",
        "n ID",
        f"n {what}",
        "AUROC",
        f"FPR95, ID positive\n({what} accepted)",
        f"FPR95, {what} positive\n(ID flagged)",
        "AUPR in",
        "AUPR out",
    )
    rows = []
    for name, each in result.metrics.items():
        values = [f"{getattr(each, share):.4f}" for share in _SHARES]
        if interval := result.intervals.get(name):
            for place, (low, high) in enumerate((interval.auroc, interval.fpr95_id_positive)):
                values[place] += f" [{low:.3f}, {high:.3f}]"
        rows.append((name, str(each.n_id), str(each.n_ood), *values))
    if len(rows) > 1:
        rows.append(("average", "", "", *(f"{result.average(share):.4f}" for share in _SHARES)))
    title += f"; threshold {result.threshold:.6g} (accepts 95 % of ID images)"
    print_table(title + f"; {ON_SURROGATES}" * on_surrogates, columns, rows)


def print_sweep(evaluation: Evaluation) -> None:
    """Prints a table per method: what groups of layers do, the best on average first, and how to ask for that."""
    for method, groups in evaluation.by_layers.items():
        sets = list(evaluation.ood_sets)
        columns = ("layers", "number", *(f"{name}\nAUROC" for name in sets), *(f"{name}\nFPR95" for name in sets))
        averages = ("average\nAUROC", "average\nFPR95") if len(sets) > 1 else ()
        rows = []
        for name, group in groups.items():
            values = [group.metrics[each].auroc for each in sets]
            values += [group.metrics[each].fpr95_id_positive for each in sets]
            values += [group.auroc, group.fpr95_id_positive] if averages else []
            rows.append((name, str(group.count), *(f"{value:.4f}" for value in values)))
        title = f"{method} by layers; FPR95 with ID positive" + f"; {ON_SURROGATES}" * evaluation.on_surrogates
        print_table(title, (*columns, *averages), rows)
        best, group = next((name, group) for name, group in groups.items() if group.names)
        click.echo(
            f"{method}: best on average {best}; --layers {method}={','.join(group.names)}. {_chosen(evaluation)}"
        )
    found = proposal(evaluation.by_layers)
    if found is not None and len(evaluation.by_layers) > 1:
        method, name = found
        group = evaluation.by_layers[method][name]
        click.echo(
            f"best of these scores and layers on average (AUROC {group.auroc:.4f}): --method {method} --layers "
            f"{','.join(group.names)}. {_chosen(evaluation)}"
        )


def _chosen(evaluation: Evaluation) -> str:
    if evaluation.on_surrogates:
        return f"Chosen {ON_SURROGATES}, which may want others"
    return "Chosen on these OOD sets: others may want other layers"


def accuracy_line(evaluation: Evaluation) -> str:
    """How well the ID images are classified, where that is known."""
    accuracy = evaluation.id_set.accuracy
    count = len(evaluation.id_set.names)
    if accuracy is None:
        return f"accuracy on the {count} ID images: unknown, they have no labels"
    return f"accuracy on the {count} ID images: {accuracy:.2%}"


def evaluation_record(evaluation: Evaluation) -> dict[str, Any]:
    """The evaluation for JSON; the baseline stands beside the results of the methods."""
    records = {method: _result_record(result) for method, result in evaluation.results.items()}
    return {
        "baseline": {BASELINE: records[BASELINE]["results"]},
        "results": {method: record["results"] for method, record in records.items() if method != BASELINE},
        **{
            key: {method: record[key] for method, record in records.items()}
            for key in ("threshold", "average", "intervals")
        },
        "combinations": {
            name: {"title": each.title, "note": NOT_THE_PAPERS, **_result_record(each.result)}
            for name, each in evaluation.combinations.items()
        },
        "not_combined": evaluation.not_combined or None,
        "by_layers": {
            method: {
                name: {
                    "layers": list(group.names),
                    "results": {each: asdict(metrics) for each, metrics in group.metrics.items()},
                    "average": {"auroc": group.auroc, "fpr95_id_positive": group.fpr95_id_positive},
                }
                for name, group in groups.items()
            }
            for method, groups in evaluation.by_layers.items()
        },
        "proposal": _proposal_record(evaluation),
        "surrogates": {"note": f"all figures are {ON_SURROGATES}"} if evaluation.on_surrogates else None,
        "id_accuracy": evaluation.id_set.accuracy,
        "unreadable": {
            "id": unreadable_record(evaluation.id_set.unreadable),
            "ood": {name: unreadable_record(each.unreadable) for name, each in evaluation.ood_sets.items()},
        },
    }


def _proposal_record(evaluation: Evaluation) -> dict[str, Any] | None:
    found = proposal(evaluation.by_layers)
    if found is None:
        return None
    method, name = found
    group = evaluation.by_layers[method][name]
    return {
        "method": method,
        "group": name,
        "layers": list(group.names),
        "average": {"auroc": group.auroc, "fpr95_id_positive": group.fpr95_id_positive},
        "note": _chosen(evaluation),
    }


def _result_record(result: MethodResult) -> dict[str, Any]:
    return {
        "results": {name: asdict(each) for name, each in result.metrics.items()},
        "threshold": result.threshold,
        "average": {share: result.average(share) for share in _SHARES},
        "intervals": {name: asdict(each) for name, each in result.intervals.items()},
    }


def unreadable_record(unreadable: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """The unreadable images of one source for JSON."""
    return [{"image": name, "reason": reason} for name, reason in unreadable]
