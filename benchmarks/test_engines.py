"""A score against the price of the prediction: every ratio is to the same model's plain eager float32 forward pass."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gaia_fast import GaiaA, GaiaZ
from gaia_fast.models import resnet34, wrn_40_2

from authors import Authors

BLOCKS_3_AND_4 = ["layer3", "layer4"]

# (method, layers) -> what the hooks engine may cost at most on ResNet34, B = 32.
GOALS = {("gaia-z", "all"): 2.1, ("gaia-a", "blocks 3+4"): 1.3}


@pytest.fixture(scope="module", params=["resnet34", "wrn_40_2"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return {"resnet34": resnet34, "wrn_40_2": wrn_40_2}[request.param](num_classes=10).eval()


def cases(model: nn.Module) -> dict[tuple[str, str], Callable[[Tensor], object]]:
    found: dict[tuple[str, str], Callable[[Tensor], object]] = {
        ("gaia-z", "all"): GaiaZ(model, engine="hooks").score,
        ("gaia-a", "all"): GaiaA(model, engine="hooks").score,
    }
    if hasattr(model, "layer4"):
        found["gaia-a", "blocks 3+4"] = GaiaA(model, layers=BLOCKS_3_AND_4, engine="hooks").score
    return found


@pytest.mark.parametrize("batch", [1, 32])
@pytest.mark.parametrize("case", ["gaia-z:all", "gaia-a:all", "gaia-a:blocks 3+4"])
def test_hooks_engine(model: nn.Module, case: str, batch: int, against: Callable[..., None]) -> None:
    method, layers = case.split(":")
    score = cases(model).get((method, layers))
    if score is None:
        pytest.skip(f"{type(model).__name__} has no blocks 3 and 4")
    x = torch.randn(batch, 3, 32, 32)
    goal = GOALS.get((method, layers)) if batch == 32 and hasattr(model, "layer4") else None
    against(plain_forward(model, x), lambda: score(x), rounds=15 if batch > 1 else 40, goal=goal)


@pytest.mark.parametrize("batch", [1, 32])
@pytest.mark.parametrize("method", ["gaia_z", "gaia_a"])
def test_the_authors_way(model: nn.Module, method: str, batch: int, against: Callable[..., None]) -> None:
    layers = BLOCKS_3_AND_4 if method == "gaia_a" and hasattr(model, "layer4") else None
    x = torch.randn(batch, 3, 32, 32)
    authors = Authors(model, layers, x)
    against(plain_forward(model, x), lambda: getattr(authors, method)(x), rounds=5 if batch > 1 else 20)


@pytest.mark.parametrize("batch", [1, 32])
def test_autograd_without_any_statistics(model: nn.Module, batch: int, against: Callable[..., None]) -> None:
    """The gradient at the first norm alone, by autograd: what a hook-based score cannot avoid unless it does better."""
    norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    x = torch.randn(batch, 3, 32, 32)
    kept: list[Tensor] = []

    def leaf(module: nn.Module, args: object, output: Tensor) -> Tensor:
        torch.set_grad_enabled(True)
        kept[:] = [output.detach().requires_grad_()]
        return kept[0]

    def run() -> None:
        handle = norm.register_forward_hook(leaf)
        with torch.no_grad():
            top1 = model(x).max(dim=1).values.sum()
            torch.autograd.grad(top1, kept)
        handle.remove()

    against(plain_forward(model, x), run, rounds=15 if batch > 1 else 40)


def plain_forward(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    @torch.no_grad()
    def run() -> Tensor:
        return model(x)

    return run
