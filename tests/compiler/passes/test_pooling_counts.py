"""What is counted of the positions that a max-pooling chose, without the map in which they are marked."""

from collections.abc import Callable
from math import inf, nan
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from gaia_fast import GaiaZ
from gaia_fast.compiler.pipeline import COUNT_POOLED, RECORDED, run_passes
from gaia_fast.compiler.sparsity.patterns import (
    ActiveUnits,
    Dense,
    InInterval,
    Intersection,
    MaxPoolArgmax,
    NonZero,
    Pattern,
)

import zoo
from graphs import rewritten, targets

aten = torch.ops.aten

Conditions = Callable[[fx.Node], Pattern | None]
# What may be asked of the pooling's input where a window chose it.
CONDITIONS: dict[str, Conditions] = {
    "none": lambda x: None,
    "relu": ActiveUnits,
    "relu6": lambda x: ActiveUnits(x, 0.0, 6.0),
    "clamp": lambda x: InInterval(x, -1.0, 1.0),
    "non-zero": NonZero,
}
# (kernel, stride, padding, dilation, ceil): windows that overlap and do not, over the edge, dilated, and that skip.
POOLS: dict[str, tuple[Any, ...]] = {
    "as in ResNet": (3, 2, 1),
    "side by side": (2, 2),
    "no stride given": (2,),
    "each position": (3, 1, 1),
    "oblong": ((2, 3), (1, 2), (1, 0)),
    "over the edge": (3, 2, 0, 1, True),
    "with gaps": (2, 3),
    "dilated": (2, 2, 1, 2),
    "dilated in strides": (3, 2, 1, 3),
    "one window": ((9, 11), 1),
}
VALUES = torch.tensor([-1.0, -0.0, 0.0, 0.5, 1.0, 1.0, 7.0, inf, -inf, nan])


def counting(pool: tuple[Any, ...], conditions: Conditions, some: bool) -> Callable[[Tensor, Tensor], tuple[Tensor]]:
    """The counts as GAIA-Z has them, of an image, and of what is non-zero of the windows' gradient."""

    def count(x: Tensor, windows: Tensor) -> tuple[Tensor]:
        graph = fx.Graph()
        nodes = [graph.placeholder(name) for name in ("x", "windows")]
        nodes[0].meta["val"] = x
        pooling = graph.call_function(aten.max_pool2d_with_indices.default, (nodes[0], *pool))
        pattern: Pattern = MaxPoolArgmax(pooling, NonZero(nodes[1]) if some else Dense())
        if (condition := conditions(nodes[0])) is not None:
            pattern = Intersection(condition, pattern)
        values = {nodes[0]: x, nodes[1]: windows, pooling: aten.max_pool2d_with_indices(x, *pool)}
        return (pattern.mask(values).to(torch.float32).sum((2, 3)),)

    return count


def traced(count: Callable[..., Any], *examples: Tensor) -> fx.GraphModule:
    return run_passes(RECORDED, make_fx(count, tracing_mode="fake", _allow_non_fake_inputs=True)(*examples))


def values(shape: tuple[int, ...], seed: int) -> Tensor:
    """Few different values: many windows choose among equals."""
    generator = torch.Generator().manual_seed(seed)
    return VALUES[torch.randint(len(VALUES), shape, generator=generator)]


def windows_of(x: Tensor, pool: tuple[Any, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1)
    pooled, _ = aten.max_pool2d_with_indices(x, *pool)
    return torch.randint(0, 2, pooled.shape, generator=generator).float()


@pytest.mark.parametrize("some", [False, True], ids=["all windows", "some windows"])
@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("name", POOLS)
def test_counts_are_those_of_the_map(name: str, condition: str, some: bool) -> None:
    pool = POOLS[name]
    x = values((2, 3, 9, 11), 0)
    count = counting(pool, CONDITIONS[condition], some)
    graph = traced(count, x, windows_of(x, pool, 0))
    assert aten.scatter_add.default in targets(graph)
    made = rewritten([COUNT_POOLED], graph)
    assert aten.scatter_add.default not in targets(made)
    for seed in range(5):
        x = values((2, 3, 9, 11), seed)
        windows = windows_of(x, pool, seed)
        (found,), (expected,) = made(x, windows), count(x, windows)
        assert found.dtype == expected.dtype
        assert found.tolist() == expected.tolist()


@settings(max_examples=60)
@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    ceil=st.booleans(),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    condition=st.sampled_from(sorted(CONDITIONS)),
    some=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_windows(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    padding: tuple[int, int],
    ceil: bool,
    size: tuple[int, int],
    condition: str,
    some: bool,
    seed: int,
) -> None:
    pool = (list(kernel), list(stride), list(padding), list(dilation), ceil)
    assume(all(2 * p <= k for p, k in zip(padding, kernel, strict=True)))
    x = values((2, 2, *size), seed)
    try:
        windows = windows_of(x, pool, seed)
        count = counting(pool, CONDITIONS[condition], some)
        (expected,) = count(x, windows)
    except (RuntimeError, IndexError):  # no output at all, or an index that is none
        assume(False)
    graph = traced(count, x, windows)
    (found,) = rewritten([COUNT_POOLED], graph)(x, windows)
    assert found.tolist() == expected.tolist()


def test_indices_of_empty_windows_are_left_alone() -> None:
    """What a window that holds no position chooses is some other position, or none at all."""
    pool = ([1, 2], [1, 1], [0, 1], [1, 3])
    x = values((1, 1, 3, 2), 0)
    graph = traced(counting(pool, CONDITIONS["relu"], False), x[:, :, :1].expand(2, 1, 3, 2), x)
    assert aten.scatter_add.default in targets(rewritten([COUNT_POOLED], graph))


def test_many_windows_at_a_position_are_left_alone() -> None:
    x = values((2, 3, 9, 11), 0)
    graph = traced(counting((5, 1, 2), CONDITIONS["relu"], False), x, x)
    assert aten.scatter_add.default in targets(rewritten([COUNT_POOLED], graph))


def test_a_mask_that_is_needed_stays() -> None:
    """Nothing is saved by counting otherwise what is made all the same."""
    pool = POOLS["as in ResNet"]

    def both(x: Tensor, windows: Tensor) -> tuple[Tensor, Tensor]:
        pooled, indices = aten.max_pool2d_with_indices(x, *pool)
        flat = pooled.new_zeros((x.shape[0], 3, 99))
        ones = torch.ones_like(pooled)
        flat = flat.scatter_add(2, indices.reshape(x.shape[0], 3, -1), ones.reshape(x.shape[0], 3, -1))
        mask = (flat.reshape(x.shape[0], 3, 9, 11) > 0) & (x > 0)
        return mask.to(torch.float32).sum((2, 3)), mask.to(torch.float32).amax((2, 3))

    x = values((2, 3, 9, 11), 0)
    graph = traced(both, x, x)
    made = rewritten([COUNT_POOLED], graph)
    assert targets(made) == targets(graph)


def test_two_counts_of_one_map() -> None:
    pool = POOLS["as in ResNet"]
    x = values((2, 3, 9, 11), 0)
    windows = windows_of(x, pool, 0)

    def both(x: Tensor, windows: Tensor) -> tuple[Tensor, Tensor]:
        graph = fx.Graph()
        nodes = [graph.placeholder(name) for name in ("x", "windows")]
        nodes[0].meta["val"] = x
        pooling = graph.call_function(aten.max_pool2d_with_indices.default, (nodes[0], *pool))
        chosen = MaxPoolArgmax(pooling, NonZero(nodes[1]))
        known: dict[Any, Any] = {nodes[0]: x, nodes[1]: windows, pooling: aten.max_pool2d_with_indices(x, *pool)}
        patterns = (chosen, Intersection(chosen, ActiveUnits(nodes[0])))
        one, other = (each.mask(known).to(torch.float32).sum((2, 3)) for each in patterns)
        return one, other

    graph = traced(both, x, windows)
    assert targets(graph).count(aten.scatter_add.default) == 1
    made = rewritten([COUNT_POOLED], graph)
    assert aten.scatter_add.default not in targets(made)
    for found, expected in zip(made(x, windows), both(x, windows), strict=True):
        assert found.tolist() == expected.tolist()


class Stem(nn.Module):
    """A stem as ResNet's: norm, ReLU and max-pooling, with a block behind that reads not all windows."""

    def __init__(self, pool: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.pool = nn.Sequential(*zoo.conv_norm(3, 16), activation), pool
        self.last, self.fc = nn.Sequential(*zoo.conv_norm(16, 16), nn.ReLU()), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.last(self.pool(self.stem(x))).mean((2, 3)))


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6(), nn.Identity()], ids=lambda each: type(each).__name__)
def test_networks(activation: nn.Module) -> None:
    model, x = Stem(nn.MaxPool2d(3, 2, 1), activation).eval(), zoo.images(3, 17)
    x[1, :, 4:12, 4:12] = 0.5  # flat: many maxima in one window
    prepared = GaiaZ(model, engine="compiled", runtime="eager").prepare(x).program(x)
    assert prepared is not None
    graph = prepared.program.graph
    assert aten.scatter_add.default in targets(graph)
    made = rewritten([COUNT_POOLED], graph)
    assert aten.scatter_add.default not in targets(made)
    with torch.no_grad():
        for batch in (x, x[:1]):
            for found, expected in zip(made(batch), graph(batch), strict=True):
                assert torch.equal(found, expected)
