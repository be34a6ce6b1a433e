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

from deployed import (
    NORMS_2D,
    ConvNextLike,
    EitherLayerNorm,
    GroupNormAsLayerNorm2d,
    LastOrFirstLayerNorm2d,
    LayerNorm2d,
    OwnLayerNorm,
    Permute,
    built,
)
from zoo import NormAct, images


def named(name: str, base: type[nn.Module] = nn.Module) -> nn.Module:
    """A module of four channels, whose class has a `forward` of its own."""
    module: nn.Module = type(name, (base,), {"forward": lambda _, x: x})(*([4] if base is nn.LayerNorm else []))
    module.weight = nn.Parameter(torch.ones(4))
    return module


@pytest.mark.parametrize(
    "module",
    [
        nn.BatchNorm2d(4),
        nn.SyncBatchNorm(4),
        nn.GroupNorm(2, 4),
        nn.InstanceNorm2d(4),
        NormAct(4),
        *map(named, ("FrozenBatchNorm2d", "FrozenBatchNormAct2d", "RmsNorm2d", "RmsNormAct2dFp32", "SimpleNorm2d")),
        *map(named, ("LayerNorm2D", "FrozenBatchNorm2D")),
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
        OwnLayerNorm(4, "channels_last"),
        GroupNormAsLayerNorm2d(4),
        type("LayerNorm2d", (nn.LayerNorm,), {})(4),  # of the last axis, whatever its name
        type("LayerNorm2d", (nn.Module,), {})(),  # of how many channels is not known
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
    affine: Any = next(each for each in model.downsample[0].modules() if hasattr(each, "normalized_shape"))
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


def test_a_norm_in_a_class_of_that_name_is_inspected_in_its_place() -> None:
    model, plain = built(lambda: ConvNextLike(GroupNormAsLayerNorm2d)), built(lambda: ConvNextLike(group_norm))
    assert [each.name for each in GaiaZ(model).plan(images(2)).maps] == ["stem.1.gn", "downsample.0.gn"]
    assert torch.equal(GaiaZ(model)(images(2)), GaiaZ(plain)(images(2)))


def group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(1, channels)


def last(norm: nn.Module, channels: int = 6, **more: Any) -> nn.Module:
    """A norm that gets its channels last, between norms of maps."""

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, channels, 2, 2), nn.BatchNorm2d(channels), nn.ReLU())
            self.norm, self.fc = norm, nn.Linear(channels, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = norm(self.stem(x).permute(0, 2, 3, 1), **more)
            return self.fc(torch.relu(y).mean((1, 2)))

    return built(Last)


@pytest.mark.parametrize("engine", ["hooks", "reference", "compiled"])
def test_channels_that_come_last_are_no_channels_of_a_map(engine: str) -> None:
    """A class of that name, called with its channels last: a map of tokens, which is never inspected unasked."""
    model, x = last(LastOrFirstLayerNorm2d(6), data_format="channel_last"), images(2)
    options: Any = {"engine": engine, "runtime": "native"} if engine == "compiled" else {"engine": engine}
    torch.testing.assert_close(GaiaZ(model, **options)(x), GaiaZ(model, layers=["stem"], **options)(x))
    with pytest.raises(LayerError, match=r"'norm', a LayerNorm2d, gives a map .*, 8, 8, 6\) whose channels come last"):
        GaiaZ(model, layers=["norm"], **options)(x)


def test_what_an_activation_inside_a_norm_reads_may_have_its_channels_last() -> None:
    inside = type("LayerNormAct2d", (nn.Sequential,), {})(nn.LayerNorm(6), nn.ReLU(), Permute(0, 1, 2, 3))
    with pytest.raises(LayerError, match=r"'norm', a LayerNormAct2d, gives a map of shape \(2, 8, 8, 6\) whose chann"):
        GaiaZ(last(inside), layers=["norm"])(images(2))


@pytest.mark.parametrize("layers", [None, ["norm"]])
@pytest.mark.parametrize(
    ("size", "known", "which"), [(12, 6, "may be the second axis or the last"), (16, 4, "are neither its second axis")]
)
def test_axes_that_cannot_be_told_are_refused(layers: Any, size: int, known: int, which: str) -> None:
    norm = named("LayerNorm2d")
    norm.weight = nn.Parameter(torch.ones(known))
    with pytest.raises(LayerError, match=f"'norm', a LayerNorm2d, .* whose {known} channels {which}.* without it"):
        GaiaZ(last(norm), layers=layers)(images(2, size))


def test_the_order_of_a_library_s_own_norm_is_known() -> None:
    """As many channels as columns: ConvNeXt has such maps of images of 384."""
    norm: Any = LayerNorm2d(6)
    x = images(2, 12)
    layers = [nn.Conv2d(3, 6, 2, 2), norm, nn.ReLU(), nn.Flatten(), nn.Linear(216, 5)]
    model: Any = built(lambda: nn.Sequential(*layers))
    with pytest.raises(LayerError, match="'1', a LayerNorm2d, gives a map of shape"):
        GaiaZ(model)(x)
    ours = type("LayerNorm2d", (LayerNorm2d,), {"forward": LayerNorm2d.forward, "__module__": "torchvision.ops.misc"})
    norm.__class__ = ours
    assert GaiaZ(model)(x).shape == (2,)
    model[1] = EitherLayerNorm(6).eval()
    assert GaiaZ(model)(x).shape == (2,)
