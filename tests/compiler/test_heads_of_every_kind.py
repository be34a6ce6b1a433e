"""GAIA-Z forward behind heads of every kind: only the row of the top-1 class has a gradient.

Each program is prepared on images of which none is of the class whose weights are zero in places, and scores 200 of all
classes; so does the ONNX file.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gaia_fast import GaiaZ, reference

import zoo
from exported import load_one

CLASSES, PRUNED = 5, 1


class Headed(nn.Module):
    """A trunk with any function of its last map for a head; `parts` are the modules that make logits."""

    def __init__(self, head: Callable[..., Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.trunk = nn.Sequential(*zoo.conv_norm(3, 8), nn.ReLU(), *zoo.conv_norm(8, 8), nn.ReLU())
        self.head, self.parts = head, nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x), *self.parts)


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def branch() -> nn.Module:
    return nn.Sequential(*zoo.conv_norm(8, 8), nn.ReLU())


class Branched(Headed):
    """Two branches, each with a head for some of the classes."""

    def __init__(self) -> None:
        super().__init__(lambda x, a, b: x, nn.Linear(8, 2), nn.Linear(8, 3))
        self.left, self.right = branch(), branch()

    def forward(self, x: Tensor) -> Tensor:
        x = self.trunk(x)
        return torch.cat([self.parts[0](pooled(self.left(x))), self.parts[1](pooled(self.right(x)))], 1)


HEADS: dict[str, Callable[[], Headed]] = {
    "linear": lambda: Headed(lambda x, fc: fc(pooled(x)), nn.Linear(8, 5)),
    "convolution": lambda: Headed(lambda x, fc: fc(F.adaptive_avg_pool2d(x, 1)).flatten(1), nn.Conv2d(8, 5, 1)),
    "scaled": lambda: Headed(lambda x, fc: fc(pooled(x)) * 3.0, nn.Linear(8, 5)),
    "tempered": lambda: Headed(lambda x, fc: fc(pooled(x)) / 0.5, nn.Linear(8, 5)),
    "viewed": lambda: Headed(lambda x, fc: fc(pooled(x)).view(-1, 5, 1).squeeze(2), nn.Linear(8, 5)),
    "flipped": lambda: Headed(lambda x, fc: fc(pooled(x)).flip(1), nn.Linear(8, 5)),
    "network in network": lambda: Headed(lambda x, fc: pooled(fc(x)), nn.Conv2d(8, 5, 1)),
    "rectified maps of the classes": lambda: Headed(lambda x, fc: pooled(fc(x).relu()), nn.Conv2d(8, 5, 3, padding=1)),
    "two heads": lambda: Headed(
        lambda x, a, b: torch.cat([a(pooled(x)), b(pooled(x))], 1), nn.Linear(8, 2), nn.Linear(8, 3)
    ),
    "the mean of two": lambda: Headed(
        lambda x, a, b: (a(pooled(x)) + b(pooled(x))) / 2, nn.Linear(8, 5), nn.Linear(8, 5)
    ),
    "two branches": Branched,
    "hidden": lambda: Headed(lambda x, a, b: b(a(pooled(x)).relu()), nn.Linear(8, 12), nn.Linear(12, 5)),
    "sigmoid": lambda: Headed(lambda x, fc: fc(pooled(x)).sigmoid(), nn.Linear(8, 5)),
    "logarithms": lambda: Headed(lambda x, fc: fc(pooled(x)).log_softmax(1), nn.Linear(8, 5)),
    "flattened": lambda: Headed(lambda x, fc: fc(F.adaptive_avg_pool2d(x, 2).flatten(1)), nn.Linear(32, 5)),
}


def mean_output(model: nn.Module, part: nn.Module, x: Tensor) -> Tensor:
    outputs: list[Tensor] = []
    hook = part.register_forward_hook(lambda _, __, output: outputs.append(output))
    model(x)
    hook.remove()
    return outputs[0].mean([0, *range(2, outputs[0].ndim)])


def built(name: str, pruned: bool) -> tuple[nn.Module, Tensor, Tensor]:
    """A model in float64 whose classes are all predicted; images that are not of class PRUNED; and 200 of all."""
    torch.manual_seed(3)
    model: Any = HEADS[name]().double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.normal_(module.bias, 0, 0.2)
    random = torch.Generator().manual_seed(1)
    x = torch.randn(200, 3, 10, 10, generator=random, dtype=torch.float64)
    x = x * torch.linspace(0.1, 4, 200)[:, None, None, None] + torch.randn(200, 3, 1, 1, generator=random)
    with torch.no_grad():
        for part in model.parts:
            part.weight *= 4
        if pruned:
            model.parts[-1 if name == "hidden" else 0].weight[PRUNED, :4] = 0
        for part in model.parts:
            if part.bias.numel() <= CLASSES:
                part.bias -= mean_output(model, part, x)  # so that each class is the largest for some images
        top1 = model(x).argmax(1)
    return model, x[top1 != PRUNED][:4], x


@pytest.mark.parametrize("pruned", [False, True], ids=["", "pruned"])
@pytest.mark.parametrize("name", HEADS)
def test_scores_of_all_classes_equal_the_reference(name: str, pruned: bool, tmp_path: Path) -> None:
    model, example, x = built(name, pruned)
    truth = reference.gaia_z(model, x).score
    compiled = GaiaZ(model, engine="compiled", runtime="eager").prepare(example)
    torch.testing.assert_close(compiled(x).double(), truth, rtol=1e-6, atol=0)
    if not pruned:  # a file takes seconds to write
        return
    model, example, x = model.float(), example.float(), x.float()
    score = load_one(GaiaZ(model).export(tmp_path / "model.onnx", example))(x)
    known = ~score.isnan()
    assert known.any()
    torch.testing.assert_close(score[known], reference.gaia_z(model, x).score[known], rtol=2e-3, atol=0)


@pytest.mark.parametrize("name", ["linear", "convolution", "scaled", "tempered", "viewed", "network in network"])
def test_what_is_told_forward(name: str) -> None:
    model, example, x = built(name, True)
    detector = GaiaZ(model, engine="compiled", runtime="eager").prepare(example)
    assert detector.plan(example).derivations == ("active units", "active units")
    with torch.no_grad():
        assert int((model(x).argmax(1) == PRUNED).sum()) > 5  # the case is a case
