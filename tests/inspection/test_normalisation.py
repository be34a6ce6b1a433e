"""What counts as a norm of feature maps, and that norms that turn axes around are scored right."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from gaia_fast import GaiaA, GaiaZ, reference
from gaia_fast.errors import LayerError
from gaia_fast.inspection.normalisation import is_normalisation
from gaia_fast.reference import relative_error

from deployed import NORMS_2D, ConvNextLike, EitherLayerNorm, built
from zoo import NormAct, images


def named(name: str, base: type[nn.Module] = nn.Module) -> nn.Module:
    return type(name, (base,), {})(*([4] if base is nn.LayerNorm else []))


@pytest.mark.parametrize(
    "module",
    [
        nn.BatchNorm2d(4),
        nn.SyncBatchNorm(4),
        nn.GroupNorm(2, 4),
        nn.InstanceNorm2d(4),
        NormAct(4),
        *map(named, ("FrozenBatchNorm2d", "FrozenBatchNormAct2d", "RmsNorm2d", "RmsNormAct2dFp32", "SimpleNorm2d")),
        *(named(name, nn.LayerNorm) for name in ("LayerNorm2d", "LayerNorm2dFp32", "LayerNormAct2d")),
        *(make(4) for make in NORMS_2D.values()),
    ],
)
def test_what_a_norm_is(module: nn.Module) -> None:
    assert is_normalisation(module)


@pytest.mark.parametrize(
    "module",
    [
        nn.BatchNorm1d(4),
        nn.LayerNorm(4),
        nn.RMSNorm(4),
        nn.ReLU(),
        nn.Conv2d(3, 4, 1),
        EitherLayerNorm(4, "channels_last"),
        *(named(name, nn.LayerNorm) for name in ("LayerNorm", "LayerNormFp32", "MyLayerNorm2dHead")),
    ],
)
def test_what_a_norm_is_not(module: nn.Module) -> None:
    assert not is_normalisation(module)


@pytest.mark.parametrize("engine", ["hooks", "reference", "compiled"])
@pytest.mark.parametrize("name", NORMS_2D)
def test_norms_that_turn_axes_are_inspected_by_default(name: str, engine: str) -> None:
    model, x = built(lambda: ConvNextLike(NORMS_2D[name])), images(3)
    double = copy.deepcopy(model).double()
    options: Any = {"engine": engine, "runtime": "native"} if engine == "compiled" else {"engine": engine}
    for detector, method in ((GaiaZ, reference.gaia_z), (GaiaA, reference.gaia_a)):
        truth = method(double, x.double()).score
        plain = relative_error(method(model, x).score, truth)
        assert relative_error(detector(model, **options)(x), truth) <= max(1e-5, 2 * plain)
    maps = GaiaZ(model).plan(x).maps
    assert [(each.name, each.channels, each.height) for each in maps] == [("stem.1", 10, 8), ("downsample.0", 10, 8)]


@pytest.mark.parametrize("name", NORMS_2D)
def test_densities_are_of_channels_and_before_the_activation(name: str) -> None:
    """By hand: the last norm's map, whose gradient a ReLU stops, is what the norm's own formula gives."""
    model, x = built(lambda: ConvNextLike(NORMS_2D[name])), images(2)
    assert isinstance(model, ConvNextLike)
    y = model.stem(x)
    y = y + model.block(model.depthwise(y).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    affine: Any = getattr(model.downsample[0], "norm", model.downsample[0])
    centred = (y - y.mean(1, keepdim=True)) / (y.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    map_ = centred * affine.weight[:, None, None] + affine.bias[:, None, None]
    matrix = GaiaZ(model, layers=["downsample.0"]).score(x, return_matrix=True).matrix
    assert matrix is not None
    torch.testing.assert_close(matrix[:, 0], (map_ > 0).float().mean((2, 3)))


def test_a_class_of_that_name_that_gives_no_map_is_passed_over_unless_it_is_named() -> None:
    class Vectors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.pool = (
                nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
                named("LayerNorm2d"),
            )
            self.pool.forward = lambda x: x.mean((2, 3))
            self.fc = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.pool(self.trunk(x)))

    model = Vectors().eval()
    assert [each.name for each in GaiaZ(model).plan(images(2)).maps] == ["trunk.1"]
    with pytest.raises(LayerError, match=r"'pool' gives a Tensor of shape \(2, 4\)"):
        GaiaZ(model, layers=["pool"])(images(2))
