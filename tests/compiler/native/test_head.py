from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from gaia_fast import GaiaA, GaiaZ
from gaia_fast.compiler.native.kernels import Convolution
from gaia_fast.compiler.native.result_kernels import MeanRoot, Score

import zoo
from graphs import fused, targets

aten = torch.ops.aten


class Net(nn.Module):
    """A convolution and a norm before any head."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm, self.relu, self.head = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.relu(self.norm(self.conv(x))))


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((3, 2))


class OneShift(nn.Linear):
    """A bias of one number for all classes."""

    def __init__(self) -> None:
        super().__init__(16, 7, bias=False)
        self.shift = nn.Parameter(torch.full((1,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.shift)


HEADS = {
    "pool": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 7)),
    "mean": lambda: nn.Sequential(Mean(), nn.Linear(16, 7)),
    "no bias": lambda: nn.Sequential(Mean(), nn.Linear(16, 7, bias=False)),
    "one shift": lambda: nn.Sequential(Mean(), OneShift()),
    "two layers": lambda: nn.Sequential(Mean(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 7)),
    "flattened": lambda: nn.Sequential(nn.Flatten(), nn.Linear(16 * 36, 7)),
    "two pools": lambda: nn.Sequential(nn.AvgPool2d(3), nn.Flatten(), nn.Linear(64, 7)),
    "convolution": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 7, 1), nn.Flatten()),
    "largest": lambda: nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(16, 7)),
}
# Whose logits, and whose output components, the kernels compute.
LOGITS = {"pool", "mean", "no bias", "two layers"}
COMPONENTS = {"pool", "mean", "no bias", "one shift", "largest"}


def program(detector: Any, head: str, **options: Any) -> tuple[fx.GraphModule, fx.GraphModule, Tensor]:
    torch.manual_seed(0)
    model, x = Net(HEADS[head]()).eval(), zoo.images(3, 8)
    prepared = detector(model, engine="compiled", runtime="eager", **options).prepare(x).program(x)
    assert prepared is not None
    return prepared.program.graph, fused(prepared.program.graph), x


def kernels(module: fx.GraphModule) -> set[type]:
    found = {type(each) for each in module.children()} & {MeanRoot, Score}
    logits = [each for each in module.children() if isinstance(each, Convolution) and each.outputs != 16]
    return found | {type(each) for each in logits if each.statistic == "sum"}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("detector", [GaiaA, GaiaZ])
def test_the_kernels_take_linear_heads_behind_a_mean_and_compute_what_the_operators_do(
    detector: type[GaiaA] | type[GaiaZ], head: str
) -> None:
    plain, own, x = program(detector, head)
    expected: set[type] = {Score}
    if head in LOGITS:
        expected.add(Convolution)
    if detector is GaiaA and head in COMPONENTS:
        expected.add(MeanRoot)
    assert kernels(own) == expected
    for images in (1, 2, 3):
        for a, b in zip(own(x[:images]), plain(x[:images]), strict=True):
            torch.testing.assert_close(a, b, rtol=2e-6, atol=1e-6)
    if expected == {Score, Convolution, MeanRoot}:
        assert not {aten.mm.default, aten.mean.dim, aten.div.Tensor, aten.sqrt.default} & set(targets(own))


@pytest.mark.parametrize("fusion", ["division", "inner", "output", "top1"])
@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, float("inf")])
def test_scores_of_every_fusion_and_order(fusion: str, p: float) -> None:
    plain, own, x = program(GaiaA, "pool", fusion=fusion, p=p)
    assert (Score in kernels(own)) == (p == 2 and fusion != "output")
    for a, b in zip(own(x), plain(x), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=1e-6)


class NormScaled(nn.Module):
    """A norm of rows that is the model's own, beside the score's."""

    share: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("share", torch.linspace(0.1, 2, 16))
        self.last = nn.Linear(16, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean((2, 3))
        return self.last(x / torch.linalg.vector_norm(x * self.share, dim=1).unsqueeze(1))


def test_a_norm_of_the_models_own_is_not_mistaken_for_the_scores() -> None:
    torch.manual_seed(0)
    model, x = Net(NormScaled()).eval(), zoo.images(3, 8)
    found = GaiaZ(model, engine="compiled", runtime="native").score(x)
    expected = GaiaZ(model, engine="reference").score(x)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.score, expected.score, rtol=1e-4, atol=0)
