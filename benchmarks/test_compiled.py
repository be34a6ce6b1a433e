"""Compiled: prediction and score in one program, against the prediction alone, eager and in the same runtime."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gaia_fast import GaiaA, GaiaZ
from gaia_fast.models import resnet34, wrn_40_2

from plain import plain

RUNTIMES = ["native", "onnxruntime", "inductor"]
BATCHES = [1, 32]
FASTEST = "native"
METHODS = {"gaia-z": GaiaZ, "gaia-a": GaiaA}

# (model, method, images): what the score may cost at most, against the plain eager forward pass, under the fastest.
GOALS = {
    ("resnet34", "gaia-z", 1): 0.45,
    ("resnet34", "gaia-z", 32): 0.72,
    ("resnet34", "gaia-a", 1): 0.60,
    ("resnet34", "gaia-a", 32): 1.05,
    ("wrn_40_2", "gaia-z", 1): 0.45,
    ("wrn_40_2", "gaia-z", 32): 0.75,
    ("wrn_40_2", "gaia-a", 1): 0.9,
    ("wrn_40_2", "gaia-a", 32): 1.4,
}
# The same against the plain forward pass in the same runtime, for ResNet34.
SAME_RUNTIME = {"gaia-z": 1.1, "gaia-a": 1.6}
HALF = {1: 0.50, 32: 0.60}


@pytest.fixture(scope="module", params=["resnet34", "wrn_40_2"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    return build(request.param)


def build(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return {"resnet34": resnet34, "wrn_40_2": wrn_40_2}[name](num_classes=10).eval().to(dtype)


def name_of(model: nn.Module) -> str:
    return "resnet34" if hasattr(model, "layer4") else "wrn_40_2"


def scorer(model: nn.Module, method: str, runtime: str, x: Tensor) -> Callable[[Tensor], object]:
    """The detector's own `score`. As in the paper, GAIA-A inspects blocks 3 and 4 of ResNet34; all else, all layers."""
    layers = ["layer3", "layer4"] if method == "gaia-a" and name_of(model) == "resnet34" else None
    return METHODS[method](model, layers=layers, engine="compiled", runtime=runtime).prepare(x).score


def eager(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    @torch.no_grad()
    def run() -> Tensor:
        return model(x)

    return run


def rounds(batch: int) -> int:
    return 40 if batch == 1 else 12


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_plain_forward(model: nn.Module, runtime: str, batch: int, against: Callable[..., None]) -> None:
    x = torch.randn(batch, 3, 32, 32)
    runner = plain(model, runtime, x)
    against(eager(model, x), lambda: runner(x), rounds(batch), settle=True)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("method", METHODS)
def test_score(model: nn.Module, method: str, runtime: str, batch: int, against: Callable[..., None]) -> None:
    x = torch.randn(batch, 3, 32, 32)
    score = scorer(model, method, runtime, x)
    goal = GOALS[name_of(model), method, batch] if runtime == FASTEST else None
    against(eager(model, x), lambda: score(x), rounds(batch), goal, settle=True)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("method", METHODS)
def test_score_against_the_same_runtime(
    model: nn.Module, method: str, runtime: str, batch: int, against: Callable[..., None]
) -> None:
    x = torch.randn(batch, 3, 32, 32)
    score, runner = scorer(model, method, runtime, x), plain(model, runtime, x)
    goal = SAME_RUNTIME[method] if name_of(model) == "resnet34" and runtime == FASTEST else None
    against(lambda: runner(x), lambda: score(x), rounds(batch), goal, settle=True)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("runtime", ["native", "inductor"])
def test_bfloat16_against_eager_float32(runtime: str, batch: int, against: Callable[..., None]) -> None:
    x = torch.randn(batch, 3, 32, 32)
    half, y = build("resnet34", torch.bfloat16), x.bfloat16()
    run = scorer(half, "gaia-a", runtime, y)
    goal = HALF[batch] if runtime == FASTEST else None
    against(eager(build("resnet34"), x), lambda: run(y), rounds(batch), goal, settle=True)
