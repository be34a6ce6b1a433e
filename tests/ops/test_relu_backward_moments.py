from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from ops.marks import each_path, each_target_and_dtype, needs_speed
from torch import Tensor

from gaia_fast.errors import ArgumentError, BackendError
from gaia_fast.ops import channel_moments, relu_backward_moments

from cases import (
    CHANNELS_LAST,
    INF,
    LAYOUT,
    LAYOUTS,
    NAN,
    NCHW,
    SHAPES,
    TARGETS,
    Layout,
    Target,
    activation,
    gradient,
    norm_scale,
    on_device,
    place,
)
from tolerance import assert_moments, assert_same_bits

# g and y alike in every layout, and the mixtures that a network makes: a mean's gradient is expanded, autograd's may be
# contiguous where the activation is channels-last.
LAYOUT_PAIRS = (
    *((layout, layout) for layout in LAYOUTS),
    (NCHW, CHANNELS_LAST),
    (CHANNELS_LAST, NCHW),
    (LAYOUT["expanded_positions"], NCHW),
    (LAYOUT["expanded_positions"], CHANNELS_LAST),
    (LAYOUT["expanded_images"], LAYOUT["channels_last_crop"]),
    (LAYOUT["crop"], LAYOUT["channels_of_a_buffer"]),
)


def selected(g: Tensor, y: Tensor | None) -> Tensor:
    return g if y is None else g.masked_fill(y <= 0, 0.0)


def assert_result(
    result: tuple[Tensor, Tensor], g: Tensor, y: Tensor | None, scale: Tensor | None, what: str = ""
) -> None:
    grad_in, moments = result
    masked = selected(g, y)
    assert_moments(moments, masked, what)
    # The product is one multiplication and one rounding to g's type: nothing to tolerate.
    expected = masked if scale is None else (masked.to(scale.dtype) * scale.view(1, -1, 1, 1)).to(g.dtype)
    assert_same_bits(grad_in, expected, f"grad_in {what}")
    if grad_in.numel():
        wanted = torch.empty_like(g if y is None else y).stride()
        matter = [dim for dim in range(4) if g.shape[dim] > 1]  # the stride of a single element is anything
        assert [grad_in.stride(dim) for dim in matter] == [wanted[dim] for dim in matter], what


@each_target_and_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_float64(target: Target, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    scale = norm_scale(shape[1], dtype, target.device)
    for index, (g_layout, y_layout) in enumerate(LAYOUT_PAIRS):
        g = gradient(shape, dtype, target.device, g_layout)
        y = activation(shape, dtype, target.device, y_layout)
        for mask, factor in target.some(list(product((y.tensor, None), (scale, None))), index):
            what = f"with g {g_layout}, y {mask is not None and y_layout}, scale {factor is not None}"
            result = relu_backward_moments(g.tensor, mask, factor, backend=target.backend)
            assert_result(result, g.tensor, mask, factor, what)
        g.assert_untouched(f"g in layout {g_layout}")
        y.assert_untouched(f"y in layout {y_layout}")


@each_target_and_dtype
def test_by_hand(target: Target, dtype: torch.dtype) -> None:
    def make(values: list[Any]) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=target.device)

    g = make([[[[1.0, -2.0], [0.0, 3.0]], [[4.0, -5.0], [6.0, -7.0]]]])
    y = make([[[[0.5, 0.0], [1.0, 2.0]], [[0.0, 0.25], [-1.0, 9.0]]]])
    scale = torch.tensor([2.0, -0.5], dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        grad_in, moments = relu_backward_moments(
            g.to(memory_format=memory_format),
            y.to(memory_format=memory_format),
            scale.to(target.device),
            backend=target.backend,
        )
        assert grad_in.tolist() == [[[[2.0, 0.0], [0.0, 6.0]], [[0.0, 2.5], [0.0, 3.5]]]]
        assert moments.tolist() == [[[4.0, -12.0]], [[4.0, 12.0]], [[2.0, 2.0]]]
        assert grad_in.is_contiguous(memory_format=memory_format)


@each_path
def test_scale_is_rounded_once(target: Target, layout: Layout) -> None:
    def scaled(value: float, factor: float, dtype: torch.dtype) -> float:
        g = place(torch.full((1, 3, 5, 9), value, dtype=dtype, device=target.device), layout).tensor
        scale = torch.full((3,), factor, device=target.device)
        return relu_backward_moments(g, g, scale, backend=target.backend)[0].unique().item()

    # In float32 the factor keeps all its bits, also where g has fewer.
    factor = 1 + 2.0**-7 + 2.0**-23
    assert scaled(3.0, factor, torch.float32) == (3.0 * torch.tensor(factor)).item()
    # 1 + 2^-8 lies between two bfloat16, and goes to the even one; a little more goes up.
    assert scaled(1.0, 1 + 2.0**-8, torch.bfloat16) == 1.0
    assert scaled(1.0, 1 + 2.0**-8 + 2.0**-23, torch.bfloat16) == 1 + 2.0**-7
    assert scaled(1.0, 1 + 3 * 2.0**-8, torch.bfloat16) == 1 + 2.0**-6
    assert scaled(1.0, 1 + 2.0**-11, torch.float16) == 1.0
    assert scaled(1.0, 1 + 2.0**-11 + 2.0**-23, torch.float16) == 1 + 2.0**-10
    assert scaled(1.0, 1 + 3 * 2.0**-11, torch.float16) == 1 + 2.0**-9


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@each_path
def test_every_half_survives_and_scales(target: Target, dtype: torch.dtype, layout: Layout) -> None:
    # All 65536 bit patterns, over every lane: widening, narrowing, ties, subnormals, overflow, NaN.
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).view(1, 16, 64, 64)
    g = place(patterns.to(target.device), layout).tensor
    factors = [None] + [torch.tensor(each) for each in (1.0, 0.33333334, 1.5 * 2.0**-9, 1e5, 1e30, -1e-38, INF, NAN)]
    # NaN whose bits, taken for a number and rounded, would become zero or infinity.
    factors += [torch.tensor(each, dtype=torch.int32).view(torch.float32) for each in (0x7FFFFFFF, -1, 0x7FC00001)]
    for factor in factors:
        scale = None if factor is None else factor.to(target.device).expand(16)
        grad_in, _ = relu_backward_moments(g, None, scale, backend=target.backend)
        expected = g if scale is None else (g.float() * scale.view(1, -1, 1, 1)).to(dtype)
        assert_same_bits(grad_in, expected, f"scale {factor}")


@each_target_and_dtype
@each_path
def test_the_mask_selects(target: Target, dtype: torch.dtype, layout: Layout) -> None:
    subnormal = torch.finfo(dtype).smallest_normal / 2
    gs = (1.0, -2.0, 0.0, -0.0, INF, -INF, NAN, subnormal, torch.finfo(dtype).max)
    ys = (1.0, 0.0, -0.0, -1.0, INF, -INF, NAN, -NAN, subnormal, -subnormal)
    pairs = list(product(gs, ys))
    # One pair for each channel, and once more at each position: every lane of every path sees them all.
    size = len(pairs)
    rolled = torch.arange(size).unsqueeze(1).add(torch.arange(size)).remainder(size).view(1, size, size, 1)
    g_values = torch.tensor([g for g, _ in pairs], dtype=dtype)[rolled]
    y_values = torch.tensor([y for _, y in pairs], dtype=dtype)[rolled]
    passed = torch.tensor([not y <= 0 for _, y in pairs])[rolled]
    g = place(g_values.to(target.device), layout).tensor
    y = place(y_values.to(target.device), layout).tensor
    expected = torch.where(passed, g_values, torch.zeros((), dtype=dtype)).to(target.device)
    grad_in, moments = relu_backward_moments(g, y, backend=target.backend)
    assert_same_bits(grad_in, expected, "grad_in")
    assert moments[2].tolist() == (expected != 0).sum((2, 3)).tolist()
    assert bool(moments[:2].isnan().all())  # a NaN of g is let through somewhere in every channel


@each_target_and_dtype
@each_path
def test_what_stands_behind_a_dead_relu_does_not_matter(target: Target, dtype: torch.dtype, layout: Layout) -> None:
    for value in (INF, -INF, NAN, torch.finfo(dtype).max, -1.0):
        g = place(torch.full((1, 19, 9, 9), value, dtype=dtype, device=target.device), layout).tensor
        y = place(torch.zeros(1, 19, 9, 9, dtype=dtype, device=target.device), layout).tensor
        grad_in, moments = relu_backward_moments(g, y, norm_scale(19, dtype, target.device), backend=target.backend)
        assert not bool(moments.any()), value
        assert not bool(grad_in.any()), value


@each_target_and_dtype
@each_path
def test_a_scale_without_values_leaves_the_moments_alone(target: Target, dtype: torch.dtype, layout: Layout) -> None:
    # The moments are of the gradient before the factor: infinite or NaN factors must not reach them.
    g = gradient((2, 21, 5, 7), dtype, target.device, layout).tensor
    y = activation((2, 21, 5, 7), dtype, target.device, layout).tensor
    scale = norm_scale(21, dtype, target.device)
    scale[3], scale[7], scale[20], scale[11] = NAN, INF, -INF, 0.0
    assert_result(relu_backward_moments(g, y, scale, backend=target.backend), g, y, scale)


def test_scale_may_have_any_stride(target: Target) -> None:
    g = gradient((2, 21, 5, 7), torch.float32, target.device).tensor
    wide = torch.full((21, 3), NAN, device=target.device)
    wide[:, 1] = norm_scale(21, torch.float32, target.device)
    for scale in (wide[:, 1], torch.tensor(2.0, device=target.device).expand(21)):
        assert_result(relu_backward_moments(g, g, scale, backend=target.backend), g, g, scale)


@each_target_and_dtype
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_nothing_beside_the_results_is_written(
    target: Target, dtype: torch.dtype, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty_like, sentinel, spare = torch.empty_like, 12345.0, 64
    buffers = []

    def guarded_empty_like(like: Tensor, **options: Any) -> Tensor:
        plain = empty_like(like, **options)
        buffer = torch.full((plain.numel() + 2 * spare,), sentinel, dtype=plain.dtype, device=plain.device)
        buffers.append(buffer)
        return buffer.as_strided(plain.shape, plain.stride(), spare)

    for shape in ((2, 17, 3, 3), (1, 33, 1, 1), (2, 3, 9, 8), (1, 70, 2, 5)):
        g = gradient(shape, dtype, target.device, layout).tensor
        y = activation(shape, dtype, target.device, layout).tensor
        n, k = shape[:2]
        accumulator = torch.float64 if dtype == torch.float64 else torch.float32
        wide = torch.full((3, n, k + 40), sentinel, dtype=accumulator, device=target.device)
        out = wide[:, :, 17 : 17 + k]
        with monkeypatch.context() as patch:
            patch.setattr(torch, "empty_like", guarded_empty_like)
            grad_in, moments = relu_backward_moments(g, y, out=out, backend=target.backend)
        assert moments is out
        assert_result((grad_in, moments), g, y, None)
        assert bool((wide[:, :, :17] == sentinel).all())
        assert bool((wide[:, :, 17 + k :] == sentinel).all())
        for buffer in buffers:
            assert buffer[:spare].unique().numel() == 1
            assert torch.equal(buffer[:spare], buffer[-spare:])
    if target.backend != "torch":
        assert buffers, "grad_in was allocated in some way that this test does not guard"


@needs_speed
@each_path
@pytest.mark.parametrize("shape", [(3, 37, 32, 32), (1, 1, 300, 301), (70, 16, 8, 8)], ids=str)
def test_repeats_and_threads_agree_bit_for_bit(
    target: Target, layout: Layout, shape: tuple[int, ...], set_threads: Callable[[int], None]
) -> None:
    if target.backend == "torch" and shape[:2] == (1, 1):
        pytest.skip("plain PyTorch splits a single sum among its threads")
    g = gradient(shape, torch.float32, target.device, layout).tensor
    y = activation(shape, torch.float32, target.device, layout).tensor
    scale = norm_scale(shape[1], torch.float32, target.device)
    set_threads(1)
    first = relu_backward_moments(g, y, scale, backend=target.backend)
    for threads in (1, 2, 3):
        set_threads(threads)
        for _ in range(2):
            again = relu_backward_moments(g, y, scale, backend=target.backend)
            assert_same_bits(again[0], first[0], f"grad_in with {threads} threads")
            assert_same_bits(again[1], first[1], f"moments with {threads} threads")


@each_target_and_dtype
@pytest.mark.parametrize("shape", [(5, 37, 7, 5), (3, 3, 33, 32), (4, 1, 33, 32), (4, 9, 1, 1)], ids=str)
def test_other_images_do_not_matter(target: Target, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if target == Target("torch", "cuda"):
        pytest.skip("plain PyTorch shares a sum out among more threads where there are fewer of them")
    scale = norm_scale(shape[1], dtype, target.device)
    # Elsewhere plain PyTorch picks its order of summation by the strides of the whole batch.
    for layout in (NCHW, CHANNELS_LAST) if target.backend == "torch" else LAYOUTS:
        g = gradient(shape, dtype, target.device, layout).tensor
        y = activation(shape, dtype, target.device, layout).tensor
        grad_in, moments = relu_backward_moments(g, y, scale, backend=target.backend)
        for n in range(shape[0]):
            one = slice(n, n + 1)
            grad_alone, moments_alone = relu_backward_moments(g[one], y[one], scale, backend=target.backend)
            assert_same_bits(moments[:, one], moments_alone, f"moments of image {n} in layout {layout}")
            assert_same_bits(grad_in[one], grad_alone, f"grad_in of image {n} in layout {layout}")


def test_moments_are_those_of_the_masked_gradient(target: Target) -> None:
    """Bit for bit, but in Triton, whose tiles are shorter where there are two maps to hold: another order of sums."""
    for shape, layout in product(SHAPES, (NCHW, CHANNELS_LAST)):
        g = gradient(shape, torch.float32, target.device, layout).tensor
        y = activation(shape, torch.float32, target.device, layout).tensor
        grad_in, moments = relu_backward_moments(g, y, backend=target.backend)
        if target.backend == "triton":
            assert_moments(moments, grad_in, str(shape))
        else:
            assert_same_bits(moments, channel_moments(grad_in, backend=target.backend), str(shape))


def test_without_a_mask_the_gradient_is_a_copy(target: Target) -> None:
    g = gradient((2, 3, 4, 5), torch.float32, target.device).tensor
    grad_in, _ = relu_backward_moments(g, None, backend=target.backend)
    assert grad_in.data_ptr() != g.data_ptr()
    assert_same_bits(grad_in, g, "grad_in")


def test_result_carries_no_graph(target: Target) -> None:
    g = torch.ones(1, 2, 3, 3, device=target.device, requires_grad=True)
    grad_in, moments = relu_backward_moments(g, g.detach(), backend=target.backend)
    assert not grad_in.requires_grad
    assert not moments.requires_grad


@pytest.mark.parametrize("which", ["g", "y"])
def test_negated_views_are_read_as_they_are(target: Target, which: str) -> None:
    negated = torch.view_as_complex(torch.ones(1, 1, 2, 2, 2, device=target.device)).conj().imag
    other = torch.ones(1, 1, 2, 2, device=target.device)
    g, y = (negated, other) if which == "g" else (other, negated)
    _, moments = relu_backward_moments(g, y, backend=target.backend)
    assert moments.flatten().tolist() == ([-4.0, 4.0, 4.0] if which == "g" else [0.0, 0.0, 0.0])


def test_a_negated_scale_is_read_as_it_is(target: Target) -> None:
    ones = torch.ones(1, 2, 2, 2, device=target.device)
    scale = torch._neg_view(torch.tensor([1.0, 2.0], device=target.device))
    grad_in, _ = relu_backward_moments(ones, ones, scale, backend=target.backend)
    assert grad_in[0, :, 0, 0].tolist() == [-1.0, -2.0]


G = torch.ones(2, 3, 4, 4)
BAD_ARGUMENTS: dict[str, tuple[str, tuple[Tensor | None, ...]]] = {
    "g of three dimensions": ("g", (torch.ones(3, 4, 4), None)),
    "g of integers": ("g", (G.int(), None)),
    "g too large": ("g", (torch.ones(1, 1, 1, 1).expand(1, 1, 4097, 4096), None)),
    "y of another shape": ("y", (G, torch.ones(2, 3, 4, 5))),
    "y that would broadcast": ("y", (G, torch.ones(1, 3, 4, 4))),
    "y of three dimensions": ("y", (G, torch.ones(3, 4, 4))),
    "y of another dtype": ("y", (G, G.half())),
    "boolean y": ("y", (G, G > 0)),
    "scale of another length": ("scale", (G, G, torch.ones(4))),
    "scale of one": ("scale", (G, G, torch.ones(1))),
    "scale of two dimensions": ("scale", (G, G, torch.ones(3, 1))),
    "scale of another dtype": ("scale", (G, G, torch.ones(3, dtype=torch.float64))),
    "scale like a half g": ("scale", (G.half(), G.half(), torch.ones(3).half())),
}


@pytest.mark.parametrize(("name", "arguments"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_bad_arguments(target: Target, name: str, arguments: tuple[Tensor | None, ...]) -> None:
    moved: list[Any] = [each if each is None else on_device(each, target.device) for each in arguments]
    with pytest.raises(BackendError, match=f"^{name} (must be|has)"):
        relu_backward_moments(*moved, backend=target.backend)


def test_bad_out(target: Target) -> None:
    g = G.to(target.device)
    for out in (torch.zeros(3, 2, 4), torch.zeros(3, 2, 3, dtype=torch.float64), torch.zeros(3, 2, 6)[:, :, ::2]):
        with pytest.raises(BackendError, match=r"^out must"):
            relu_backward_moments(g, g, out=on_device(out, target.device), backend=target.backend)


def test_y_on_another_device() -> None:
    with pytest.raises(BackendError, match=r"^y must be .* on cpu, got .* on meta"):
        relu_backward_moments(G, G.to("meta"))


def test_unknown_and_unavailable_backends() -> None:
    with pytest.raises(ArgumentError, match="'cuddnn' does not exist"):
        relu_backward_moments(G, G, backend="cuddnn")
    with pytest.raises(BackendError, match=r"'cpu' cannot run here: the maps are torch\.float64"):
        relu_backward_moments(G.double(), G.double(), backend="cpu")
    for name in {"triton", "cuda"} - {target.backend for target in TARGETS}:
        with pytest.raises(BackendError, match=f"'{name}' cannot run here: .{{10,}}"):
            relu_backward_moments(G, G, backend=name)
