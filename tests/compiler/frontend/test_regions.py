"""Models with regions under torch.autocast, as attention that computes in float32 has them."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gaia_fast import GaiaA, GaiaZ, reference
from gaia_fast.compiler.frontend.regions import inline_regions
from gaia_fast.errors import CompilationError
from gaia_fast.reference import relative_error

from zoo import Pooled, conv_norm, images, with_statistics


class Region(nn.Module):
    """A norm in a region in a region, which give two tensors."""

    def __init__(self, enabled: bool) -> None:
        super().__init__()
        self.block, self.enabled = nn.Sequential(*conv_norm(6, 6), nn.ReLU()), enabled

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.enabled):
            y = torch.relu(x) + 1
            with torch.autocast(x.device.type, torch.bfloat16, enabled=False):
                z = self.block(y)
        return (y + z).to(x.dtype)


def model_with(*, enabled: bool) -> nn.Module:
    torch.manual_seed(0)
    return with_statistics(Pooled(nn.Sequential(*conv_norm(3, 6), Region(enabled), nn.ReLU()), 6))


@pytest.mark.parametrize(
    ("detector", "method"), [(GaiaZ, reference.gaia_z), (GaiaA, reference.gaia_a)], ids=["gaia-z", "gaia-a"]
)
def test_regions_without_autocast_are_compiled(detector: Any, method: Any) -> None:
    model, x = model_with(enabled=False), images(3)
    compiled = detector(model, engine="compiled", runtime="native")
    truth = method(copy.deepcopy(model).double(), x.double()).score
    assert relative_error(compiled(x), truth) < 1e-5
    assert [each.name for each in compiled.plan(x).maps] == ["trunk.1", "trunk.2.block.1"]


def test_regions_with_autocast_are_refused_by_name_and_scored_by_hooks() -> None:
    model, x = model_with(enabled=True), images(2)
    with pytest.raises(CompilationError, match=r"a region under wrap_with_autocast; it is on there.*engine='hooks'"):
        GaiaZ(model, engine="compiled").prepare(x)
    detector = GaiaZ(model).prepare(x)
    assert "region under wrap_with_autocast" in detector.plan(x).engine.why
    assert torch.equal(detector(x), GaiaZ(model, engine="hooks")(x))


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.cond(x.sum() > 0, lambda a: a + 1, lambda a: a - 1, (x,))
        return y


class Ungraded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            return torch.relu(x) + 1


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Branches(), r"^the model has the operator cond, whose own graphs are not compiled; engine='hooks'"),
        (Ungraded(), r"^the model has a region under wrap_with_set_grad_enabled, which decides dtypes or gradients"),
    ],
)
def test_other_operators_with_graphs_are_refused_by_their_names(model: nn.Module, message: str) -> None:
    with torch.no_grad():
        graph = torch.export.export(model.eval(), (images(2),)).module(check_guards=False)
    assert isinstance(graph, torch.fx.GraphModule)
    with pytest.raises(CompilationError, match=message):
        inline_regions(graph)
