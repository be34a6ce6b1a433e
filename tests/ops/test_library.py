"""The operations in PyTorch's registry: what torch.compile, make_fx and torch.export make of them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from gaia_fast import ops
from gaia_fast.ops.check_results import check_results, pieces_of
from gaia_fast.ops.copy_and_check import copy_and_check
from gaia_fast.ops.count_and_score import scratch_size

from cases import CHANNELS_LAST, INSTRUMENTED, INTERPRETED, LAYOUT, NCHW, Layout, activation, gradient, norm_scale

if INSTRUMENTED or INTERPRETED:
    pytest.skip("the registry is tested with the kernels that users have", allow_module_level=True)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LAYOUTS = (NCHW, CHANNELS_LAST, LAYOUT["crop"])
SHAPE = (2, 3, 5, 4)
WIDTHS, AREAS = [2, 5], [0.25, 1.0]


def map_of(make: Callable[..., Any], layout: Layout = NCHW, images: int = 2) -> Tensor:
    return make((images, *SHAPE[1:]), torch.float32, DEVICE, layout).tensor


def calls(layout: Layout, images: int = 2) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Of every operation: a call of the public function, and its tensors."""
    g, y = map_of(gradient, layout, images), map_of(activation, layout, images)
    scale = norm_scale(3, torch.float32, DEVICE)
    moments = torch.rand(images, 7, device=DEVICE)
    output = torch.rand(images, device=DEVICE) + 1
    return {
        "channel_moments": (lambda g: ops.channel_moments(g), (g,)),
        "relu_backward_moments": (lambda g, y, s: ops.relu_backward_moments(g, y, s), (g, y, scale)),
        "relu_backward_moments, no mask": (lambda g: ops.relu_backward_moments(g, None), (g,)),
        "relu_forward_count": (lambda x, s, r: ops.relu_forward_count(x, s, s, r), (g, scale, y)),
        "relu_forward_count, alone": (lambda x: ops.relu_forward_count(x), (g,)),
        "count_and_score": (
            lambda y, s: ops.count_and_score([y], [s], [0, 1, 0], [0.5] * 3, [6.0], [0, 1, 3]),
            (y, moments),
        ),
        "count_and_score, of sums": (lambda s: ops.count_and_score([], [s], [0], [0.5]), (moments,)),
        "frobenius": (lambda m, o: ops.frobenius(m, WIDTHS, AREAS, o, 3.0), (moments, output)),
        "frobenius, alone": (lambda m: ops.frobenius(m, WIDTHS, AREAS), (moments,)),
    }


CALLS = tuple(calls(NCHW))
each_call = pytest.mark.parametrize("name", CALLS)
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=str)


def assert_equal(got: Any, expected: Any) -> None:
    for a, b in zip(*(each if isinstance(each, tuple) else (each,) for each in (got, expected)), strict=True):
        assert torch.equal(a, b)
        assert a.stride() == b.stride()


@each_layout
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(layout: Layout, requires_grad: bool) -> None:
    g, y = map_of(gradient, layout).detach(), map_of(activation, layout).detach()
    scale = norm_scale(3, torch.float32, DEVICE)
    moments = torch.rand(2, 7, device=DEVICE)
    scratch = torch.zeros(2, scratch_size([SHAPE[1:]], [0, 0, 1]), dtype=torch.int32, device=DEVICE)
    for each in (g, y, moments):
        each.requires_grad_(requires_grad)
    for op, arguments in (
        (torch.ops.gaia_fast.channel_moments, (g,)),
        (torch.ops.gaia_fast.relu_backward_moments, (g, y, scale)),
        (torch.ops.gaia_fast.relu_backward_moments, (g, None, None)),
        (torch.ops.gaia_fast.relu_forward_count, (g, scale, scale, y)),
        (torch.ops.gaia_fast.relu_forward_count, (g,)),
        (torch.ops.gaia_fast.frobenius, (moments, WIDTHS, AREAS, moments[:, 0].detach().clone(), 2.5)),
        (torch.ops.gaia_fast.frobenius, (moments, WIDTHS, AREAS)),
        (torch.ops.gaia_fast.count_and_score, ([y, y], [moments], [2, 0, 1], [1.0] * 3, [6.0, 1.0], [1, 0, 1], 2.5)),
        (torch.ops.gaia_fast.count_and_score, ([y], [], [0], [1.0], [], [0, 0, 1], 2.0, scratch)),
    ):
        torch.library.opcheck(op.default, arguments)
        result = op(*arguments)
        for each in result if isinstance(result, tuple) else (result,):
            assert not each.requires_grad


@each_call
@each_layout
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx(name: str, layout: Layout, mode: str) -> None:
    call, tensors = calls(layout)[name]
    graph = make_fx(call, tracing_mode=mode)(*tensors)
    assert any(str(node.target).startswith("gaia_fast.") for node in graph.graph.nodes)
    assert_equal(graph(*tensors), call(*tensors))
    if mode == "symbolic":
        call, tensors = calls(layout, images=5)[name]
        assert_equal(graph(*tensors), call(*tensors))


@each_call
@each_layout
def test_export(name: str, layout: Layout) -> None:
    call, tensors = calls(layout)[name]

    class Module(torch.nn.Module):
        def forward(self, *inputs: Tensor) -> Any:
            return call(*inputs)

    batch = torch.export.Dim("batch", min=1, max=64)
    dynamic = tuple({0: batch} if each.shape[0] == 2 else None for each in tensors)
    program = torch.export.export(Module(), tensors, dynamic_shapes={"inputs": dynamic})
    assert_equal(program.module()(*tensors), call(*tensors))
    _, more = calls(layout, images=5)[name]
    assert_equal(program.module()(*more), call(*more))


def everything(g: Tensor, y: Tensor, scale: Tensor, moments: Tensor) -> tuple[Tensor, ...]:
    rectified, nonzero = ops.relu_forward_count(g * 2, scale, None, y)
    grad_in, masked = ops.relu_backward_moments(rectified, y, scale)
    out = moments.new_empty(3, g.shape[0], 9)[:, :, 3:6]
    columns = ops.channel_moments(grad_in + 1, out=out)
    counts = ops.count_and_score([rectified, y], [moments], [0, 2, 1], [0.5] * 3, windows=[0, 0, 2])
    return *counts, nonzero, masked, columns + 1, ops.frobenius(moments, WIDTHS, AREAS, masked[2, :, 0] + 1)


@pytest.mark.parametrize("compiler", ["eager", "aot_eager", "inductor"])
def test_compile_without_a_break(compiler: str) -> None:
    compiled = torch.compile(everything, fullgraph=True, backend=compiler)
    for images in (2, 5):
        arguments = (
            map_of(gradient, NCHW, images),
            map_of(activation, NCHW, images),
            norm_scale(3, torch.float32, DEVICE),
            torch.rand(images, 7, device=DEVICE),
        )
        for got, expected in zip(compiled(*arguments), everything(*arguments), strict=True):
            torch.testing.assert_close(got, expected)


def test_a_backend_can_be_asked_for_in_a_graph() -> None:
    g = map_of(gradient)
    graph = make_fx(lambda g: ops.channel_moments(g, backend="torch"))(g)
    (node,) = (node for node in graph.graph.nodes if str(node.target).startswith("gaia_fast."))
    assert "torch" in (*node.args, *node.kwargs.values())


def test_eager_calls_skip_the_dispatcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its registry is emptied: whatever goes there fails."""
    g = map_of(gradient)
    monkeypatch.setattr(torch.ops, "gaia_fast", None)
    ops.channel_moments(g)
    ops.relu_backward_moments(g, g)
    ops.relu_forward_count(g)
    ops.frobenius(torch.ones(2, 7, device=DEVICE), WIDTHS, AREAS)
    ops.count_and_score([g], [torch.ones(2, 7, device=DEVICE)], [0, 1], AREAS)


def test_opcheck_of_the_checks() -> None:
    """These write to their arguments."""
    x = map_of(gradient).detach()
    finite = torch.empty((2, 1), dtype=torch.uint8, device=DEVICE)
    copy = torch.ops.gaia_fast.copy_and_check.default
    torch.library.opcheck(copy, (x, torch.empty_like(x), finite, "torch"))
    memory = [torch.arange(20, device=DEVICE).to(torch.uint8)]
    logits, ones = torch.rand(2, 5, device=DEVICE), torch.ones(2, device=DEVICE)
    counts = torch.zeros(3, dtype=torch.int64, device=DEVICE)
    check = torch.ops.gaia_fast.check_results.default
    alone: tuple[Any, ...] = (logits, [ones], None, [], None, [], None, None, None, None, "torch")
    torch.library.opcheck(check, alone)
    given = (logits, [ones], logits + 1, [ones], finite, memory, memory[0], pieces_of(memory))
    torch.library.opcheck(check, (*given, counts, counts.new_zeros(2), "torch"))
    assert check(*given, counts, counts.new_zeros(2), "torch").tolist() == [True, True]


def test_traced_calls_of_the_checks() -> None:
    x = map_of(gradient)

    def checked(x: Tensor) -> tuple[Tensor, Tensor]:
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        finite = copy_and_check(x, out, backend="torch")
        return out, check_results(out.flatten(1), [out[:, 0, 0, 0]], finite=finite, backend="torch")

    for compiler in ("eager", "aot_eager"):
        out, answers = torch.compile(checked, fullgraph=True, backend=compiler)(x)
        assert torch.equal(out, x)
        assert answers.tolist() == [True, True]
