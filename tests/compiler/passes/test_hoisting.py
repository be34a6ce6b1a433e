from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from gaia_fast.compiler.pipeline import FOLD_BATCH_CONSTANTS, SINK_BROADCASTS

from graphs import targets

aten = torch.ops.aten


def traced(function: Callable[[Tensor], Tensor], x: Tensor) -> fx.GraphModule:
    return make_fx(function, tracing_mode="symbolic")(x)


def spread(v: Tensor) -> Tensor:
    return v.reshape(v.shape[0], 8, 1, 1).expand(v.shape[0], 8, 3, 5)


KEPT = {
    "divided": (lambda v: aten.div.Scalar(spread(v), 15) + 1, aten.div.Scalar),
    "averaged": (lambda v: aten.mean.dim(spread(v), [2, 3]) + 1, None),
    "averaged, axes kept": (lambda v: aten.mean.dim(spread(v), [-1, -2], True) + 1, None),
    "both": (lambda v: aten.mean.dim(aten.div.Scalar(spread(v), 15), [2, 3]) + 1, aten.div.Scalar),
    "one position": (lambda v: aten.mean.dim(v.reshape(v.shape[0], 8, 1, 1), [2, 3]) + 1, None),
}


@pytest.mark.parametrize(("function", "left"), KEPT.values(), ids=KEPT)
def test_little_is_computed_before_it_is_spread_out(function: Callable[[Tensor], Tensor], left: object) -> None:
    x = torch.randn(2, 8)
    graph = SINK_BROADCASTS(traced(function, x))
    assert torch.allclose(graph(x), function(x))
    assert aten.mean.dim not in targets(graph)
    for node in graph.graph.nodes:
        if node.target is left:
            assert tuple(node.meta["val"].shape[1:]) == (8, 1, 1)


OTHERS = {
    "over channels": lambda v: aten.mean.dim(spread(v), [1]),
    "over images": lambda v: aten.mean.dim(spread(v), [0]),
    "of more": lambda v: aten.mean.dim(v.reshape(v.shape[0], 8, 1).expand(-1, 8, 4).unsqueeze(3), [1, 2]),
    "of another map": lambda v: aten.mean.dim(aten.div.Scalar(v.reshape(v.shape[0], 2, 2, 2), 3), [2, 3]),
    "spread over images, too": lambda v: aten.mean.dim(v[:1].reshape(1, 8, 1, 1).expand(v.shape[0], 8, 3, 5), [2, 3]),
    "axes put in front": lambda v: aten.mean.dim(v.expand(4, 5, v.shape[0], 8), [2, 3]),
}


@pytest.mark.parametrize("function", OTHERS.values(), ids=OTHERS)
def test_other_means_stay(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(3, 8)
    graph = SINK_BROADCASTS(traced(function, x))
    assert torch.equal(graph(x), function(x))
    assert aten.mean.dim in targets(graph)


def test_what_is_the_same_for_each_image_becomes_a_constant() -> None:
    def function(x: Tensor) -> Tensor:
        seed = torch.ones(x.shape[0], 8).reshape(x.shape[0], 8, 1, 1).expand(-1, 8, 3, 5) / 15
        return x + seed

    x = torch.randn(2, 8, 3, 5)
    graph = FOLD_BATCH_CONSTANTS(SINK_BROADCASTS(traced(function, x)))
    assert set(targets(graph)) == {aten.sym_size.int, aten.expand.default, aten.add.Tensor}
    for images in (1, 2, 5):
        y = torch.randn(images, 8, 3, 5)
        assert torch.equal(graph(y), function(y))


DIFFERENT = {
    "numbered images": lambda x: x + torch.arange(x.shape[0]).reshape(-1, 1),
    "a share of the images": lambda x: x / x.shape[0] + torch.ones(x.shape[0], 8) / x.shape[0],
    "every third image": lambda x: x + torch.ones(x.shape[0], 8) * (x.shape[0] // 3),
    "no less than their number": lambda x: x + torch.full((x.shape[0], 8), 4.0).clamp(min=x.shape[0]),
    "summed over images": lambda x: x + torch.ones(x.shape[0], 8).sum(0, keepdim=True).div(3).floor(),
    "as many channels as images": lambda x: torch.cat([x, torch.ones(x.shape[0], x.shape[0])], 1),
}


@pytest.mark.parametrize("function", DIFFERENT.values(), ids=DIFFERENT)
def test_what_differs_between_images_stays(function: Callable[[Tensor], Tensor]) -> None:
    graph = FOLD_BATCH_CONSTANTS(traced(function, torch.randn(3, 8)))
    for images in (2, 3, 5):
        y = torch.randn(images, 8)
        assert torch.equal(graph(y), function(y))
