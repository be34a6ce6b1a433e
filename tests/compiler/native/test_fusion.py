import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gaia_fast import GaiaA, GaiaZ
from gaia_fast.compiler.native.cost import operations
from gaia_fast.compiler.native.kernels import BoundCheck, Check, Convolution, GateGradient, MeanGradient, Pointwise
from gaia_fast.ops.convolution.packing import Algorithm
from gaia_fast.options import StatisticOption

import zoo
from graphs import captured, fold, fused, targets

aten = torch.ops.aten


class Block(nn.Module):
    """A basic block behind a stem, and a strided one behind it, in whole sixteens of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*zoo.conv_norm(3, 16))
        self.first, self.second = nn.Sequential(*zoo.conv_norm(16, 16)), nn.Sequential(*zoo.conv_norm(16, 16))
        self.down, self.last = nn.Sequential(*zoo.conv_norm(16, 32, 2)), nn.Sequential(*zoo.conv_norm(32, 32))
        self.short, self.fc = nn.Sequential(*zoo.conv_norm(16, 32, 2, 1)), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (self.second(self.first(x).relu()) + x).relu()
        x = (self.last(self.down(x).relu()) + self.short(x)).relu()
        return self.fc(x.mean((2, 3)))


def program(detector: type[GaiaA] | type[GaiaZ], model: nn.Module, x: Tensor, **options: Any) -> torch.fx.GraphModule:
    prepared = detector(model, engine="compiled", runtime="eager", **options).prepare(x).program(x)
    assert prepared is not None
    return prepared.program.graph


def convolutions(module: torch.fx.GraphModule) -> list[Convolution]:
    return [each for each in module.modules() if isinstance(each, Convolution)]


@pytest.mark.parametrize("name", ["resnet34", "wrn_40_2", "small_bit", "vgg_like", "strided_shortcut", "norm_act"])
@pytest.mark.parametrize("detector", [GaiaA, GaiaZ])
def test_a_fused_program_computes_what_the_program_does(detector: type[GaiaA] | type[GaiaZ], name: str) -> None:
    model, x = zoo.build(name), zoo.images(3, zoo.image_size(name))
    graph = program(detector, model, x)
    with torch.no_grad():
        expected, found = graph(x), fused(graph)(x.contiguous(memory_format=torch.channels_last))
    assert len(expected) == len(found)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1], expected[1], rtol=2e-5, atol=0)


@pytest.mark.parametrize("detector", [GaiaA, GaiaZ])
def test_nothing_is_left_between_convolutions(detector: type[GaiaA] | type[GaiaZ]) -> None:
    torch.manual_seed(0)
    made = fused(program(detector, Block().eval(), zoo.images(4)))
    left = targets(made)
    for each in (aten.relu.default, aten.gt.Scalar, aten.slice.Tensor):
        assert each not in left
    if detector is GaiaZ:
        assert len(convolutions(made)) == 7  # and the head
        assert sum(isinstance(each, Check) for each in made.modules()) == 4
        assert aten.amin.default not in left
        assert aten.add.Tensor not in left
        assert [each.statistic for each in convolutions(made)].count("positive") >= 4
    else:
        assert aten.convolution.default not in left
        assert sum(each.size is not None for each in convolutions(made)) == 2  # the adjoints of the strided ones
        assert [each.statistic for each in convolutions(made)].count("sum") >= 2


class Gated(nn.Module):
    """A block with squeeze-and-excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Sequential(*zoo.conv_norm(3, 16)), nn.Sequential(*zoo.conv_norm(16, 32))
        self.squeeze, self.excite = nn.Conv2d(32, 8, 1), nn.Conv2d(8, 32, 1)
        self.last, self.fc = nn.Sequential(*zoo.conv_norm(32, 16)), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.stem(x).relu()).relu()
        y = y * self.excite(self.squeeze(y.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.fc(self.last(y).relu().mean((2, 3)))


def test_gates_are_looked_at_by_a_kernel() -> None:
    torch.manual_seed(0)
    made = fused(program(GaiaZ, Gated().eval(), zoo.images(4)))
    assert sum(isinstance(each, BoundCheck) for each in made.modules()) == 1
    assert not {aten.amin.default, aten.gt.Scalar, aten._to_copy.default} & set(targets(made))


def test_gradients_pass_gates_in_kernels() -> None:
    torch.manual_seed(0)
    model, x = Gated().eval(), zoo.images(4)
    made = fused(program(GaiaA, model, x))
    kinds = [type(each) for each in made.modules()]
    assert kinds.count(GateGradient) == kinds.count(MeanGradient) == 1
    left = targets(made)
    assert not {aten.sum.dim_IntList, aten.add.Tensor, aten.sigmoid.default} & set(left)
    assert left.count(aten.rsub.Scalar) == 1  # of the head's softmax
    found = GaiaA(model, engine="compiled", runtime="native").score(x).score
    torch.testing.assert_close(found, GaiaA(model, engine="reference")(x), rtol=2e-5, atol=0)


def test_norms_before_convolutions_become_one_kernel() -> None:
    made = fused(program(GaiaZ, zoo.build("wrn_40_2"), zoo.images(2, 32)))
    assert [each.statistic for each in made.modules() if isinstance(each, Pointwise)].count("positive") == 18
    assert aten.relu.default not in targets(made)
    adjoint = fused(program(GaiaA, zoo.build("wrn_40_2"), zoo.images(2, 32)))
    assert sum(each.scale is not None for each in convolutions(adjoint)) >= 12


@pytest.mark.parametrize("statistic", ["abs_mean", "mean_abs"])
def test_both_statistics_of_gaia_a(statistic: StatisticOption) -> None:
    x = zoo.images(2)
    torch.manual_seed(0)
    model = Block().eval()
    native = GaiaA(model, engine="compiled", runtime="native", statistic=statistic)(x)
    assert torch.allclose(native, GaiaA(model, engine="reference", statistic=statistic)(x), rtol=1e-5)


def test_a_map_that_others_read_is_kept() -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.other, self.fc = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            z = self.other(y.relu()) * 2 + y[:, :, 1:-1, 1:-1]
            return self.fc((z.relu() + z).mean((2, 3)))

    model, x = Read().eval(), zoo.images(2)
    made = captured(model, x, ["conv"], with_head=False)
    fold(made.graph)
    with torch.no_grad():
        torch.testing.assert_close(fused(made.graph)(x)[0], model(x), rtol=1e-5, atol=1e-6)


class Otherwise(nn.Module):
    """Two convolutions with something around the second that looks like what is fused, and is not quite that."""

    kept: Tensor

    def __init__(self, around: Callable[["Otherwise", Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.around = around
        self.stem, self.conv = nn.Sequential(*zoo.conv_norm(3, 16)), nn.Sequential(*zoo.conv_norm(16, 16))
        self.last, self.fc = nn.Sequential(*zoo.conv_norm(16, 16)), nn.Linear(16, 5)
        self.factor = nn.Parameter(torch.rand(1, 16, 1, 1) + 0.5)
        self.register_buffer("kept", torch.arange(16).view(1, -1, 1, 1) % 3 > 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.last(self.around(self, self.stem(x))).relu().mean((2, 3)))


def sums_first(model: Otherwise, y: Tensor) -> Tensor:
    z = model.conv(y.relu())
    read = z.sum((2, 3)).tanh()
    return z * model.factor + read[:, :, None, None]


def sums_of_units(y: Tensor) -> Tensor:
    """What is taken for the number of active units where nobody looks whether it is one."""
    y = y.relu()
    return y * y.sum((2, 3)).cos()[:, :, None, None]


def normalised(model: Otherwise, y: Tensor) -> Tensor:
    factors = model.factor.flatten()
    return nn.functional.group_norm(y.tanh(), 4, factors, factors - 1)


def slopes(y: Tensor, z: Tensor) -> Tensor:
    """What the gradient of a gate looks like."""
    gate = z.sigmoid()
    return (y * y.tanh()).sum((2, 3), keepdim=True) * (gate * (1 - gate))


OTHERWISE: dict[str, Callable[[Otherwise, Tensor], Tensor]] = {
    "a gate that is no sigmoid": lambda model, y: y.relu() * model.conv(y.mean((2, 3), keepdim=True)).tanh(),
    "a gate of sums": lambda model, y: y.relu() * model.conv(y.sum((2, 3), keepdim=True) / 7).sigmoid(),
    "a gate of rows": lambda model, y: y.relu() * model.conv(y.mean(3, keepdim=True)).sigmoid(),
    "slopes of more channels than what they are times": lambda model, y: (
        y.relu() * slopes(y.mean(1, keepdim=True), model.conv(y.mean((2, 3), keepdim=True)))
    ),
    "slopes of more channels than a panel": lambda model, y: (
        y + slopes(y.mean(1, keepdim=True), torch.cat([y, y, y], 1).mean((2, 3), keepdim=True))[:, 20:36]
    ),
    "a gate of one channel": lambda model, y: y.relu() * model.conv(y).mean(1, keepdim=True).sigmoid(),
    "sums with their axes kept": lambda model, y: y.relu() * (y.relu().sum((2, 3), keepdim=True) / 99).sigmoid(),
    "sums of a gradient with their axes kept": lambda model, y: (
        y.relu() + model.conv(y.mean((2, 3), keepdim=True))
    ).relu(),
    "sums in float64": lambda model, y: (
        y.relu() * y.relu().sum((2, 3), dtype=torch.float64)[:, :, None, None].cos().float()
    ),
    "counts in float64": lambda model, y: y.relu() + (y.relu() > 0).double().sum((2, 3))[:, :, None, None].float(),
    "sums of a ReLU": lambda model, y: sums_of_units(y.tanh()),
    "sums of a ReLU behind a norm": lambda model, y: sums_of_units(normalised(model, y)),
    "sums read before the factor": sums_first,
    "a factor of bools": lambda model, y: model.conv(y.relu()) * model.kept + y,
    "a factor of bools before a ReLU": lambda model, y: (y.tanh() * model.kept).relu(),
    "a shift times a number": lambda model, y: torch.add(y.tanh(), model.factor, alpha=-0.5).relu(),
    "a factor that makes channels": lambda model, y: (
        y.tanh().mean(1, keepdim=True) * model.factor + model.factor
    ).relu(),
    "a factor of bools as a map": lambda model, y: ((y > 0) * model.factor + model.factor).relu() + y,
    "a sum with bools": lambda model, y: model.conv(y.relu()) + (y > 0.2),
    "a ReLU mask of integers": lambda model, y: torch.where((y * 3).long() <= 0, 0.0, model.conv(y.relu())),
}


@pytest.mark.parametrize("name", OTHERWISE)
@pytest.mark.parametrize("detector", [GaiaA, GaiaZ])
def test_what_only_looks_like_it_stays_what_it_is(detector: type[GaiaA] | type[GaiaZ], name: str) -> None:
    model, x = Otherwise(OTHERWISE[name]).eval(), zoo.images(3)
    found = detector(model, engine="compiled", runtime="native").score(x)
    torch.testing.assert_close(found.logits, model(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.score, detector(model, engine="reference")(x), rtol=2e-5, atol=0)


def test_a_gradient_whose_non_zeros_are_counted_is_zero_exactly_where_nothing_reaches() -> None:
    class Corner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.act = nn.Sequential(*zoo.conv_norm(3, 16)), nn.SiLU()
            self.first, self.second = nn.Sequential(*zoo.conv_norm(16, 16)), nn.Sequential(*zoo.conv_norm(16, 16))
            self.fc = nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            y = self.second(self.act(self.first(self.act(self.stem(x)))))
            return self.fc(y[:, :, :6, :7].mean((2, 3)))

    torch.manual_seed(0)
    model, x = Corner().eval(), zoo.images(3, 32)
    found = GaiaZ(model, engine="compiled", runtime="native").prepare(x)
    matrix = found.score(x, return_matrix=True).matrix
    truth = GaiaZ(model, engine="reference").score(x, return_matrix=True).matrix
    assert matrix is not None
    assert truth is not None
    assert torch.equal(matrix, truth)
    kernels = convolutions(fused(program(GaiaZ, model, x)))
    assert [each.algorithm for each in kernels] == [None] * 3 + [Algorithm.INDIRECT_GEMM] * 2 + [None]


def test_operations_are_those_of_the_convolutions() -> None:
    found = captured(zoo.build("resnet34"), zoo.images(2, 32))
    fold(found.graph)
    total, ours = operations(found.graph)
    assert total == ours == pytest.approx(2.32e9, rel=0.01)
    # Four channels a group are taken, and any number of outputs; 24 channels a group are not.
    grouped = nn.Sequential(nn.Conv2d(48, 48, 3, groups=12), nn.ReLU(), nn.Conv2d(48, 10, 1), nn.ReLU())
    layers = [nn.Conv2d(3, 48, 1), nn.BatchNorm2d(48), nn.Conv2d(48, 48, 1, groups=2), *grouped]
    found = captured(zoo.Pooled(nn.Sequential(*layers), 10).eval(), zoo.images(2))
    taken, refused = 2.0 * (144 * 256 + 1728 * 196 + 480 * 196), 2.0 * 1152 * 256
    assert operations(found.graph) == (taken + refused, taken)


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("norm", [lambda: nn.InstanceNorm2d(16), lambda: nn.GroupNorm(16, 16)])
def test_a_constant_image_normalised_channel_by_channel(norm: Callable[[], nn.Module], images: int) -> None:
    """The variance is nil, and what rounding leaves of it is multiplied by 300."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3), norm(), nn.ReLU(), nn.Conv2d(16, 16, 3), norm(), nn.ReLU()]
    model = zoo.Pooled(nn.Sequential(*layers), 16).eval()
    x = 3 * torch.randn(images, 3, 1, 1).expand(-1, -1, 32, 32).contiguous()
    compiled = GaiaZ(model, engine="compiled", runtime="native").prepare(torch.randn(images, 3, 32, 32))
    truth = copy.deepcopy(model).double()(x.double())
    torch.testing.assert_close(compiled.score(x).logits.double(), truth, rtol=0, atol=2e-6)


class PaddedPool(nn.Module):
    """A max-pooling of negative numbers with zeros around them, as BiT has one."""

    def __init__(self, ceil_mode: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.pool = nn.Conv2d(3, 16, 3, padding=1), nn.MaxPool2d(3, 2, ceil_mode=ceil_mode)
        self.last, self.fc = nn.Sequential(*zoo.conv_norm(16, 16)), nn.Linear(16, 5)
        nn.init.constant_(self.stem.bias if self.stem.bias is not None else torch.empty(0), -4)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.pad(self.stem(x), (1, 0, 1, 0))
        return self.fc(self.last(self.pool(y)).relu().mean((2, 3)))


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("size", [15, 16])
def test_zeros_around_a_max_pooling_take_part_and_what_is_beyond_them_does_not(size: int, ceil_mode: bool) -> None:
    model, x = PaddedPool(ceil_mode).eval(), zoo.images(2, size)
    found = GaiaZ(model, engine="compiled", runtime="native").score(x)
    torch.testing.assert_close(found.logits, model(x), rtol=1e-4, atol=1e-5)
