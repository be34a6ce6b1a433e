from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from gaia_fast import GaiaA, GaiaZ
from gaia_fast.compiler.ir.rewriting import copy_of
from gaia_fast.compiler.ir.types import untyped
from gaia_fast.compiler.passes.cudnn_fusion import CONVOLUTION_ADD_RELU, CONVOLUTION_RELU, FUSED
from gaia_fast.compiler.pipeline import CHANNELS_LAST, cudnn
from gaia_fast.errors import CompilationError
from gaia_fast.models import resnet18

import cudnn_stand_in
import zoo
from graphs import rewritten, targets

aten = torch.ops.aten


def program(model: nn.Module, x: Tensor, make: type[GaiaZ] | type[GaiaA] = GaiaZ) -> fx.GraphModule:
    prepared = make(model, engine="compiled", runtime="eager").prepare(x).program(x)
    assert prepared is not None
    return prepared.program.graph


@cache
def residual_network(dtype: torch.dtype = torch.float32) -> fx.GraphModule:
    torch.manual_seed(0)
    return program(resnet18(10).eval().to(dtype), torch.randn(2, 3, 16, 16, dtype=dtype))


def fused(graph: fx.GraphModule, **options: Any) -> fx.GraphModule:
    return rewritten([CHANNELS_LAST, *cudnn(**options)], graph)


def counts(graph: fx.GraphModule) -> tuple[int, int, int, int]:
    found = targets(graph)
    return tuple(  # type: ignore[return-value]
        found.count(each)
        for each in (CONVOLUTION_RELU, CONVOLUTION_ADD_RELU, aten.convolution.default, aten.relu.default)
    )


def assert_same(one: Sequence[Tensor], other: Sequence[Tensor]) -> None:
    """But for the layout, in which convolutions round otherwise."""
    for each, same in zip(one, other, strict=True):
        torch.testing.assert_close(each, same, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("make", [GaiaZ, GaiaA])
@pytest.mark.parametrize("name", ["strided_shortcut", "parallel", "dense_like"])
def test_fusing_changes_rounding_alone(name: str, make: type[GaiaZ] | type[GaiaA]) -> None:
    x = zoo.images(3, zoo.image_size(name))
    graph = program(zoo.build(name), x, make)
    with cudnn_stand_in.cudnn(), torch.no_grad():
        assert_same(graph(x), fused(graph)(x))
    assert not [node for node in graph.graph.nodes if node.target in FUSED]


def test_a_residual_network() -> None:
    """Two stages of two blocks each after the first: their first block's shortcut has a convolution of its own."""
    graph, x = residual_network(), torch.randn(2, 3, 16, 16)
    made = fused(graph)
    assert counts(made) == (9, 8, 3, 0)
    # The shortcuts' biases are added with those of the convolutions that they are added to.
    assert [node.args[2] for node in made.graph.nodes if node.target is aten.convolution.default] == [None] * 3
    assert not untyped(made)
    with cudnn_stand_in.cudnn() as calls, torch.no_grad():
        assert_same(graph(x), made(x))
    assert len(calls) == 17


def test_those_that_are_left_out() -> None:
    # One of a plain convolution, one with a residual.
    assert counts(fused(residual_network(), but_for={1, 2})) == (8, 7, 5, 2)


class Network(nn.Module):
    """Two convolutions and a head; `between` makes of them what the head reads."""

    def __init__(self, between: Callable[["Network", Tensor], Tensor], channels: int = 4, **options: Any) -> None:
        super().__init__()
        self.between = between
        self.one = nn.Conv2d(3, 4, 3, padding=1, **options)
        self.other = nn.Conv2d(3, 4, 3, padding=1)
        self.up = nn.ConvTranspose2d(3, 4, 3, padding=1)
        self.norm, self.fc = nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.norm(self.between(self, x)).mean((2, 3)))
        return y


@pytest.mark.parametrize(
    ("between", "expected"),
    [
        (lambda net, x: net.one(x).relu(), 1),
        (lambda net, x: (net.one(x) + net.other(x)).relu(), 1),
        (lambda net, x: (net.one(x) + net.other(x).relu()).relu(), 2),
        (lambda net, x: (net.other(x).relu() + net.one(x)).relu(), 2),
        (lambda net, x: (net.one(x) + x.mean(1, keepdim=True)).relu(), 0),  # of one channel
        (lambda net, x: torch.add(net.one(x), net.other(x), alpha=2).relu(), 0),
        (lambda net, x: (net.one(x) + 1).relu(), 0),
        (lambda net, x: (net.one(x) * 2).relu(), 0),
        (lambda net, x: net.up(x).relu(), 0),
        (lambda net, x: nn.functional.relu6(net.one(x)), 0),
        (lambda net, x: (lambda y: y.relu() + y)(net.one(x)), 0),  # read before the ReLU as well
        (lambda net, x: (lambda y: y.relu() + y)(net.one(x) + net.other(x)), 0),
        (lambda net, x: (lambda y: (y + y).relu())(net.one(x)), 0),
        (lambda net, x: (lambda y: (y + net.other(x)).relu() * y)(net.one(x)), 1),  # the one that is read by it alone
    ],
)
def test_what_is_fused(between: Callable[[Network, Tensor], Tensor], expected: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 6)
    graph = program(Network(between).eval(), x)
    made = fused(graph)
    assert sum(counts(made)[:2]) == expected
    with cudnn_stand_in.cudnn(), torch.no_grad():
        assert_same(graph(x), made(x))


@pytest.mark.parametrize(
    ("dtype", "expected"), [(torch.float16, 1), (torch.bfloat16, 1), (torch.float32, 1), (torch.float64, 0)]
)
def test_dtypes(dtype: torch.dtype, expected: int) -> None:
    x = torch.randn(2, 3, 6, 6, dtype=dtype)
    model = Network(lambda net, x: net.one(x).relu()).eval().to(dtype)
    made = fused(program(model, x))
    assert sum(counts(made)[:2]) == expected
    for node in made.graph.nodes:
        if node.target in FUSED:
            assert node.meta["val"].dtype == dtype


def test_a_convolution_without_bias_gets_zeros() -> None:
    x = torch.randn(2, 3, 6, 6)
    graph = program(Network(lambda net, x: net.one(x).relu(), bias=False).eval(), x)
    made = fused(graph)
    (node,) = (node for node in made.graph.nodes if node.target is CONVOLUTION_RELU)
    assert torch.equal(getattr(made, node.args[2].target), torch.zeros(4))
    with cudnn_stand_in.cudnn(), torch.no_grad():
        assert_same(graph(x), made(x))


def test_strides_dilations_and_groups() -> None:
    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 6, (3, 1), stride=(2, 1), padding=(1, 2))
            self.second = nn.Conv2d(6, 8, 3, dilation=(1, 2), groups=2)
            self.norm, self.fc = nn.BatchNorm2d(8), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.fc(self.norm(self.second(self.first(x).relu()).relu()).mean((2, 3)))
            return y

    x = torch.randn(2, 3, 12, 10)
    graph = program(Grouped().eval(), x)
    made = fused(graph)
    assert counts(made) == (2, 0, 0, 0)
    with cudnn_stand_in.cudnn(), torch.no_grad():
        assert_same(graph(x), made(x))


@pytest.mark.parametrize(("dtype", "images"), [(torch.float32, 1), (torch.float32, 3), (torch.bfloat16, 3)])
def test_overflow_that_is_hidden_is_found(dtype: torch.dtype, images: int) -> None:
    graph = residual_network(dtype)
    made = fused(graph, hides_overflow=True)
    x = torch.randn(images, 3, 16, 16, dtype=dtype)
    with cudnn_stand_in.cudnn(cudnn_stand_in.hides_nan), torch.no_grad():
        for one, other in zip(fused(graph)(x), made(x), strict=True):
            assert torch.equal(one, other)
        seen, hidden = [], []
        for factor in (1e2, 1e9, 1e30, 1e37, float("inf"), float("nan")):
            bad = x.clone()
            bad[0] *= factor
            should = graph(bad)[0].isfinite().all(1)
            found, unguarded = made(bad)[0].isfinite().all(1), fused(graph)(bad)[0].isfinite().all(1)
            assert not (found & ~should).any(), factor
            assert found[1:].all()
            assert found[0] == (factor <= 1e9), factor
            seen.append(bool(should[0]))
            hidden.append(bool(unguarded[0] & ~should[0]))
    assert {*seen} == {True, False}
    assert any(hidden)


def test_overflow_behind_a_map_that_is_large_is_found() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 3, 6, 6)
    model = Network(lambda net, x: net.other(net.one(x).relu()[:, :3]).relu() * 1e-30).eval()
    with torch.no_grad():
        model.one.weight *= 1e17
        model.other.weight *= 1e15
    graph = program(model, x)
    assert len(looked_at(graph)) == 2
    large = x * torch.tensor([1e-8, 1e8, 1e-8])[:, None, None, None]
    with cudnn_stand_in.cudnn(cudnn_stand_in.hides_nan), torch.no_grad():
        found = [each(large)[0].isfinite().all(1).tolist() for each in (graph, fused(graph, hides_overflow=True))]
        assert found == [[True, False, True]] * 2
        assert fused(graph)(large)[0].isfinite().all()


def test_few_maps_are_looked_at() -> None:
    graph = copy_of(residual_network())
    assert [node.target for node in looked_at(graph)] == [aten.clone.default]  # the images
    for name, value in graph.named_buffers():
        if value.ndim == 4:
            setattr(graph, name, value * 1e3)
    images, *maps = looked_at(graph)
    assert images.target is aten.clone.default
    assert 1 <= len(maps) <= 5


def looked_at(graph: fx.GraphModule) -> list[fx.Node]:
    made = fused(graph, hides_overflow=True).graph.find_nodes(
        op="call_function", target=aten.linalg_vector_norm.default
    )
    return [node.args[0] for node in made if node.args[1] == float("inf")]


def test_weights_that_leave_no_room_are_refused() -> None:
    model = Network(lambda net, x: net.one(x).relu() * 1e-30).eval()
    x = torch.randn(2, 3, 6, 6)
    graph = program(model, x)
    for name, value in graph.named_buffers():
        if value.ndim == 4:
            setattr(graph, name, value * 1e30)
    with pytest.raises(CompilationError, match="may overflow whatever it is given"):
        fused(graph, hides_overflow=True)
