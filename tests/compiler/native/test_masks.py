"""GAIA-Z's densities by kernels that read and write bits: nothing is left to PyTorch, and the matrix is the same."""

import warnings
from collections.abc import Callable
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from gaia_fast import GaiaZ
from gaia_fast.compiler.native.executable import Executable
from gaia_fast.compiler.native.kernels import Kernel, Mask, MaskCheck, Pool

import zoo
from graphs import fused, native, targets

aten = torch.ops.aten
LEFT = {
    aten.gt.Scalar,
    aten.lt.Scalar,
    aten.bitwise_and.Tensor,
    aten.bitwise_or.Tensor,
    aten.max_pool2d_with_indices.default,
    aten.scatter_add.default,
    aten.convolution.default,
    aten.amin.default,
}


def stem(channels: int, activation: type[nn.Module] = nn.ReLU) -> list[nn.Module]:
    return [*zoo.conv_norm(3, channels), activation()]


def grouped(
    channels: int,
    groups: int,
    stride: int = 1,
    activation: type[nn.Module] = nn.ReLU,
    size: int = 3,
    dilation: int = 1,
) -> list[nn.Module]:
    around = dilation * (size // 2)
    conv = nn.Conv2d(channels, channels, size, stride, around, dilation, groups, bias=False)
    return [conv, nn.BatchNorm2d(channels), activation()]


def pooled(*layers: nn.Module, channels: int) -> nn.Module:
    return zoo.Pooled(nn.Sequential(*layers), channels)


def pointwise(inputs: int, outputs: int, activation: type[nn.Module] = nn.ReLU) -> list[nn.Module]:
    return [*zoo.conv_norm(inputs, outputs, size=1), activation()]


class Inverted(nn.Module):
    """A block of MobileNetV2's: widened, depthwise, made narrow again, and added to what it began with."""

    def __init__(self, channels: int, wide: int, stride: int = 1) -> None:
        super().__init__()
        middle = grouped(wide, wide, stride, nn.ReLU6)
        self.body = nn.Sequential(*pointwise(channels, wide, nn.ReLU6), *middle, *zoo.conv_norm(wide, channels, size=1))
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.stride == 1 else self.body(x)


class DenseNet(nn.Module):
    """Each layer reads all maps before it, side by side; what is behind the stem's ReLU, several norms read.

    With `units`, each layer ends with a ReLU, too.
    """

    def __init__(self, channels: int, growth: int, layers: int, transition: bool = True, units: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(*stem(channels))
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(channels + i * growth),
                nn.ReLU(),
                *zoo.conv_norm(channels + i * growth, 32, size=1),
                nn.ReLU(),
                *([*zoo.conv_norm(32, growth), nn.ReLU()] if units else zoo.conv_norm(32, growth)[:1]),
            )
            for i in range(layers)
        )
        wide = channels + layers * growth
        behind = [nn.BatchNorm2d(wide), nn.ReLU(), nn.Conv2d(wide, 32, 1, bias=False), nn.AvgPool2d(2)]
        self.transition = nn.Sequential(*behind) if transition else nn.Identity()
        self.last = nn.BatchNorm2d(32 if transition else wide)
        self.fc = nn.Linear(32 if transition else wide, 5)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.stem(x)]
        for layer in self.layers:
            maps.append(layer(torch.cat(maps, 1)))
        return self.fc(self.last(self.transition(torch.cat(maps, 1))).relu().mean((2, 3)))


# A network, and how many kernels of masks, of checks of masks, and of counts of maxima its program has; None where
# slices begin within a panel, which stay PyTorch's.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int] | None]] = {
    "depthwise": (
        lambda: pooled(
            *stem(16, nn.ReLU6),
            *grouped(16, 16, 1, nn.ReLU6),
            *pointwise(16, 32, nn.ReLU6),
            *grouped(32, 32, 2, nn.ReLU6),
            *pointwise(32, 32, nn.ReLU6),
            channels=32,
        ),
        (2, 2, 0),
    ),
    "depthwise, no whole panels": (
        lambda: pooled(
            *stem(24, nn.ReLU6),
            *grouped(24, 24, 2, nn.ReLU6),
            *pointwise(24, 40, nn.ReLU6),
            *grouped(40, 40, 1, nn.ReLU6, 5),
            *pointwise(40, 40, nn.ReLU6),
            channels=40,
        ),
        (2, 2, 0),
    ),
    "inverted residuals": (
        lambda: pooled(
            *stem(16, nn.ReLU6),
            Inverted(16, 32),
            Inverted(16, 48, 2),
            Inverted(16, 24),
            *pointwise(16, 32, nn.ReLU6),
            channels=32,
        ),
        (3, 2, 0),
    ),
    "groups of 2": (lambda: pooled(*stem(24), *grouped(24, 12), *grouped(24, 12, 2), channels=24), (2, 0, 0)),
    "groups of 8": (
        lambda: pooled(*stem(32), *grouped(32, 4), *grouped(32, 4, 2), *pointwise(32, 16), channels=16),
        (2, 0, 0),
    ),
    "groups of 16": (lambda: pooled(*stem(48), *grouped(48, 3, 2), *grouped(48, 3), channels=48), (2, 0, 0)),
    "groups of 32": (lambda: pooled(*stem(64), *grouped(64, 2), *grouped(64, 2, 2), channels=64), (2, 0, 0)),
    "max-pooling": (
        lambda: pooled(*stem(16), nn.MaxPool2d(3, 2, 1), *zoo.conv_norm(16, 32), nn.ReLU(), channels=32),
        (0, 0, 1),
    ),
    "max-pooling that hangs over": (
        lambda: pooled(*stem(24), nn.MaxPool2d(3, 2, ceil_mode=True), *zoo.conv_norm(24, 32), nn.ReLU(), channels=32),
        (0, 0, 1),
    ),
    "max-pooling before a depthwise one": (
        lambda: pooled(*stem(16), nn.MaxPool2d(3, 2, 1), *grouped(16, 16), *grouped(16, 16, 2), channels=16),
        (2, 0, 1),
    ),
    "union": (lambda: DenseNet(16, 16, 3), (5, 1, 0)),
    "union, wide": (lambda: DenseNet(32, 32, 2), (4, 1, 0)),
    "union, without a transition": (lambda: DenseNet(16, 16, 3, False), (4, 0, 0)),
    "union of each layer's": (lambda: DenseNet(16, 16, 3, units=True), (11, 4, 0)),
    "union of each layer's, no whole panels": (lambda: DenseNet(16, 8, 2, units=True), None),
    "union, no whole panels": (lambda: DenseNet(16, 8, 3, transition=False), (4, 0, 0)),
}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return zoo.with_statistics(NETWORKS[name][0]())


def program(model: nn.Module, x: Tensor) -> fx.GraphModule:
    prepared = GaiaZ(model, engine="compiled", runtime="eager").prepare(x).program(x)
    assert prepared is not None
    return prepared.program.graph


def check_densities(model: nn.Module, *images: Tensor) -> None:
    """Checks the densities of images, compiled for the first of them, against the reference's."""
    compiled = GaiaZ(model, engine="compiled", runtime="native").prepare(images[0])
    for x in images:
        found = compiled.score(x, return_matrix=True).matrix
        expected = GaiaZ(model, engine="reference").score(x, return_matrix=True).matrix
        assert found is not None
        assert expected is not None
        assert torch.equal(found, expected)


@cache
def program_of(name: str) -> fx.GraphModule:
    return program(network(name), zoo.images(5))


@pytest.mark.parametrize("name", [name for name, (_, kernels) in NETWORKS.items() if kernels is not None])
def test_nothing_of_masks_is_left_to_pytorch(name: str) -> None:
    made = fused(program_of(name))
    assert not LEFT & set(targets(made))
    kinds = [type(each) for each in made.modules() if isinstance(each, Kernel)]
    counting = sum(
        isinstance(made.get_submodule(str(node.target)), Pool) and any(user.args[1] == 1 for user in node.users)
        for node in made.graph.nodes
        if node.op == "call_module"
    )
    assert (kinds.count(Mask), kinds.count(MaskCheck), counting) == NETWORKS[name][1]


@pytest.mark.parametrize("name", NETWORKS)
def test_densities_are_those_of_the_reference(name: str) -> None:
    for size in (16, 15):
        x = zoo.images(3, size)
        check_densities(network(name), x, x[:1])


@pytest.mark.parametrize("name", NETWORKS)
def test_any_number_of_images_by_one_executable(name: str) -> None:
    x, one_by_one, together = zoo.images(5), fused(program_of(name)), native(program_of(name))
    executables = [each for each in together.modules() if isinstance(each, Executable)]
    if name.startswith("union") and name.endswith("no whole panels"):
        # PyTorch puts such maps side by side, and masks are passed on.
        assert any(channels is not None for each in executables for channels in each._masks)
    else:
        assert len(executables) == 1
    with torch.no_grad():
        for images in (5, 1, 2, 3):
            found, expected = together(x[:images]), one_by_one(x[:images])
            torch.testing.assert_close(found[1], expected[1], rtol=1e-6, atol=0)
            assert torch.equal(found[2], expected[2])  # the counts


@pytest.mark.parametrize("name", NETWORKS)
def test_fusion_warns_of_nothing(name: str) -> None:
    graph = program_of(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fused(graph)


class Sides(nn.Module):
    """A depthwise convolution's map in two concatenations, in the second of them before another map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem, self.side = nn.Sequential(*stem(16)), nn.Conv2d(3, 16, 3, padding=1)
        self.narrow = nn.Sequential(*zoo.conv_norm(16, channels, size=1))
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.first, self.second = nn.BatchNorm2d(16 + channels), nn.BatchNorm2d(16 + 2 * channels)
        self.more, self.all = nn.Conv2d(16 + channels, channels, 3, padding=1), nn.Conv2d(16 + 2 * channels, 16, 1)
        self.last, self.fc = nn.BatchNorm2d(16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        side, y = self.side(x), self.depthwise(self.narrow(self.stem(x)))
        more = self.more(self.first(torch.cat([side, y], 1)).relu())
        return self.fc(self.last(self.all(self.second(torch.cat([side, y, more], 1)).relu())).relu().mean((2, 3)))


@pytest.mark.parametrize("channels", [8, 16])
def test_a_slice_has_no_entries_of_the_channels_behind_it(channels: int) -> None:
    """Where no unit of the depthwise map is active, those of the map behind it in the same panel do not help."""
    torch.manual_seed(0)
    model = zoo.with_statistics(Sides(channels))
    assert isinstance(model, Sides)
    good = zoo.images(4)
    bad = good[:2].clone()
    bad[:, :, 3:13, 3:13] = 0
    with torch.no_grad():
        inactive = model.depthwise(model.narrow(model.stem(torch.zeros(1, 3, 16, 16))))[0, :, 8, 8]
        for norm in (model.first, model.second):
            assert norm.running_mean is not None
            norm.running_mean[16 : 16 + channels] = inactive + 0.05
            norm.bias[16 : 16 + channels] = 0
        model.second.bias[16 + channels :] = 100
    kernels = [each for each in fused(program(model, good)).modules() if isinstance(each, Mask)]
    assert any(each.either and each.slices == ((16, channels), (16, channels)) for each in kernels) or channels < 16
    check_densities(model, good, bad)


class Crossed(nn.Module):
    """Of masks that are begun, some are given up: a slice of a union is none that kernels count."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*stem(16))
        self.left, self.right = nn.Sequential(*zoo.conv_norm(16, 8)), nn.Sequential(*zoo.conv_norm(16, 8))
        self.norms = nn.ModuleList(nn.BatchNorm2d(32) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(32, 16, 1) for _ in range(2))
        self.last, self.fc = nn.BatchNorm2d(16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        maps = torch.cat([x, self.left(x), self.right(x)], 1)
        one, other = (conv(norm(maps).relu()) for norm, conv in zip(self.norms, self.convs, strict=True))
        return self.fc(self.last(one + other).relu().mean((2, 3)))


def test_kernels_that_are_given_up_leave_their_names_to_no_other() -> None:
    torch.manual_seed(0)
    model, x = zoo.with_statistics(Crossed()), zoo.images(3)
    made = fused(program(model, x))
    called = [str(node.target) for node in made.graph.nodes if node.op == "call_module"]
    assert len(called) == len(set(called))
    check_densities(model, x)


def test_a_mask_that_is_no_activations_stays_pytorchs() -> None:
    """Of a leaky unit, and of a map that others read, too."""

    class Leaky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.body = nn.Sequential(*zoo.conv_norm(3, 16)), nn.Sequential(*grouped(16, 16, 2))
            self.fc = nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x)
            return self.fc(self.body(F.hardtanh(y, -0.5, 2) + y.relu()).mean((2, 3)))

    torch.manual_seed(0)
    model, x = zoo.with_statistics(Leaky()), zoo.images(3)
    check_densities(model, x)
