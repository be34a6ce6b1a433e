"""Active units counted by the kernel that writes the map."""

from collections.abc import Callable
from math import prod

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from gaia_fast import GaiaZ
from gaia_fast.compiler.ir.passes import Pass
from gaia_fast.compiler.passes.relu_counts import are_beyond, count_in_relus
from gaia_fast.compiler.pipeline import RECORDED, cuda, run_passes
from gaia_fast.compiler.program import Program

import zoo
from graphs import rewritten, targets

aten = torch.ops.aten
RELU_FORWARD_COUNT = torch.ops.gaia_fast.relu_forward_count.default


class Blocks(nn.Module):
    """Residual blocks: with an identity, with a projection, and, the last one, of two convolutions of one map."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(*zoo.conv_norm(3, 16), nn.ReLU())
        self.same = nn.Sequential(*zoo.conv_norm(16, 16), nn.ReLU(), *zoo.conv_norm(16, 16))
        self.long = nn.Sequential(*zoo.conv_norm(16, 24, 2), nn.ReLU(), *zoo.conv_norm(24, 24))
        self.short = nn.Sequential(*zoo.conv_norm(16, 24, 2, 1))
        self.fc = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(self.same(x) + x)
        x = torch.relu(self.long(x) + self.short(x))
        return self.fc(x.mean((2, 3)))


class Ends(nn.Module):
    """A convolution and a ReLU, with another end to each network."""

    def __init__(self, end: Callable[[Tensor], Tensor], activation: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.other = nn.Sequential(*zoo.conv_norm(3, 8)), nn.Sequential(*zoo.conv_norm(8, 8))
        self.end, self.activation, self.fc = end, activation, nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.end(self.activation(self.other(torch.relu(self.one(x))))))


def program(model: nn.Module, x: Tensor) -> Program:
    prepared = GaiaZ(model.eval(), engine="compiled", runtime="eager").prepare(x).program(x)
    assert prepared is not None
    return prepared.program


def with_counts(graph: fx.GraphModule, backend: str | None = None) -> fx.GraphModule:
    def count(module: fx.GraphModule) -> None:
        count_in_relus(module, backend=backend)

    return rewritten([Pass("count in ReLUs", count)], graph)


@pytest.mark.parametrize("backend", [None, "torch"])
def test_residual_blocks(backend: str | None) -> None:
    """Every map is counted as it is written, and every bias is added there."""
    x = zoo.images(3)
    made = program(Blocks(), x)
    found = with_counts(made.graph, backend)
    assert targets(made.graph).count(aten.relu.default) == targets(found).count(RELU_FORWARD_COUNT) == 5
    for target in (aten.relu.default, aten.gt.Scalar, aten.add.Tensor, aten.sum.dim_IntList):
        assert target not in targets(found)
    convolutions = [node for node in found.graph.nodes if node.target is aten.convolution.default]
    assert [node.args[2] for node in convolutions] == [None] * 6
    with torch.no_grad():
        for batch in (x, x[:1]):
            expected = dict(zip(made.outputs, made.graph(batch), strict=True))
            for name, each in zip(made.outputs, found(batch), strict=True):
                torch.testing.assert_close(each, expected[name], rtol=1e-5, atol=1e-5, msg=name)


class Maps(fx.Interpreter):  # type: ignore[misc]
    """Runs a graph, and keeps what its ReLUs give, or the kernels in their place: maps, and their counts."""

    def __init__(self, graph: fx.GraphModule, wide: bool = False) -> None:
        super().__init__(graph)
        self.wide, self.maps, self.counts = wide, list[Tensor](), list[Tensor]()

    def fetch_attr(self, target: str) -> Tensor:
        value: Tensor = super().fetch_attr(target)
        return value.double() if self.wide else value

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if n.target is aten.relu.default:
            self.maps.append(value)
        elif n.target is RELU_FORWARD_COUNT:
            self.maps.append(value[0])
            self.counts.append(value[1])
        return value

    def of(self, x: Tensor) -> "Maps":
        with torch.no_grad():
            self.run(x.double() if self.wide else x)
        return self


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rounding(dtype: torch.dtype) -> None:
    """Each map is as far from float64 as PyTorch's own at most twice, in half precision as well."""
    x = zoo.images(3).to(dtype)
    graph = program(Blocks().to(dtype), x).graph
    own, plain, exact = Maps(with_counts(graph)).of(x), Maps(graph).of(x), Maps(graph, wide=True).of(x)
    assert len(own.maps) == len(plain.maps) == len(exact.maps) == 5
    for found, usual, truth in zip(own.maps, plain.maps, exact.maps, strict=True):
        assert found.dtype == dtype
        error, allowed = ((each.double() - truth).norm() for each in (found, usual))
        assert error <= 2 * allowed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_counts_are_of_what_is_written(dtype: torch.dtype) -> None:
    x = zoo.images(3).to(dtype)
    found = Maps(with_counts(program(Blocks().to(dtype), x).graph)).of(x)
    assert len(found.counts) == 5
    for y, count in zip(found.maps, found.counts, strict=True):
        assert torch.equal((y > 0).float().sum((2, 3)), count)


def test_a_sum_is_no_count() -> None:
    """What is summed of a map besides stays as it is."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 8, 3)

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.relu(
            aten.convolution(x, convolution.weight, convolution.bias, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
        )
        return y.sum((2, 3)), (y > 0).to(torch.float32).sum((2, 3))

    x = zoo.images(2)
    graph = run_passes(RECORDED, make_fx(both, tracing_mode="fake", _allow_non_fake_inputs=True)(x))
    found = with_counts(graph)
    assert targets(found).count(RELU_FORWARD_COUNT) == 1
    assert targets(found).count(aten.sum.dim_IntList) == 1
    with torch.no_grad():
        for one, other in zip(found(x), both(x), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_an_upper_bound_is_left_alone() -> None:
    x = zoo.images(2)
    made = program(Ends(lambda y: y.mean((2, 3)), nn.functional.relu6), x)
    assert targets(with_counts(made.graph)).count(RELU_FORWARD_COUNT) == 1


def test_a_convolution_that_is_read_besides_is_left_alone() -> None:
    """Its result needs its bias; and the ReLU of what is in memory already costs no kernel more."""

    def end(y: Tensor) -> Tensor:
        return (torch.relu(y) + y).mean((2, 3))

    x = zoo.images(2)
    made = program(Ends(end, lambda y: y), x)
    found = with_counts(made.graph)
    assert targets(found).count(aten.relu.default) >= 1
    with torch.no_grad():
        for one, other in zip(found(x), made.graph(x), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_an_image_that_makes_a_nan_has_logits_that_are_none() -> None:
    """The kernel counts a NaN, a comparison does not: neither count is ever taken for one."""
    x = zoo.images(3)
    made = program(Blocks(), x)
    found = with_counts(made.graph)
    large = x.clone()
    large[1] *= 3e38 / large[1].abs().amax()
    with torch.no_grad():
        results = [dict(zip(made.outputs, graph(large), strict=True)) for graph in (made.graph, found)]
        alone = dict(zip(made.outputs, found(x), strict=True))
    assert [bool(each) for each in results[1]["logits"].isfinite().all(1)] == [True, False, True]
    assert torch.equal(results[0]["logits"].isfinite(), results[1]["logits"].isfinite())
    for name in made.outputs:
        assert torch.equal(results[1][name][[0, 2]], alone[name][[0, 2]])


@pytest.mark.parametrize(("images", "expected"), [(1, False), (2, False), (3, True), (100, True)])
def test_the_cache_decides(images: int, expected: bool) -> None:
    """With two images' maps in half the cache."""
    made = program(Blocks(), zoo.images(2))
    maps = [node for node in made.graph.graph.nodes if node.target is aten.relu.default]
    an_image = sum(4 * prod(node.meta["val"].shape[1:]) for node in maps)
    l2_bytes = 2 * 2 * an_image
    assert are_beyond(l2_bytes, images, maps) == expected
    found = rewritten(cuda(images, l2_bytes), made.graph)
    assert (RELU_FORWARD_COUNT in targets(found)) == expected
    assert RELU_FORWARD_COUNT not in targets(rewritten(cuda(images, l2_bytes, kernels=False), made.graph))
