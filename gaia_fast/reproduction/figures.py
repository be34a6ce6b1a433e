"""The paper's figures 2 to 5, drawn of the network and images that are at hand."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gaia_fast.data import ImageSource
from gaia_fast.errors import DataError
from gaia_fast.evaluation.image_sets import model_input
from gaia_fast.evaluation.metrics import ood_metrics
from gaia_fast.evaluation.plots import ID_COLOR, OOD_COLOR, new_figure
from gaia_fast.files import replacing
from gaia_fast.options import FusionOption
from gaia_fast.reproduction.scoring import NORMS, GaiaScore, NetworkScores, places_of
from gaia_fast.reproduction.tables import blocks_of

_LOOKED_AT = 200  # images of each set, for the figures of single channels

Sources = Mapping[str, ImageSource]
Draw = Callable[[NetworkScores, ImageSource, Sources, Path], dict[str, Any]]


@dataclass(frozen=True)
class PaperFigure:
    """A figure of the paper.

    Attributes:
        name: as in the command.
        title: what it shows.
        draw: writes the picture; returns its numbers, for JSON.
    """

    name: str
    title: str
    draw: Draw


def _weights(scores: NetworkScores, id_source: ImageSource, ood: Sources, path: Path) -> dict[str, Any]:
    """Figure 2: the channels' average gradients |w_k| (Eq. 3) of the top-1 logit, at the last layer of each block."""
    found = _channels(scores, GaiaScore("gaia-a", "top1"), id_source, ood)
    figure = new_figure(3.4 * len(found), 2.6 * len(ood))
    axes = figure.subplots(len(ood), len(found), squeeze=False)
    for column, (block, by_set) in enumerate(found.items()):
        for row, name in enumerate(ood):
            inside, outside = by_set["id"].ravel(), by_set[name].ravel()
            top = float(np.quantile(np.concatenate([inside, outside]), 0.999)) or 1.0
            edges = np.linspace(0, top, 60)
            for values, color, label in ((inside, ID_COLOR, "in distribution"), (outside, OOD_COLOR, name)):
                share = np.full(values.size, 1 / values.size)
                axes[row][column].hist(
                    np.clip(values, 0, top), edges, weights=share, color=color, alpha=0.6, label=label
                )
            axes[row][column].set_yscale("log")
            axes[row][column].set_title(f"{block}: |w_k|, {name}", fontsize=9)
            axes[row][column].legend(fontsize=7)
    _save(figure, path)
    return {
        block: {
            name: {"mean": float(v.mean()), "largest_1_percent": float(np.quantile(v, 0.99))}
            for name, v in each.items()
        }
        for block, each in found.items()
    }


def _densities(scores: NetworkScores, id_source: ImageSource, ood: Sources, path: Path) -> dict[str, Any]:
    """Figure 3: attribution gradients on channels of the last block (a), and the share of non-zero ones, by channel
    and block (b)."""
    found = _channels(scores, GaiaScore("gaia-z"), id_source, ood)
    blocks = list(found)
    channels = 8
    figure = new_figure(2.4 * len(blocks) + 5.2, 2.3 * (1 + len(ood)))
    outer = figure.add_gridspec(1, 2, width_ratios=[2.1, len(blocks)])
    left = outer[0].subgridspec(1 + len(ood), channels // 2)
    layer = scores.maps[places_of(scores.maps, blocks_of(scores.network, scores.maps)[_single(scores)[-1]])[-1]].layer
    for row, (name, source) in enumerate({"id": id_source, **ood}.items()):
        image = model_input(scores.model, source.first(1).images)
        gradient = attribution_gradient(scores.model, scores.model.get_submodule(layer), image)[0]
        largest = gradient.abs().amax((1, 2)).topk(channels // 2).indices
        for place, channel in enumerate(largest.tolist()):
            axes = figure.add_subplot(left[row, place])
            limit = float(gradient[channel].abs().max()) or 1.0
            axes.imshow(gradient[channel].numpy(), cmap="RdBu", vmin=-limit, vmax=limit)
            axes.set_xticks([])
            axes.set_yticks([])
            if place == 0:
                axes.set_ylabel(name, fontsize=9)
    right = outer[1].subgridspec(1, len(blocks))
    for column, block in enumerate(blocks):
        axes = figure.add_subplot(right[0, column])
        for offset, (name, values) in enumerate(found[block].items()):
            share = np.sort(values.mean(0))
            color = ID_COLOR if name == "id" else OOD_COLOR
            axes.scatter(np.full(share.size, offset) + np.linspace(-0.3, 0.3, share.size), share, s=3, color=color)
        axes.set_xticks(range(1 + len(ood)), ["id", *ood], rotation=45, fontsize=7)
        axes.set_ylim(0, 1)
        axes.set_title(block, fontsize=9)
        if column == 0:
            axes.set_ylabel("share of non-zero gradients; a point a channel", fontsize=8)
    _save(figure, path)
    return {block: {name: {"mean": float(v.mean())} for name, v in each.items()} for block, each in found.items()}


def _norms(scores: NetworkScores, id_source: ImageSource, ood: Sources, path: Path) -> dict[str, Any]:
    """Figure 4: AUROC and FPR95, averaged over the OOD sets, by the order p of the norm of Lambda."""
    numbers: dict[str, Any] = {}
    figure = new_figure(8.4, 3.4)
    left, right = figure.subplots(1, 2)
    for method in ("gaia-a", "gaia-z"):
        numbers[method] = {}
        for p in NORMS:
            score = GaiaScore(method, layers=scores.network.gaia_layers[method], p=p)
            inside = scores.gaia(score, id_source)
            averaged = [ood[name] for name in scores.network.paper_sets if name in ood] or list(ood.values())
            found = [ood_metrics(inside, scores.gaia(score, source)) for source in averaged]
            numbers[method][f"{p:g}"] = {
                "auroc": float(np.mean([each.auroc for each in found])),
                "fpr95_id_positive": float(np.mean([each.fpr95_id_positive for each in found])),
            }
        for axes, name in ((left, "auroc"), (right, "fpr95_id_positive")):
            axes.plot(NORMS, [numbers[method][f"{p:g}"][name] for p in NORMS], "o-", label=method.upper())
    for axes, label in ((left, "AUROC"), (right, "FPR95 (ID positive)")):
        axes.set_xlabel("order p of the norm (2: Frobenius)")
        axes.set_ylabel(f"{label}, average of the sets")
        axes.legend()
    _save(figure, path)
    return numbers


def _components(scores: NetworkScores, id_source: ImageSource, ood: Sources, path: Path) -> dict[str, Any]:
    """Figure 5: GAIA-A's score from the inner component alone, from the output component alone, and from both."""
    layers = scores.network.gaia_layers["gaia-a"]
    numbers: dict[str, Any] = {}
    figure = new_figure(11, 2.7 * len(ood))
    axes = figure.subplots(len(ood), 3, squeeze=False)
    titles: dict[FusionOption, str] = {
        "inner": "inner component",
        "output": "output component",
        "division": "both, divided",
    }
    for column, (fusion, title) in enumerate(titles.items()):
        score = GaiaScore("gaia-a", fusion, layers)
        inside = scores.gaia(score, id_source)
        # The component itself is what the paper shows; the score that falls with it is its inverse.
        inside = 1 / inside if fusion == "output" else inside
        for row, (name, source) in enumerate(ood.items()):
            outside = scores.gaia(score, source)
            outside = 1 / outside if fusion == "output" else outside
            both = np.concatenate([inside, outside])
            low, high = (float(each) for each in np.percentile(both, (0.5, 99.5)))
            edges = np.linspace(low, high, 50)
            for values, color, label in ((inside, ID_COLOR, "in distribution"), (outside, OOD_COLOR, name)):
                share = np.full(values.size, 1 / values.size)
                clipped = np.clip(values, edges[0], edges[-1])
                axes[row][column].hist(clipped, edges, weights=share, color=color, alpha=0.6, label=label)
            axes[row][column].set_title(f"{title}, {name}", fontsize=9)
            axes[row][column].legend(fontsize=7)
            numbers.setdefault(fusion, {})[name] = {
                "id_median": float(np.median(inside)),
                "ood_median": float(np.median(outside)),
            }
    _save(figure, path)
    return numbers


def attribution_gradient(model: nn.Module, layer: nn.Module, images: Tensor) -> Tensor:
    """The attribution gradient dS_c / dA (Eq. 2) of the top-1 logit at the output of a layer: (N, K, H, W)."""
    seen: list[Tensor] = []

    def record(_: nn.Module, __: object, output: Tensor) -> Tensor:
        seen.append(output.detach().requires_grad_())
        return seen[-1].clone()  # what follows may write in place

    with torch.enable_grad(), layer.register_forward_hook(record):
        logits = model(images)
        (gradient,) = torch.autograd.grad(logits.max(dim=1).values.sum(), [seen[-1]])
    return gradient.cpu()


def _single(scores: NetworkScores) -> list[str]:
    """The names of blocks that are not made of others."""
    blocks = blocks_of(scores.network, scores.maps)
    return [name for name, layers in blocks.items() if len(layers) == 1]


def _channels(
    scores: NetworkScores, score: GaiaScore, id_source: ImageSource, ood: Sources
) -> dict[str, dict[str, np.ndarray]]:
    """By block and set, (N, K): E[eps | A^kl] at the last layer of the block, of the first images."""
    blocks = blocks_of(scores.network, scores.maps)
    last = {name: places_of(scores.maps, blocks[name])[-1] for name in _single(scores)}
    found: dict[str, dict[str, np.ndarray]] = {name: {} for name in last}
    for name, source in {"id": id_source, **ood}.items():
        batches: list[Sequence[np.ndarray]] = []
        for batch in source.part(0, _LOOKED_AT).batches(50):
            batches.append(scores.abnormality(score, model_input(scores.model, batch.images)))
        if not batches:
            raise DataError(f"none of the first {_LOOKED_AT} images of {name} can be read")
        for block, place in last.items():
            found[block][name] = np.concatenate([each[place] for each in batches])
    return found


def _save(figure: Any, path: Path) -> None:
    with replacing(path) as written:
        figure.savefig(written, dpi=110)


FIGURES: dict[str, PaperFigure] = {
    each.name: each
    for each in (
        PaperFigure("fig2", "Average gradients of channels, by block", _weights),
        PaperFigure("fig3", "Attribution gradients, and how many are not zero", _densities),
        PaperFigure("fig4", "The order of the norm", _norms),
        PaperFigure("fig5", "GAIA-A's components", _components),
    )
}
