"""A computed table as Markdown and as a record for JSON: our figures, the paper's, and the difference."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from gaia_fast.reproduction.networks import NETWORKS, Network
from gaia_fast.reproduction.paper import AVERAGE, TAKE_BATCHES, Figure
from gaia_fast.reproduction.run import RowResult, TableResult
from gaia_fast.versions import processor

_NOTHING = "-"  # where there is no figure


def markdown(result: TableResult, absent: Mapping[str, str], weights: str, described: str, command: str = "") -> str:
    """The table, with what it was computed on.

    Args:
        result: the table.
        absent: why a set of the paper is not in it, by name.
        weights: where the network's are from.
        described: how images were prepared.
        command: that makes it.
    """
    network = result.scores.network
    sets = list(result.n_ood)
    columns = [AVERAGE] if result.table.averages else [*sets, AVERAGE]
    lines = [f"### {result.table.title}: {network.title}", ""]
    if command:
        lines += [f"    {command}", ""]
    accuracy = "" if result.accuracy is None else f", accuracy {result.accuracy:.1%}"
    images = ", ".join(f"{name} {count}" for name, count in result.n_ood.items())
    lines.append(f"In distribution {result.n_id} images of {network.id_set}{accuracy}; OOD images: {images}.")
    lines.append(f"Weights: {weights}; {described}.")
    if result.unusable:
        lines.append(f"Left out: {'; '.join(result.unusable)}.")
    if result.scores.fitted_on:
        lines.append(f"Methods that are fitted: on {result.scores.fitted_on} images.")
    if absent:
        lines.append(f"Not there, and so not in the averages: {', '.join(absent)}.")
    others = [name for name in sets if name not in result.averaged]
    if others:
        lines.append(f"Not in the averages, which are over the paper's sets: {', '.join(others)}.")
    lines += [_whose_figures(result, network), ""]
    header = ["method"]
    for name in columns:
        header += [f"{name} FPR95", f"{name} AUROC"]
    if result.table.speed:
        header += ["images/s, one by one", "images/s, batches of 32", "batches, says the paper"]
    lines += [_line(header), _line(["---"] * len(header))]
    unscored = []
    for row in result.rows:
        if row.missing:
            unscored.append(f"- {row.row.title}: {row.missing}")
            continue
        cells = [row.row.title]
        for name in columns:
            ours, theirs = _figures(result, row, name)
            cells += [_cell(ours.fpr95, theirs.fpr95 if theirs else None) if ours else _NOTHING]
            cells += [_cell(ours.auroc, theirs.auroc if theirs else None) if ours else _NOTHING]
        if row.speed is not None:
            cells += [f"{row.speed.one_by_one:.0f}", f"{row.speed.in_batches:.0f}"]
            cells.append("yes" if row.row.key in TAKE_BATCHES else "no")
        lines.append(_line(cells))
    if unscored:
        lines += ["", "Without figures:", "", *unscored]
    lines += ["", f"Time on {processor()}, {torch.get_num_threads()} threads: {_times(result.scores.seconds)}.", ""]
    return "\n".join(lines)


def record(result: TableResult, absent: Mapping[str, str], weights: str, described: str) -> dict[str, Any]:
    """The table for JSON: `results[METHOD][SET]` as `gaia-fast evaluate` has them, fractions of one; `paper` and
    `difference` in per cent, as the paper has them."""
    sets = [*result.n_ood, AVERAGE]
    pairs = {row.row.key: {name: _figures(result, row, name) for name in sets} for row in result.rows}
    return {
        "table": result.table.name,
        "network": result.scores.network.name,
        "weights": weights,
        "preprocessing": described,
        "id_set": result.scores.network.id_set,
        "paper_network": result.scores.network.same_as or result.scores.network.name,
        "images": {"id": result.n_id, "ood": dict(result.n_ood), "fitted_on": result.scores.fitted_on},
        "id_accuracy": result.accuracy,
        "results": {
            row.row.key: {name: asdict(each) for name, each in row.metrics.items()}
            for row in result.rows
            if row.metrics
        },
        "average": {
            key: {"over": list(result.averaged), **ours._asdict()}
            for key, found in pairs.items()
            if (ours := found[AVERAGE][0]) is not None
        },
        "paper": {
            key: {name: theirs._asdict() for name, (_, theirs) in found.items() if theirs}
            for key, found in pairs.items()
        },
        "difference": {
            key: {
                name: {
                    "fpr95": None if theirs.fpr95 is None or ours.fpr95 is None else ours.fpr95 - theirs.fpr95,
                    "auroc": ours.auroc - theirs.auroc,
                }
                for name, (ours, theirs) in found.items()
                if ours and theirs
            }
            for key, found in pairs.items()
        },
        "speed": {row.row.key: asdict(row.speed) for row in result.rows if row.speed},
        "not_computed": {row.row.key: row.missing for row in result.rows if row.missing},
        "absent_sets": dict(absent),
        "unusable_sets": list(result.unusable),
        "seconds": dict(result.scores.seconds),
        "unreadable": list(result.scores.unreadable),
    }


def _whose_figures(result: TableResult, network: Network) -> str:
    whose = ""
    if any(row.row.paper for row in result.rows):
        whose = "In brackets: the paper's figure, and ours less it"
        same = NETWORKS.get(network.same_as)
        whose += f"; the paper's are of {same.title}, another network." if same else "."
    return f"Per cent; FPR95 is the share of OOD images accepted where 95 % of ID images are. {whose}".strip()


def _figures(result: TableResult, row: RowResult, name: str) -> tuple[Figure | None, Figure | None]:
    theirs = row.paper(name, result.averaged, result.scores.network.paper_sets)
    if name == AVERAGE:
        return row.average(result.averaged), theirs
    metrics = row.metrics.get(name)
    ours = None if metrics is None else Figure(100 * metrics.fpr95_id_positive, 100 * metrics.auroc)
    return ours, theirs


def _cell(ours: float | None, theirs: float | None) -> str:
    if ours is None:
        return _NOTHING
    return f"{ours:.1f}" if theirs is None else f"{ours:.1f} ({theirs:.1f}, {ours - theirs:+.1f})"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _times(seconds: Mapping[str, float]) -> str:
    spent = sorted(((name, each) for name, each in seconds.items() if each >= 0.05), key=lambda item: -item[1])
    total = sum(each for _, each in spent)
    return f"{total:.0f} s in all: " + ", ".join(f"{name} {each:.1f}" for name, each in spent)
