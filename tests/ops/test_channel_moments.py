from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from ops.marks import computed_by_numpy, each_path, each_target_and_dtype, needs_speed

from gaia_fast.errors import ArgumentError, BackendError
from gaia_fast.ops import channel_moments

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
    bits,
    gradient,
    on_device,
    place,
)
from tolerance import assert_moments, assert_same_bits


@each_target_and_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_float64(target: Target, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    for layout in LAYOUTS:
        g = gradient(shape, dtype, target.device, layout)
        assert_moments(channel_moments(g.tensor, backend=target.backend), g.tensor, f"in layout {layout}")
        g.assert_untouched(f"g in layout {layout}")


@each_target_and_dtype
def test_by_hand(target: Target, dtype: torch.dtype) -> None:
    g = torch.tensor(
        [
            [[[1.0, -2.0], [0.0, 3.0]], [[0.0, -0.0], [0.0, 0.0]]],
            [[[-1.0, -1.0], [-1.0, -1.0]], [[0.5, 0.0], [-0.0, 0.25]]],
        ],
        dtype=dtype,
        device=target.device,
    )
    expected = [
        [[2.0, 0.0], [-4.0, 0.75]],
        [[6.0, 0.0], [4.0, 0.75]],
        [[3.0, 0.0], [4.0, 2.0]],
    ]
    for memory_format in (torch.contiguous_format, torch.channels_last):
        assert channel_moments(g.to(memory_format=memory_format), backend=target.backend).tolist() == expected


def special_values(dtype: torch.dtype) -> list[float]:
    info = torch.finfo(dtype)
    subnormal = info.smallest_normal / 4
    return [NAN, INF, -INF, 0.0, -0.0, subnormal, -subnormal, info.smallest_normal, info.max, info.min, 1.0, -3.0]


@each_target_and_dtype
@each_path
def test_one_special_value_at_every_position(target: Target, dtype: torch.dtype, layout: Layout) -> None:
    # Channel k holds the value at position k: every lane of every vector and of every remainder meets it.
    size = 151
    for value in special_values(dtype):
        diagonal = torch.zeros(size, size, dtype=dtype).fill_diagonal_(value).view(1, size, size, 1)
        g = place(diagonal.to(target.device), layout).tensor
        total, abs_total, nonzero = channel_moments(g, backend=target.backend)
        exact = torch.full((1, size), value, dtype=dtype, device=target.device).to(total.dtype)
        assert_same_bits(total + 0.0, exact + 0.0, f"sum of {value}")  # of zeros, either sign will do
        assert_same_bits(abs_total, exact.abs(), f"abs_sum of {value}")
        assert nonzero.unique().tolist() == [float(value != 0)], f"nonzero of {value}"


@each_target_and_dtype
@each_path
def test_infinities_overflow_and_nan(target: Target, dtype: torch.dtype, layout: Layout) -> None:
    values = torch.full((1, 9, 12, 12), 1.0, dtype=dtype)
    values[:, 1] = torch.finfo(dtype).max  # float16 has room left in float32, the others overflow
    values[:, 2] = torch.finfo(dtype).min
    values[:, 3, 5, 5], values[:, 3, 11, 11] = INF, -INF
    values[:, 4, 0, 0] = INF
    values[:, 5, 11, 11] = -INF
    values[:, 6, 7, 3] = NAN
    values[:, 7] = -0.0
    values[:, 8] *= -1
    g = place(values.to(target.device), layout)
    moments = channel_moments(g.tensor, backend=target.backend)
    assert_moments(moments, g.tensor)
    if dtype in (torch.float32, torch.bfloat16):
        assert moments[0, 0, 1:3].tolist() == [INF, -INF]
    assert bool(moments[0, 0, 3].isnan())
    assert moments[1, 0, 3:6].tolist() == [INF] * 3
    assert moments[0, 0, 4:6].tolist() == [INF, -INF]
    assert bool(moments[:2, 0, 6].isnan().all())
    assert moments[:, 0, 7].tolist() == [0.0, 0.0, 0.0]
    assert moments[:, 0, 8].tolist() == [-144.0, 144.0, 144.0]
    assert moments[2, 0].tolist() == [144.0] * 7 + [0.0, 144.0]


@computed_by_numpy
@each_target_and_dtype
@each_path
def test_subnormals_count_also_when_flushed(
    target: Target, dtype: torch.dtype, layout: Layout, flush_denormal: Callable[[], None]
) -> None:
    if target.backend == "torch":
        pytest.skip("plain PyTorch compares values, and flushed subnormals compare equal to zero")
    g = place(torch.full((1, 19, 7, 5), torch.finfo(dtype).smallest_normal / 2, dtype=dtype), layout).tensor
    g = g.to(target.device)
    flush_denormal()
    assert channel_moments(g, backend=target.backend)[2].unique().tolist() == [35.0]


@computed_by_numpy
@each_path
def test_flushing_subnormals_changes_no_result(
    target: Target, layout: Layout, set_threads: Callable[[int], None]
) -> None:
    if target.backend == "torch":
        pytest.skip("plain PyTorch flushes where it is told to, and not on workers that exist already")
    g = place(torch.full((4, 64, 32, 32), 1e-40, device=target.device), layout).tensor
    expected = channel_moments(g, backend=target.backend)
    results = []

    def run() -> bool:
        set_threads(3)
        channel_moments(g, backend=target.backend)  # the workers start before the mode is changed
        torch.set_flush_denormal(True)
        for threads in (1, 2, 3):
            set_threads(threads)
            results.append(channel_moments(g, backend=target.backend))
        return bool(torch.tensor(2.0**-126) * 0.5 == 0)

    # The mode and the workers belong to the thread that calls: they end with it, whatever happens.
    with ThreadPoolExecutor(1) as caller:
        assert caller.submit(run).result(), "the caller's mode was changed"
    for threads, moments in enumerate(results, start=1):
        assert_same_bits(moments, expected, f"{threads} threads")


@needs_speed
@each_path
@pytest.mark.parametrize("shape", [(1, 2, 1024, 1024), (1, 40, 200, 200)], ids=str)
def test_long_sums_stay_accurate(target: Target, layout: Layout, shape: tuple[int, ...]) -> None:
    # Of one sign, so that a plain float32 loop would be off by far more than the contract allows.
    values = torch.rand(shape, generator=torch.Generator().manual_seed(0)) + 0.5
    g = place(values.to(target.device), layout).tensor
    assert_moments(channel_moments(g, backend=target.backend), g)


@needs_speed
@each_target_and_dtype
@pytest.mark.parametrize("layout", [NCHW, CHANNELS_LAST, LAYOUT["expanded_positions"]], ids=str)
def test_counts_are_exact_up_to_the_limit(target: Target, dtype: torch.dtype, layout: Layout) -> None:
    # The limit for one dtype; for the others, what is beyond a short integer and beyond float16.
    shape = (1, 1, 4096, 4096) if dtype == torch.bfloat16 and not target.is_emulated else (1, 1, 512, 513)
    g = torch.ones((1, 1, 1, 1) if layout.expand else shape, dtype=dtype, device=target.device).expand(shape)
    positions = shape[2] * shape[3]
    assert channel_moments(g, backend=target.backend).flatten().tolist() == [positions] * 3


@each_target_and_dtype
@each_path
@pytest.mark.parametrize("shape", [(2, 37, 3, 5), (1, 1, 4, 4), (3, 130, 1, 1)], ids=str)
def test_out_is_a_slice_of_a_wider_buffer(
    target: Target, dtype: torch.dtype, layout: Layout, shape: tuple[int, ...]
) -> None:
    g = gradient(shape, dtype, target.device, layout).tensor
    n, k = shape[:2]
    fresh = channel_moments(g, backend=target.backend)
    for wide in (
        torch.full((3, n, k + 40), NAN, dtype=fresh.dtype, device=target.device),  # columns beside other layers'
        torch.full((n, 3, k + 40), NAN, dtype=fresh.dtype, device=target.device).transpose(0, 1),
    ):
        out = wide[:, :, 17 : 17 + k]
        assert channel_moments(g, out=out, backend=target.backend) is out
        assert_same_bits(out, fresh, "out")
        assert bool(wide[:, :, :17].isnan().all())
        assert bool(wide[:, :, 17 + k :].isnan().all())


def test_out_of_one_channel_may_have_any_stride(target: Target) -> None:
    g = gradient((2, 1, 5, 5), torch.float32, target.device).tensor
    fresh = channel_moments(g, backend=target.backend)
    wide = torch.full((3, 2, 4), NAN, device=target.device)
    out = wide[:, :, ::2][:, :, 1:2]
    assert_same_bits(channel_moments(g, out=out, backend=target.backend), fresh, "out")
    assert wide.isnan().sum() == 3 * 2 * 3


@needs_speed
@each_path
@pytest.mark.parametrize("shape", [(3, 37, 32, 32), (1, 1, 300, 301), (70, 16, 8, 8)], ids=str)
def test_repeats_and_threads_agree_bit_for_bit(
    target: Target, layout: Layout, shape: tuple[int, ...], set_threads: Callable[[int], None]
) -> None:
    if target.backend == "torch" and shape[:2] == (1, 1):
        pytest.skip("plain PyTorch splits a single sum among its threads")
    g = gradient(shape, torch.float32, target.device, layout).tensor
    set_threads(1)
    first = channel_moments(g, backend=target.backend)
    for threads in (1, 2, 3):
        set_threads(threads)
        for _ in range(2):
            assert_same_bits(channel_moments(g, backend=target.backend), first, f"{threads} threads")


@each_target_and_dtype
@pytest.mark.parametrize("shape", [(5, 37, 7, 5), (3, 3, 33, 32), (4, 1, 33, 32), (4, 9, 1, 1)], ids=str)
def test_other_images_do_not_matter(target: Target, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if target == Target("torch", "cuda"):
        pytest.skip("plain PyTorch shares a sum out among more threads where there are fewer of them")
    # Elsewhere plain PyTorch picks its order of summation by the strides of the whole batch.
    for layout in (NCHW, CHANNELS_LAST) if target.backend == "torch" else LAYOUTS:
        g = gradient(shape, dtype, target.device, layout).tensor
        batch = channel_moments(g, backend=target.backend)
        for n in range(shape[0]):
            alone = channel_moments(g[n : n + 1], backend=target.backend)
            assert_same_bits(batch[:, n], alone[:, 0], f"image {n} in layout {layout}")


@each_path
def test_broken_images_do_not_spread(target: Target, layout: Layout) -> None:
    values = gradient((3, 37, 7, 5), torch.float32).tensor
    clean = channel_moments(place(values.to(target.device), layout).tensor, backend=target.backend)
    values[0], values[2] = NAN, INF
    broken = channel_moments(place(values.to(target.device), layout).tensor, backend=target.backend)
    assert_same_bits(broken[:, 1], clean[:, 1], "the image between")


def test_result_carries_no_graph(target: Target) -> None:
    g = torch.ones(1, 2, 3, 3, device=target.device, requires_grad=True)
    assert not channel_moments(g, backend=target.backend).requires_grad


def test_negated_views_are_read_as_they_are(target: Target) -> None:
    # The imaginary part of a conjugate: a float view whose minus sign is not in memory.
    g = torch.view_as_complex(torch.ones(1, 1, 2, 2, 2, device=target.device)).conj().imag
    assert g.is_neg()
    assert channel_moments(g, backend=target.backend).flatten().tolist() == [-4.0, 4.0, 4.0]


BAD_MAPS = {
    "three dimensions": torch.ones(2, 3, 4),
    "five dimensions": torch.ones(1, 2, 3, 4, 5),
    "integers": torch.ones(2, 3, 4, 4, dtype=torch.int32),
    "booleans": torch.ones(2, 3, 4, 4, dtype=torch.bool),
    "complex": torch.ones(2, 3, 4, 4, dtype=torch.complex64),
    "too many positions": torch.ones(1, 1, 1, 1).expand(1, 1, 4097, 4096),
}


@pytest.mark.parametrize("bad", BAD_MAPS.values(), ids=BAD_MAPS)
def test_bad_maps(target: Target, bad: torch.Tensor) -> None:
    with pytest.raises(BackendError, match=r"^g (must be|has)"):
        channel_moments(on_device(bad, target.device), backend=target.backend)


def test_bad_out(target: Target) -> None:
    g = torch.ones(2, 3, 4, 4, device=target.device)
    bad = {
        "wrong shape": torch.zeros(3, 2, 4),
        "transposed shape": torch.zeros(2, 3, 3),
        "two dimensions": torch.zeros(2, 3),
        "wrong dtype": torch.zeros(3, 2, 3, dtype=torch.float64),
        "every other column": torch.zeros(3, 2, 6)[:, :, ::2],
        "transposed memory": torch.zeros(3, 3, 2).transpose(1, 2),
    }
    for why, each in bad.items():
        out = on_device(each, target.device)
        with pytest.raises(BackendError, match=r"^out must"):
            channel_moments(g, out=out, backend=target.backend)
        assert not bool(out.any()), why


def test_out_that_overlaps_itself_is_refused(target: Target) -> None:
    g = torch.ones(4, 2, 3, 3, device=target.device)
    out = torch.zeros(3, 1, 2, device=target.device).expand(3, 4, 2)
    with pytest.raises((BackendError, RuntimeError)):
        channel_moments(g, out=out, backend=target.backend)


def test_unknown_and_unavailable_backends() -> None:
    g = torch.ones(1, 2, 3, 3)
    with pytest.raises(ArgumentError, match="'cuddnn' does not exist"):
        channel_moments(g, backend="cuddnn")
    for name in {"triton", "cuda"} - {target.backend for target in TARGETS}:
        with pytest.raises(BackendError, match=f"'{name}' cannot run here: .{{10,}}"):
            channel_moments(g, backend=name)


@pytest.mark.parametrize("dtype", [torch.float64], ids=str)
def test_cpu_kernels_refuse_other_dtypes(dtype: torch.dtype) -> None:
    with pytest.raises(BackendError, match=f"'cpu' cannot run here: the maps are {dtype}"):
        channel_moments(torch.ones(1, 2, 3, 3).to(dtype), backend="cpu")


def test_float64_gets_plain_pytorch_by_default() -> None:
    g = gradient((2, 3, 4, 4), torch.float64).tensor
    assert_same_bits(channel_moments(g), channel_moments(g, backend="torch"), "moments")


def test_bits_helper_sees_what_equality_does_not() -> None:
    zeros = torch.tensor([0.0, -0.0])
    assert torch.equal(zeros[:1], zeros[1:])
    assert not torch.equal(bits(zeros[:1]), bits(zeros[1:]))
