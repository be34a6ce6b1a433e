"""What both examples share: a WideResNet-40-2, image sets from files, what gaia_fast finds on them, the table."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from gaia_fast import GaiaA, GaiaZ
from gaia_fast.data import ImageSource, load_images
from gaia_fast.evaluation.image_sets import Evaluation, evaluate
from gaia_fast.models import load_weights, wrn_40_2

Found = Mapping[tuple[str, str], tuple[float, float]]  # by method and OOD set: AUROC, and FPR95 with OOD positive


@dataclass(frozen=True)
class Task:
    """Attributes: of the command line, loaded."""

    model: nn.Module
    id_source: ImageSource
    ood_sources: dict[str, ImageSource]
    batch_size: int


def parse(doc: str | None) -> Task:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="of a WideResNet-40-2, .safetensors")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--id", type=Path, required=True, help="ID images: a folder or an .npz")
    parser.add_argument("--ood", action="append", required=True, metavar="NAME=PATH", help="OOD images; several times")
    parser.add_argument("--preset", default="cifar10")
    parser.add_argument("--limit", type=int, default=500, help="of images a set")
    parser.add_argument("--batch-size", type=int, default=50)
    asked = parser.parse_args()

    def first(path: str | Path) -> ImageSource:
        source = load_images(path, asked.preset)
        return source.part(0, min(asked.limit, len(source)))

    ood = dict(each.split("=", 1) for each in asked.ood)
    model = load_weights(wrn_40_2(asked.classes), asked.weights).eval()
    return Task(model, first(asked.id), {name: first(path) for name, path in ood.items()}, asked.batch_size)


def own(task: Task) -> Evaluation:
    detectors: dict[str, GaiaA | GaiaZ] = {"gaia-z": GaiaZ(task.model), "gaia-a": GaiaA(task.model)}
    return evaluate(detectors, task.id_source, task.ood_sources, task.batch_size)


def show(library: str, found: Found, ours: Evaluation) -> None:
    """Prints, in per cent, what the library found, what gaia_fast finds, and the difference of the numbers behind."""
    print(f"{'':24s}{'AUROC':^36s}{'FPR95, OOD positive':^36s}")
    print(f"{'':24s}" + 2 * f"{library:>13s}{'own':>10s}{'difference':>13s}")
    for (method, name), of_library in found.items():
        metrics = ours.results[method].metrics[name]
        row = f"{method:8s}{name[:15]:16s}"
        for theirs, mine in zip(of_library, (metrics.auroc, metrics.fpr95_ood_positive), strict=True):
            row += f"{100 * theirs:13.4f}{100 * mine:10.4f}{theirs - mine:13.1e}"
        print(row)
