"""Pictures of scores, by matplotlib (the extra `plot`)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_curve

from gaia_fast import extras
from gaia_fast.errors import ArgumentError
from gaia_fast.evaluation.image_sets import BASELINE, Evaluation
from gaia_fast.files import replacing

ID_COLOR, OOD_COLOR = "#3465a4", "#e07b1f"


def missing() -> str:
    """Why no pictures can be drawn here; empty if they can."""
    return extras.missing("plot")


def save_histograms(path: Path, evaluation: Evaluation, name: str) -> None:
    """Saves the score histograms of the ID set and the OOD set `name`, one panel per method.

    Raises:
        ArgumentError: matplotlib is not installed.
    """
    methods = _methods(evaluation)
    figure = new_figure(5.2 * len(methods), 3.6)
    for axes, method in zip(figure.subplots(1, len(methods), squeeze=False)[0], methods, strict=True):
        _histogram(axes, evaluation, method, name)
        axes.set_xlabel(f"{method} score (outermost bars: all beyond)")
        axes.set_ylabel("share of the set")
        axes.legend(fontsize="small")
    with replacing(path) as written:
        figure.savefig(written, dpi=120)


def save_roc(path: Path, evaluation: Evaluation, name: str) -> None:
    """Saves the ROC curves of all methods on the OOD set `name`, ID positive, with where 95 % of ID are accepted.

    Combinations of scores are dashed, and marked as none of the paper's.

    Raises:
        ArgumentError: matplotlib is not installed.
    """
    figure = new_figure(5.6, 5.0)
    _roc(figure.subplots(), evaluation, name)
    with replacing(path) as written:
        figure.savefig(written, dpi=120)


def _roc(axes: Any, evaluation: Evaluation, name: str) -> None:
    for method, result in evaluation.results.items():
        inside, outside = (each.scores[method] for each in (evaluation.id_set, evaluation.ood_sets[name]))
        style = ":" if method == BASELINE else "-"
        _curve(axes, inside, outside, style, f"{method}: AUROC {result.metrics[name].auroc:.3f}")
    for key, each in evaluation.combinations.items():
        # Its title would cover the curves.
        label = f"{key}: AUROC {each.result.metrics[name].auroc:.3f}\n(not in the paper)"
        _curve(axes, each.id_scores, each.ood_scores[name], "--", label)
    axes.axhline(0.95, color="grey", linestyle="--", linewidth=0.8)
    axes.set_xlabel(f"share of '{name}' accepted (FPR95 at the dashed line)")
    axes.set_ylabel("share of in-distribution images accepted")
    axes.legend(fontsize="small", loc="lower right")


def _curve(axes: Any, inside: np.ndarray, outside: np.ndarray, style: str, label: str) -> None:
    accepted = np.concatenate([np.ones(inside.size, dtype=int), np.zeros(outside.size, dtype=int)])
    false_positive, true_positive, _ = roc_curve(accepted, -np.concatenate([inside, outside]))
    axes.plot(false_positive, true_positive, style, label=label, linewidth=1.5)


def save_overview(path: Path, evaluation: Evaluation, pictures: Mapping[str, np.ndarray], columns: int = 7) -> None:
    """Saves one picture of it all: a row per set with example images, their scores, and histograms against ID.

    Args:
        path: the file.
        evaluation: what was found.
        pictures: by the name of the set, ID first, uint8 (N, H, W) or (N, H, W, 3), in the order of the scores.
        columns: example images per set.

    Raises:
        ArgumentError: matplotlib is not installed.
    """
    methods = _methods(evaluation)
    figure = new_figure(1.05 * columns + 3.1 * len(methods) + 0.9, 1.75 * len(pictures) + 0.9)
    grid = figure.add_gridspec(len(pictures), columns + 3 * len(methods))
    for row, (name, images) in enumerate(pictures.items()):
        scored = evaluation.ood_sets.get(name, evaluation.id_set)
        flagged = {m: scored.scores[m] > evaluation.results[m].threshold for m in methods}
        # Evenly spread through the set: chosen by nobody.
        for column, index in enumerate(np.linspace(0, len(images) - 1, columns).astype(int)):
            axes = figure.add_subplot(grid[row, column])
            axes.imshow(images[index], cmap="gray", vmin=0, vmax=255)
            axes.set_xticks([])
            axes.set_yticks([])
            for line, method in enumerate(methods):
                axes.text(
                    0.5,
                    -0.06 - 0.19 * line,
                    f"{method[-1].upper()} {scored.scores[method][index]:.2f}",
                    color=OOD_COLOR if flagged[method][index] else "black",
                    fontsize=8,
                    ha="center",
                    va="top",
                    transform=axes.transAxes,
                )
            if column == 0:
                axes.set_ylabel(name, fontsize=11)
        for place, method in enumerate(methods):
            axes = figure.add_subplot(grid[row, columns + 3 * place : columns + 3 * place + 3])
            if name in evaluation.ood_sets:
                _histogram(axes, evaluation, method, name)
                axes.tick_params(labelsize=7)
                axes.set_yticks([])
            else:
                axes.axis("off")
                axes.text(0.5, 0.45, _key(method, evaluation), fontsize=9, ha="center", va="center", wrap=True)
    accuracy = evaluation.id_set.accuracy
    figure.suptitle(
        "Example images, scored; orange: flagged as OOD at the threshold that accepts 95 % of in-distribution images"
        + ("" if accuracy is None else f" (accuracy on these: {accuracy:.1%})"),
        fontsize=11,
    )
    with replacing(path) as written:
        figure.savefig(written, dpi=110)


def _key(method: str, evaluation: Evaluation) -> str:
    return (
        f"{method.upper()} scores\nblue: in-distribution, orange: the row's set\ndashed: threshold "
        f"{evaluation.results[method].threshold:.3g}\noutermost bars: all beyond"
    )


def _histogram(axes: Any, evaluation: Evaluation, method: str, name: str) -> None:
    inside = evaluation.id_set.scores[method].astype(np.float64)
    outside = evaluation.ood_sets[name].scores[method].astype(np.float64)
    result = evaluation.results[method]
    # Scores can have long tails; the ends are cut so that the bulk is seen, and the outermost bars take what is cut.
    ends = [np.percentile(each, (1, 99)) for each in (inside, outside)]
    low, high = min(end[0] for end in ends), max(end[1] for end in ends)
    edges = np.linspace(low, high if high > low else low + 1, 41)
    for scores, color, label in ((inside, ID_COLOR, "in-distribution"), (outside, OOD_COLOR, name)):
        share = np.full(scores.size, 1 / scores.size)
        axes.hist(np.clip(scores, edges[0], edges[-1]), edges, weights=share, color=color, alpha=0.6, label=label)
    axes.axvline(result.threshold, color="black", linestyle="--", linewidth=1, label="threshold (95 % of ID)")
    axes.set_title(f"{method} on {name}: AUROC {result.metrics[name].auroc:.3f}", fontsize=9)


def _methods(evaluation: Evaluation) -> Sequence[str]:
    return [method for method in evaluation.results if method != BASELINE]


def new_figure(width: float, height: float) -> Any:
    # Not pyplot: it keeps global state and may look for a display.
    figure = extras.load("matplotlib.figure", "plot", "a picture", ArgumentError)
    return figure.Figure(figsize=(width, height), layout="constrained")
