"""GAIA in OpenOOD's `Evaluator` and `OODEvaluator`, and beside what gaia_fast finds on the same images.

    python examples/benchmarks/in_openood.py --weights wrn.safetensors --id cifar10.npz \\
        --ood tinyimagenet=tinyimagenet.npz --ood textures=textures.npz

Needs `pip install git+https://github.com/Jingkang50/OpenOOD`, or a clone of it on the path with what it imports. The
images are written where OpenOOD reads them, as it lays out CIFAR-10; the first OOD set stands as its near one, the
others as far ones. Its search of hyperparameters has the first batch of test images for validation, and so shows the
way, not a result.
"""

import csv
import sys
import types
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from own_evaluation import Found, Task, own, parse, show
from PIL import Image

from gaia_fast.data import ImageSource
from gaia_fast.evaluation.image_sets import Evaluation

try:
    import imgaug  # noqa: F401
except Exception:  # missing, or with NumPy 2, which it was not made for; OpenOOD needs it for DRAEM's training alone
    sys.modules["imgaug"] = types.ModuleType("imgaug")
    sys.modules["imgaug.augmenters"] = sys.modules["imgaug"].augmenters = types.ModuleType("imgaug.augmenters")

if not torch.cuda.is_available():  # OpenOOD moves every batch to the GPU, whatever there is
    torch.Tensor.cuda = lambda self, *_, **__: self

from openood.evaluation_api import Evaluator, datasets
from openood.evaluators.ood_evaluator import OODEvaluator
from openood.utils import Config

from gaia_fast.integrations.openood import GAIAAPostprocessor, GAIAZPostprocessor

POSTPROCESSORS = {"gaia-z": GAIAZPostprocessor, "gaia-a": GAIAAPostprocessor}


def write(task: Task, root: Path) -> None:
    """Writes images and lists into a folder, and puts them into OpenOOD's table for CIFAR-10; nothing is downloaded."""
    (root / "benchmark_imglist").mkdir()

    def listed(name: str, source: ImageSource, of: str = "test") -> dict[str, str]:
        folder, lines = root / f"{name}-{of}", []
        folder.mkdir()
        for index in range(len(source)):
            picture = source.picture(index)
            picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
            picture.save(folder / f"{index}.png")
            label = 0 if source.labels is None else int(source.labels[index])
            lines.append(f"{folder.name}/{index}.png {label}\n")
        (root / "benchmark_imglist" / f"{folder.name}.txt").write_text("".join(lines))
        return {"data_dir": "", "imglist_path": f"benchmark_imglist/{folder.name}.txt"}

    def validation(name: str, source: ImageSource) -> dict[str, str]:
        return listed(name, source.part(0, min(task.batch_size, len(source))), "val")

    inside = listed("id", task.id_source)
    outside = {name: listed(name, source) for name, source in task.ood_sources.items()}
    near, *far = outside
    datasets.DATA_INFO["cifar10"] = {
        "num_classes": task.model.fc.out_features,
        "id": {"train": inside, "val": validation("id", task.id_source), "test": inside},
        "csid": {"datasets": []},
        "ood": {
            "val": validation(near, task.ood_sources[near]),
            "near": {"datasets": [near], near: outside[near]},
            "far": {"datasets": far, **{name: outside[name] for name in far}},
        },
    }
    datasets.benchmarks_dict["cifar10"] = []


def evaluator_of(task: Task, root: Path, postprocessor: Any) -> Any:
    return Evaluator(
        task.model,
        id_name="cifar10",
        data_root=str(root),
        config_root=None,
        preprocessor=task.id_source.preset,
        postprocessor=postprocessor,
        batch_size=task.batch_size,
        num_workers=0,
    )


def by_the_api(task: Task, root: Path, ours: Evaluation) -> tuple[Found, dict[str, Any]]:
    """`Evaluator`: its metrics, and the loaders that it made."""
    found, loaders = {}, {}
    for method, postprocessor in POSTPROCESSORS.items():
        evaluator = evaluator_of(task, root, postprocessor())
        table = evaluator.eval_ood(progress=False)
        for name in task.ood_sources:
            found[method, name] = (table.loc[name, "AUROC"] / 100, table.loc[name, "FPR@95"] / 100)
        of_sets = {"id": evaluator.scores["id"]["test"], **evaluator.scores["ood"]["near"]}
        report(method, {**of_sets, **evaluator.scores["ood"]["far"]}, ours)
        if ours.id_set.accuracy is not None:
            print(f"{method}: accuracy {table['ACC'].iloc[0]:.2f} %, own {100 * ours.id_set.accuracy:.2f} %")
        loaders = evaluator.dataloader_dict
    return found, loaders


def by_the_pipeline(task: Task, loaders: dict[str, Any], root: Path, ours: Evaluation) -> None:
    """`OODEvaluator`, which writes scores and rounded metrics to files."""
    ood = {"val": loaders["ood"]["val"], "nearood": loaders["ood"]["near"], "farood": loaders["ood"]["far"]}
    for method, postprocessor in POSTPROCESSORS.items():
        folder = root / f"output-{method}"
        config = Config(
            dataset={"name": "id"},
            postprocessor={"APS_mode": False, "postprocessor_args": {"p": 2}},
            recorder={"save_scores": True, "save_csv": True},
            output_dir=str(folder),
        )
        folder.mkdir()
        OODEvaluator(config).eval_ood(task.model, loaders["id"], ood, postprocessor(config))
        saved = {name: np.load(folder / "scores" / f"{name}.npz") for name in ("id", *task.ood_sources)}
        report(method, {name: (each["pred"], each["conf"]) for name, each in saved.items()}, ours)
        with open(folder / "ood.csv", newline="") as file:
            written = {row["dataset"]: row for row in csv.DictReader(file)}
        for name, metrics in ours.results[method].metrics.items():
            of_library = written[name]["AUROC"], written[name]["FPR@95"]
            mine = f"{100 * metrics.auroc:.2f}", f"{100 * metrics.fpr95_ood_positive:.2f}"
            print(f"{method} {name}: AUROC and FPR@95 in ood.csv {of_library}, own {mine}, equal: {of_library == mine}")


def report(method: str, found: dict[str, Any], ours: Evaluation) -> None:
    """Prints whether confidences are own scores with their sign turned, and predictions are own ones, bit for bit."""
    for name, (pred, conf, *_) in found.items():
        own_set = ours.id_set if name == "id" else ours.ood_sets[name]
        equal = np.array_equal(conf, -own_set.scores[method]), np.array_equal(pred, own_set.predicted)
        print(f"{method} {name}: {len(conf)} confidences and predictions equal to own, bit for bit: {equal}")


def search(task: Task, root: Path) -> None:
    """The evaluator's own search, over layers and p."""
    for method, postprocessor in POSTPROCESSORS.items():
        searched = postprocessor(APS_mode=True)
        evaluator_of(task, root, searched)
        print(f"{method}: found {dict(zip(searched.args_dict, searched.get_hyperparam(), strict=True))}")


def main() -> None:
    task = parse(__doc__)
    if len(task.ood_sources) < 2:
        sys.exit("OpenOOD wants near and far OOD sets: give --ood at least twice")
    ours = own(task)
    with TemporaryDirectory() as folder:
        root = Path(folder)
        write(task, root)
        found, loaders = by_the_api(task, root, ours)
        by_the_pipeline(task, loaders, root, ours)
        search(task, root)
    show("OpenOOD", found, ours)


if __name__ == "__main__":
    main()
