"""Graphs in functional form: they compute what PyTorch's own functional form does, or are left to it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from gaia_fast.compiler.frontend.functionalization import functional

import zoo


class Body(nn.Module):
    def __init__(self, body: Callable[..., Any]) -> None:
        super().__init__()
        self.body = body
        self.buffer: Tensor
        self.register_buffer("buffer", torch.ones(1, 6, 4, 4))

    def forward(self, x: Tensor) -> Any:
        return self.body(x) if self.body.__code__.co_argcount == 1 else self.body(x, self.buffer)


def graphs(model: nn.Module, x: Tensor) -> tuple[bool, fx.GraphModule, fx.GraphModule]:
    """Whether it was done here, its result, and PyTorch's."""
    with torch.no_grad():
        exported = torch.export.export(model.eval(), (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        mine, theirs = exported.module(check_guards=False), exported.run_decompositions({}).module(check_guards=False)
    assert isinstance(mine, fx.GraphModule)
    assert isinstance(theirs, fx.GraphModule)
    done = functional(mine)
    mine.recompile()
    return done, mine, theirs


def check(mine: fx.GraphModule, expected: Callable[[Tensor], Any], x: Tensor) -> None:
    for images in (x, torch.cat([x, -x])):
        given = images.clone()
        assert torch.equal(mine(given), expected(images.clone()))
        assert torch.equal(given, images), "the images were written to"
    for node in mine.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload):
            assert not node.target._schema.is_mutable


@pytest.mark.parametrize("name", zoo.ZOO)
def test_networks(name: str) -> None:
    x = zoo.images(2)
    done, mine, theirs = graphs(zoo.build(name), x)
    if done:
        check(mine, theirs, x)
    assert done


def twice(x: Tensor) -> Tensor:
    y = x * 2
    first = y.relu_()
    second = first.add_(1)
    return y + first + second


def read_before_and_after(x: Tensor) -> Tensor:
    y = x + 1
    before = y.exp()
    y.mul_(3)
    return before + y


def through_dropout(x: Tensor) -> Tensor:
    y = x + 1
    dropped = F.dropout(y, training=False)
    dropped.relu_()
    return y + dropped


def returned_in_place(x: Tensor) -> Tensor:
    return (x + 1).clamp_(0, 1)


def filled(x: Tensor) -> Tensor:
    y = x + 1
    y.zero_()
    return y + x


def chunks_of_an_uneven_axis(x: Tensor) -> Tensor:
    a, b = x.chunk(2, 3)
    return F.pad(a, (0, 0)) + b if a.shape == b.shape else torch.cat([b, a], 3)


def chunks_that_are_fewer_than_asked_for(x: Tensor) -> Tensor:
    return torch.cat([each * (i + 1) for i, each in enumerate(x.chunk(4, 1))], 1)


def like_others(x: Tensor) -> Tensor:
    scale = x.mean((2, 3), keepdim=True).expand_as(x)
    filters = torch.arange(6.0).reshape_as(torch.ones(1, 6, 1, 1))
    return x * scale * filters


def flat_and_contiguous(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous().flatten(1).mul(2).flatten(1)


@pytest.mark.parametrize(
    "body",
    [
        twice,
        read_before_and_after,
        through_dropout,
        returned_in_place,
        filled,
        chunks_of_an_uneven_axis,
        chunks_that_are_fewer_than_asked_for,
        flat_and_contiguous,
        like_others,
    ],
)
def test_what_has_no_other_name_is_written_out(body: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(3, 6, 4, 4)
    done, mine, theirs = graphs(Body(body), x)
    assert done
    if body is not through_dropout:  # PyTorch copies there, and writes to the copy alone
        check(mine, theirs, x)
    check(mine, body, x)


def a_view_is_written(x: Tensor) -> Tensor:
    y = x + 1
    y.view(-1).mul_(2)
    return y


def what_has_a_view_is_written(x: Tensor) -> Tensor:
    y = x + 1
    view = y.flatten(1)
    y.relu_()
    return view + 0


def a_chunk_is_written(x: Tensor) -> Tensor:
    y = x + 1
    y.chunk(2, 1)[0].mul_(2)
    return y


def a_slice_is_written(x: Tensor) -> Tensor:
    y = x + 1
    y[:, :2] = 0
    return y


def the_images_are_written(x: Tensor) -> Tensor:
    return x.relu_() + 1


def a_buffer_is_written(x: Tensor, buffer: Tensor) -> Tensor:
    return x + buffer.add_(1)


def what_is_written_is_narrower(x: Tensor, buffer: Tensor) -> Tensor:
    y = x + 1
    y.mul_(buffer)
    return y + 0


def a_result_is_given_its_place(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    torch.add(x, 1, out=y)
    return y + 0


def statistics_of_the_batch(x: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, training=True)


def dropped_at_random(x: Tensor) -> Tensor:
    return F.dropout(x + 1, training=True)


@pytest.mark.parametrize(
    "body",
    [
        a_view_is_written,
        what_has_a_view_is_written,
        a_chunk_is_written,
        a_slice_is_written,
        the_images_are_written,
        a_buffer_is_written,
        what_is_written_is_narrower,
        a_result_is_given_its_place,
        statistics_of_the_batch,
        dropped_at_random,
    ],
)
def test_what_may_have_another_name_is_left_to_pytorch(body: Callable[..., Tensor]) -> None:
    model = Body(body)
    if body is what_is_written_is_narrower:
        model.double()
    assert not graphs(model, torch.randn(3, 6, 4, 4))[0]


def test_every_name_of_what_is_written_holds_it_afterwards() -> None:
    """The exporter names what is written by the last who wrote; a graph may go on with any name."""
    x = torch.randn(3, 6, 4, 4)
    with torch.no_grad():
        exported = torch.export.export(Body(twice), (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    graph = exported.module(check_guards=False)
    assert isinstance(graph, fx.GraphModule)
    made, relu, added, *_ = (node for node in graph.graph.nodes if isinstance(node.target, torch._ops.OpOverload))
    assert (relu.target, added.target) == (torch.ops.aten.relu_.default, torch.ops.aten.add_.Tensor)
    added.replace_all_uses_with(made)
    assert functional(graph)
    graph.recompile()
    check(graph, twice, x)
