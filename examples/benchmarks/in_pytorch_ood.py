"""GAIA in pytorch-ood's `Benchmark`, beside one of its own detectors and what gaia_fast finds on the same images.

    python examples/benchmarks/in_pytorch_ood.py --weights wrn.safetensors --id cifar10.npz \\
        --ood tinyimagenet=tinyimagenet.npz --ood textures=textures.npz

Needs `pip install 'gaia-fast[pytorch-ood]'`.
"""

from typing import Any

import torch
from own_evaluation import Task, own, parse, show
from pytorch_ood.benchmark import Benchmark
from pytorch_ood.detector import MaxSoftmax
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset

from gaia_fast.data import ImageSource
from gaia_fast.integrations.pytorch_ood import GAIAA, GAIAZ


class Labelled(Dataset[tuple[Tensor, int]]):
    """Images of a source with their classes, or with -1, the library's label of OOD images."""

    def __init__(self, source: ImageSource, ood: bool) -> None:
        self.source = source
        known = not ood and source.labels is not None
        self.labels = source.labels if known else torch.full((len(source),), -1 if ood else 0)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.source[index], int(self.labels[index])


class FromFiles(Benchmark):
    """The sets of the command line."""

    def __init__(self, task: Task) -> None:
        self.ood_names = list(task.ood_sources)
        self._inside = Labelled(task.id_source, ood=False)
        self._outside = [Labelled(source, ood=True) for source in task.ood_sources.values()]

    def train_set(self) -> Dataset[Any]:
        return self._inside  # nothing here is fitted

    def test_sets(self, known: bool = True, unknown: bool = True) -> list[Dataset[Any]]:
        if known and unknown:
            return [ConcatDataset([self._inside, each]) for each in self._outside]
        if not known and not unknown:
            raise ValueError("a test set needs known or unknown images")
        return [self._inside] if known else list(self._outside)


def main() -> None:
    task = parse(__doc__)
    detectors = [GAIAZ(task.model), GAIAA(task.model), MaxSoftmax(task.model)]
    results = FromFiles(task).evaluate(detectors, loader_kwargs={"batch_size": task.batch_size})
    methods = {"GAIAZ": "gaia-z", "GAIAA": "gaia-a", "MaxSoftmax": "msp"}
    found = {(methods[each["Detector"]], each["Dataset"]): (each["AUROC"], each["FPR95TPR"]) for each in results}
    show("pytorch-ood", found, own(task))


if __name__ == "__main__":
    main()
