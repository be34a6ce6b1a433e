from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from ops.marks import each_path, each_target_and_dtype, needs_speed
from torch import Tensor

from gaia_fast.errors import ArgumentError, BackendError
from gaia_fast.ops import relu_forward_count

from cases import (
    CHANNELS_LAST,
    INF,
    LAYOUT,
    LAYOUTS,
    NAN,
    NCHW,
    SHAPES,
    Layout,
    Target,
    activation,
    gradient,
    norm_scale,
    place,
)
from tolerance import assert_same_bits

LAYOUT_PAIRS = (
    *((layout, layout) for layout in LAYOUTS),
    (NCHW, CHANNELS_LAST),
    (CHANNELS_LAST, NCHW),
    (NCHW, LAYOUT["expanded_positions"]),
    (LAYOUT["crop"], LAYOUT["channels_of_a_buffer"]),
)


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def by_the_formula(x: Tensor, scale: Tensor | None, shift: Tensor | None, residual: Tensor | None) -> Tensor:
    y = x.to(wide(x.dtype))
    y = y if scale is None else y * scale.view(1, -1, 1, 1)
    y = y if shift is None else y + shift.view(1, -1, 1, 1)
    y = y if residual is None else y + residual.to(y.dtype)
    return torch.where(y <= 0, torch.zeros_like(y), y).to(x.dtype)


def assert_result(result: tuple[Tensor, Tensor], expected: Tensor, what: str = "") -> None:
    """Every operation is one IEEE operation and one rounding: nothing to tolerate."""
    y, nonzero = result
    assert_same_bits(y, expected, f"y {what}")
    assert nonzero.dtype == wide(y.dtype)
    assert torch.equal(nonzero, (expected != 0).sum((2, 3)).to(nonzero.dtype)), what


@each_target_and_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_the_formula(target: Target, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    scale = norm_scale(shape[1], dtype, target.device)
    shift = torch.linspace(-0.5, 0.5, shape[1], dtype=scale.dtype, device=target.device)
    for index, (x_layout, residual_layout) in enumerate(LAYOUT_PAIRS):
        x = gradient(shape, dtype, target.device, x_layout)
        residual = activation(shape, dtype, target.device, residual_layout)
        given = list(product((scale, None), (shift, None), (residual.tensor, None)))
        for a, b, r in target.some(given, index):
            what = f"x {x_layout}, residual {r is not None and residual_layout}, {a is not None}, {b is not None}"
            result = relu_forward_count(x.tensor, a, b, r, backend=target.backend)
            assert_result(result, by_the_formula(x.tensor, a, b, r), what)
        x.assert_untouched(f"x in layout {x_layout}")
        residual.assert_untouched(f"residual in layout {residual_layout}")


@each_target_and_dtype
def test_by_hand(target: Target, dtype: torch.dtype) -> None:
    x = torch.tensor([[[[1.0, -2.0], [0.0, 3.0]], [[4.0, -5.0], [6.0, -7.0]]]], dtype=dtype, device=target.device)
    residual = torch.tensor([[[[0.0, 5.0], [-9.0, 1.0]], [[1.0, 0.0], [3.0, -4.0]]]], dtype=dtype, device=target.device)
    scale, shift = torch.tensor([[2.0, -0.5], [1.0, 1.0]], dtype=wide(dtype), device=target.device)
    y, nonzero = relu_forward_count(x, scale, shift, residual, backend=target.backend)
    assert y.tolist() == [[[[3.0, 2.0], [0.0, 8.0]], [[0.0, 3.5], [1.0, 0.5]]]]
    assert nonzero.tolist() == [[3.0, 3.0]]


@each_path
def test_special_values(target: Target, layout: Layout) -> None:
    values = [0.0, -0.0, NAN, INF, -INF, 1e-45, -1e-45, 3e38, -3e38]
    x = place(torch.tensor(values, device=target.device).repeat(2, 5, 1, 7).view(2, 5, 7, 9), layout).tensor
    y, nonzero = relu_forward_count(x, backend=target.backend)
    assert_result((y, nonzero), by_the_formula(x, None, None, None))
    assert not torch.signbit(y[y == 0]).any()  # -0.0 is written as 0
    assert nonzero[0, 0] == 7 * 4  # NaN, infinity, the subnormal and the large one


@each_path
def test_what_rounds_to_zero_is_not_counted(target: Target, layout: Layout) -> None:
    """float16 has nothing between 0 and 6e-8: the float32 product is positive, what is written is not."""
    x = place(torch.full((1, 3, 4, 9), 2.0**-14, dtype=torch.float16, device=target.device), layout).tensor
    for factor, count in ((2.0**-10, 36), (2.0**-12, 0)):
        scale = torch.full((3,), factor, device=target.device)
        y, nonzero = relu_forward_count(x, scale, backend=target.backend)
        assert (y != 0).sum() == 3 * count
        assert nonzero.tolist() == [[count] * 3]


@needs_speed
@each_path
def test_repeats_threads_and_other_images(target: Target, layout: Layout, set_threads: Callable[[int], None]) -> None:
    shape = (5, 37, 56, 57)  # enough to wake other threads
    x = gradient(shape, torch.float32, target.device, layout).tensor
    scale = norm_scale(shape[1], torch.float32, target.device)
    set_threads(1)
    first = relu_forward_count(x, scale, backend=target.backend)
    for threads in (1, 2, 3):
        set_threads(threads)
        again = relu_forward_count(x, scale, backend=target.backend)
        assert torch.equal(again[0], first[0])
        assert torch.equal(again[1], first[1])
    alone = relu_forward_count(x[2:3], scale, backend=target.backend)
    assert torch.equal(alone[0], first[0][2:3])
    assert torch.equal(alone[1], first[1][2:3])


def test_lazily_negated_arguments(target: Target) -> None:
    x = gradient((2, 3, 4, 5), torch.float32, target.device, NCHW).tensor
    scale = norm_scale(3, torch.float32, target.device)
    expected = by_the_formula(-x, -scale, -scale, -x)
    negated = torch._neg_view
    result = relu_forward_count(negated(x), negated(scale), negated(scale), negated(x), backend=target.backend)
    assert_result(result, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 3, 4),), "x must be"),
        ((torch.zeros(2, 3, 4, 5, dtype=torch.int32),), "x must be"),
        (([1.0],), "x must be a torch.Tensor"),
        ((torch.zeros(2, 3, 4, 5), torch.zeros(4)), "scale must be"),
        ((torch.zeros(2, 3, 4, 5), None, torch.zeros(3, dtype=torch.float64)), "shift must be"),
        ((torch.zeros(2, 3, 4, 5), None, None, torch.zeros(2, 3, 4, 6)), "residual must be"),
        ((torch.zeros(2, 3, 4, 5), None, None, torch.zeros(2, 3, 4, 5).half()), "residual must be"),
    ],
)
def test_what_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(BackendError, match=f"^{message}"):
        relu_forward_count(*arguments)


def test_unknown_and_unfit_backends() -> None:
    x = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ArgumentError, match="'gpu' does not exist"):
        relu_forward_count(x, backend="gpu")
    with pytest.raises(BackendError, match="float64"):
        relu_forward_count(x.double(), backend="cpu")
