from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gaia_fast import backends
from gaia_fast.errors import ArgumentError, BackendError
from gaia_fast.ops import count_and_score, frobenius
from gaia_fast.ops.count_and_score import fits, scratch_size

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
    expanded,
    on_device,
    place,
)
from tolerance import assert_close, assert_same_bits

HERE = tuple(target for target in TARGETS if target.backend != "cpu")  # there is no C++ kernel
if not HERE:
    pytest.skip("nothing that has this operation runs here", allow_module_level=True)
each_target = pytest.mark.parametrize("target", HERE, indirect=True, ids=str)
each_target_and_dtype = pytest.mark.parametrize(
    ("target", "dtype"),
    [(target, dtype) for target in HERE for dtype in target.dtypes],
    indirect=["target"],
    ids=lambda value: str(value).removeprefix("torch."),
)
# One for each way through the kernels: along rows, over channels, one by one along either.
PATHS = (NCHW, CHANNELS_LAST, LAYOUT["crop"], LAYOUT["unaligned"], LAYOUT["channels_last_crop"], LAYOUT["reversed"])
each_path = pytest.mark.parametrize("layout", PATHS, ids=str)


def active(y: Tensor, bound: float = INF) -> Tensor:
    """The definition; an infinite value is active where there is no bound."""
    y = y.double()
    return (y > 0) & ((y < bound) if bound < INF else (y == y))


def is_live(y: Tensor, bound: float, begin: int, step: int) -> list[float]:
    """Image by image, position by position."""
    found = []
    for image, known in zip(active(y, bound), ~y.isnan(), strict=True):
        some, all_known = image.any(0)[begin::step, begin::step], known.all(0)[begin::step, begin::step]
        found.append(float(bool((some & all_known).all())))
    return found


def areas(count: int) -> list[float]:
    return [1.0 / (1 + index % 5) ** 2 for index in range(count)]


def assert_right(
    target: Target,
    maps: Sequence[Tensor],
    sums: Sequence[Tensor] = (),
    layers: Sequence[int] | None = None,
    upper: Sequence[float] = (),
    windows: Sequence[int] = (),
    p: float = 2.0,
    what: str = "",
) -> tuple[Tensor, Tensor, Tensor]:
    """Checks the operation on these against its definition, with a scratch and without; returns the results."""
    layers = range(len(maps) + len(sums)) if layers is None else layers
    first = (*maps, *sums)[0]
    size = scratch_size([(y.shape[1], y.shape[2], y.shape[3]) for y in maps], windows)
    scratch = torch.zeros(first.shape[0], size, dtype=torch.int32, device=target.device)
    arguments = (maps, sums, layers, areas(len(layers)), upper, windows, p)
    packed, live, score = count_and_score(*arguments, scratch, backend=target.backend)
    assert not scratch.any(), f"scratch {what}"
    for again in (scratch, None):
        results = count_and_score(*arguments, again, backend=target.backend)
        for name, one, other in zip(("packed", "live", "score"), results, (packed, live, score), strict=True):
            assert_same_bits(one, other, f"{name} {what}, again")
    assert not scratch.any(), f"scratch {what}, again"

    bounds = upper or [INF] * len(maps)
    counts = [active(y, bound).sum((2, 3)).to(torch.float32) for y, bound in zip(maps, bounds, strict=True)]
    sources = [*counts, *sums]
    expected = torch.cat([sources[layer] for layer in layers], 1) if layers else first.new_zeros(first.shape[0], 0)
    assert_same_bits(packed, expected.to(torch.float32), f"packed {what}")
    triples = list(zip(windows[::3], windows[1::3], windows[2::3], strict=True))
    holds = [is_live(maps[m], bounds[m], begin, step) for m, begin, step in triples]
    assert live.shape == (first.shape[0], len(triples))
    assert live.dtype == torch.float32
    assert live.T.tolist() == holds, f"live {what}: {triples}"

    widths = [sources[layer].shape[1] for layer in layers]
    factors = torch.tensor([area for area, width in zip(areas(len(layers)), widths, strict=True) for _ in range(width)])
    assert score.dtype == torch.float32
    assert score.shape == first.shape[:1]
    truth, plain = (
        torch.linalg.vector_norm(packed.cpu().to(dtype) * factors.to(dtype), ord=p, dim=1)
        for dtype in (torch.float64, torch.float32)
    )
    assert_close(score, truth, plain, f"score {what}", ulps=1.0)
    return packed, live, score


@each_target_and_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_the_definition(target: Target, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """A map of this shape in every layout, all in one call."""
    placed = [activation(shape, dtype, target.device, each, index) for index, each in enumerate(LAYOUTS)]
    windows = [number for m in range(len(placed)) for number in (m, m % 3, 1 + m % 4)]
    assert_right(target, [each.tensor for each in placed], windows=windows)
    for each, layout in zip(placed, LAYOUTS, strict=True):
        each.assert_untouched(f"a map in layout {layout}")


@each_target
@each_path
@pytest.mark.parametrize("shape", [(1, 33, 7, 5), (2, 64, 8, 8), (2, 129, 1, 1), (1, 3, 17, 64)], ids=str)
def test_an_inactive_position(target: Target, layout: Layout, shape: tuple[int, int, int, int]) -> None:
    """One channel is active at each position, another one from position to position; but at one, none is."""
    n, k, h, w = shape
    values = torch.zeros(shape)
    position = torch.arange(h * w)
    values.view(n, k, h * w)[:, position * 5 % k, position] = 1e-3
    windows = [0, 0, 1, 0, 0, 2, 0, 1, 1, 0, 0, h + w]
    y = place(values.to(target.device), layout).tensor
    _, live, _ = assert_right(target, [y], windows=windows)
    assert live[0].tolist() == [1.0] * 4
    for row, column in {(0, 0), (h - 1, w - 1), (h // 2, w // 3)}:
        before = y[-1, :, row, column].clone()
        for gone, holds in ((0.0, 0.0), (-1.0, 0.0), (NAN, 0.0), (INF, 1.0)):
            y[-1, :, row, column] = gone
            _, live, _ = assert_right(target, [y], windows=windows, what=f"{gone} at {row}, {column}")
            assert live[-1, 0] == holds
            assert n == 1 or live[0].tolist() == [1.0] * 4
        y[-1, :, row, column] = before


@each_target
@each_path
def test_a_nan_counts_where_the_window_looks(target: Target, layout: Layout) -> None:
    values = torch.ones(2, 17, 7, 9)
    values[0, 3, 1, 4] = NAN
    values[1, 16, 2, 3] = -NAN
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        y = place(values.to(dtype).to(target.device), layout).tensor
        packed, live, score = assert_right(target, [y], windows=[0, 0, 1, 0, 1, 3, 0, 2, 1, 0, 0, 3])
        assert live.tolist() == [[0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0]]
        assert packed[0, 3] == packed[1, 16] == 62
        assert bool(score.isfinite().all())


@each_target_and_dtype
@each_path
def test_special_values(target: Target, dtype: torch.dtype, layout: Layout) -> None:
    """Zeros of both signs, NaN and negative values are not active; infinity and the smallest subnormal are."""
    smallest, tiny = torch.finfo(dtype).smallest_normal, {torch.float64: 5e-324, torch.float32: 1e-45}.get(dtype, 0.0)
    if tiny == 0.0:
        tiny = 2.0**-24 if dtype == torch.float16 else 2.0**-133
    values = [0.0, -0.0, NAN, -NAN, INF, -INF, tiny, -tiny, smallest, torch.finfo(dtype).max, -smallest]
    image = torch.tensor(values, dtype=dtype).repeat(16, 7, 1)
    y = place(image.expand(2, 16, 7, 11).to(target.device), layout).tensor
    packed, _, _ = count_and_score([y], [], [0], [1.0], backend=target.backend)
    assert packed.tolist() == [[28.0] * 16] * 2
    packed, _, _ = count_and_score([y], [], [0], [1.0], [1.0], backend=target.backend)
    assert packed.tolist() == [[14.0] * 16] * 2


@each_target_and_dtype
@each_path
def test_saturated_units_are_not_active(target: Target, dtype: torch.dtype, layout: Layout) -> None:
    below = float(torch.nextafter(torch.tensor(6.0, dtype=dtype), torch.tensor(0.0, dtype=dtype)))
    values = torch.tensor([0.0, 1.0, below, 6.0, 6.0, INF, NAN, -1.0, -6.0, -INF, 5.0], dtype=dtype)
    y = place(values.repeat(2, 16, 3, 1).to(target.device), layout).tensor
    packed, _, _ = assert_right(target, [y, y, y], upper=[6.0, INF, below], windows=[0, 0, 1, 1, 1, 1])
    assert packed[0].tolist() == [9.0] * 16 + [18.0] * 16 + [6.0] * 16
    y = place(torch.full((2, 16, 3, 4), 6.0, dtype=dtype, device=target.device), layout).tensor
    _, live, _ = assert_right(target, [y, y], upper=[6.0, INF], windows=[0, 0, 1, 1, 0, 1])
    assert live.tolist() == [[0.0, 1.0]] * 2


@each_target_and_dtype
def test_bounds_are_rounded_as_the_maps_are(target: Target, dtype: torch.dtype) -> None:
    """A clamp at 0.1 leaves what 0.1 is in the map's dtype, below or above 0.1 itself."""
    for bound in (0.1, 0.3, 1e-30):
        y = torch.ones(1, 1, 2, 3, dtype=dtype, device=target.device).clamp(0.0, bound)
        packed, live, _ = count_and_score([y], [], [0], [1.0], [bound], [0, 0, 1], backend=target.backend)
        assert packed.tolist() == live.tolist() == [[0.0]]
    y = torch.full((1, 1, 2, 3), INF, dtype=dtype, device=target.device)
    for bound, count in ((1e300 if dtype != torch.float64 else INF, 6.0), (1e4, 0.0)):
        packed, _, _ = count_and_score([y], [], [0], [1.0], [bound], backend=target.backend)
        assert packed.tolist() == [[count]]


@each_target
@pytest.mark.parametrize("p", [1.0, 2.0, 2.1, 7, INF])
def test_layers_of_maps_and_sums(target: Target, p: float) -> None:
    """Counts that several layers have, counts from elsewhere, in any order; sums of any strides."""
    maps = [
        activation((3, 20, 5, 6), torch.float32, target.device, NCHW, 3).tensor,
        activation((3, 140, 2, 2), torch.float32, target.device, CHANNELS_LAST, 4).tensor,
        activation((3, 7, 1, 1), torch.float32, target.device, NCHW, 5).tensor,
    ]
    wide = torch.full((6, 40), NAN, device=target.device)
    wide[::2, 3:33:2] = torch.arange(45.0, device=target.device).view(3, 15)
    sums = [
        torch.arange(11.0, device=target.device).expand(3, 11),
        torch.tensor(4.0, device=target.device).expand(3, 300),
        wide[::2, 3:33:2],
        torch.rand(9, 3, device=target.device).T,
        torch.empty(3, 0, device=target.device),
    ]
    assert_right(target, maps, sums, p=p)
    layers = [4, 1, 0, 3, 0, 0, 7, 2, 5, 6, 1]
    packed, _, score = assert_right(target, maps, sums, layers, p=p, windows=[2, 0, 1, 0, 1, 2, 2, 0, 3])
    widths = [(*maps, *sums)[layer].shape[1] for layer in layers]
    again = frobenius(packed.cpu(), widths, areas(11), None, p, backend="torch")
    torch.testing.assert_close(score.cpu(), again, rtol=2e-7, atol=0)


@each_target
def test_maps_that_no_layer_has(target: Target) -> None:
    maps = [activation((2, 16, 4, 4), torch.float32, target.device, layout).tensor for layout in PATHS]
    assert_right(target, maps, layers=[2, 5], windows=[4, 0, 1, 2, 1, 2])
    assert_right(target, maps, layers=[], windows=[3, 0, 1])


@each_target
def test_nothing_to_do(target: Target) -> None:
    nothing, some = torch.empty(0, 3, device=target.device), torch.ones(2, 3, device=target.device)
    for n in (0, 2):
        for shape in ((n, 3, 4, 4), (n, 0, 4, 4), (n, 3, 0, 4), (n, 3, 4, 0)):
            y = torch.ones(shape, device=target.device)
            assert_right(target, [y], windows=[0, 0, 1], what=str(shape))
            assert_right(target, [y, y], [some if n else nothing], windows=[1, 9, 1], what=str(shape))
            assert_right(target, [y], layers=[], what=str(shape))
    _, _, score = assert_right(target, [], [some])
    assert score.tolist() == pytest.approx([3**0.5] * 2)
    _, _, score = assert_right(target, [], [some], layers=[])
    assert score.tolist() == [0.0, 0.0]


@each_target
def test_a_grid_without_positions_is_live(target: Target) -> None:
    y = torch.zeros(2, 3, 4, 5, device=target.device)
    _, live, _ = assert_right(target, [y], windows=[0, 4, 1, 0, 99, 3, 0, 3, 9])
    assert live.tolist() == [[1.0, 1.0, 0.0]] * 2


@each_target
def test_nan_and_infinity_of_sums_stay_in_their_image(target: Target) -> None:
    sums = torch.ones(4, 5, device=target.device)
    sums[1, 2], sums[2, 3] = NAN, INF
    _, _, score = assert_right(target, [], [sums])
    assert score[[0, 3]].tolist() == pytest.approx([5**0.5] * 2)
    assert bool(score[1].isnan())
    assert score[2] == INF


@each_target
@each_path
def test_other_images_do_not_matter(target: Target, layout: Layout) -> None:
    maps = [
        activation((3, 24, 6, 6), torch.float32, target.device, layout).tensor,
        activation((3, 40, 3, 3), torch.float32, target.device, layout).tensor,
    ]
    batch = assert_right(target, maps, windows=[0, 0, 1, 1, 1, 2])
    for n in range(3):
        alone = assert_right(target, [y[n : n + 1] for y in maps], windows=[0, 0, 1, 1, 1, 2])
        for name, one, of_all in zip(("packed", "live", "score"), alone, batch, strict=True):
            assert_same_bits(one, of_all[n : n + 1], f"{name} of image {n}")


@each_target
def test_a_scratch_may_be_for_larger_batches(target: Target) -> None:
    y = activation((2, 16, 4, 4), torch.float32, target.device).tensor
    scratch = torch.zeros(5, scratch_size([(16, 4, 4)], [0, 0, 1]), dtype=torch.int32, device=target.device)
    scratch[2:] = 7
    for _ in range(2):
        results = count_and_score([y], [], [0], [1.0], [], [0, 0, 1], 2.0, scratch, backend=target.backend)
        assert results[0].tolist() == active(y).sum((2, 3)).tolist()
    assert not scratch[:2].any()
    assert bool((scratch[2:] == 7).all())


@each_target
def test_more_tiles_than_a_short_dimension_of_a_grid(target: Target) -> None:
    if target.is_emulated:
        pytest.skip("more blocks than the emulation and the interpreter can run in a test")
    assert_right(target, [activation((70000, 3, 2, 2), torch.float32, target.device).tensor], windows=[0, 0, 1])
    if target.device == "cpu":
        pytest.skip("no grid on the CPU, where gigabytes would be read for nothing")
    y = torch.zeros(1, 4096, 512, 512, dtype=torch.float16, device=target.device)
    y[0, :, 511, 511] = 1
    packed, live, _ = count_and_score([y], [], [0], [1.0], [], [0, 511, 1, 0, 0, 1], backend=target.backend)
    assert bool((packed == 1).all())
    assert live.tolist() == [[1.0, 0.0]]


@each_target
def test_result_carries_no_graph(target: Target) -> None:
    y = torch.ones(2, 3, 4, 5, device=target.device, requires_grad=True)
    assert not any(each.requires_grad for each in count_and_score([y], [], [0], [1.0], backend=target.backend))


@each_target
def test_lazily_negated_maps_are_read_as_they_are(target: Target) -> None:
    y, rows = torch.full((1, 3, 2, 2), -1.0, device=target.device), torch.full((1, 3), -2.0, device=target.device)
    packed, _, _ = assert_right(target, [torch._neg_view(y)], [torch._neg_view(rows)])
    assert packed.tolist() == [[4.0] * 3 + [2.0] * 3]


sizes = st.tuples(st.integers(0, 70), st.integers(0, 12), st.integers(0, 12))
small = st.integers(0, 3)
layouts = st.one_of(
    st.sampled_from(PATHS),
    st.builds(
        Layout,
        name=st.just("drawn"),
        order=st.permutations(range(4)).map(tuple),
        pad=st.tuples(*[st.tuples(small, small)] * 4),
        step=st.tuples(*[st.integers(1, 2)] * 4),
        expand=st.sets(st.integers(0, 3), max_size=3).map(lambda dims: tuple(sorted(dims))),
        offset=small,
    ),
)
drawn_maps = st.lists(st.tuples(sizes, layouts, st.sampled_from([INF, 6.0, 0.5])), min_size=1, max_size=4)
drawn_windows = st.lists(st.tuples(small, st.integers(0, 4), st.integers(1, 4)), max_size=4)


@each_target
@settings(max_examples=20 if any(target.is_emulated for target in HERE) else 150)
@given(
    small,
    drawn_maps,
    drawn_windows,
    st.lists(small, max_size=5),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    st.sampled_from([0.02, 0.5, 0.98]),
    st.integers(0, 2**31),
)
@example(1, [((64, 1, 1), NCHW, INF), ((8, 1, 1), CHANNELS_LAST, INF)], [(0, 0, 1)], [1, 0], torch.float16, 0.98, 0)
def test_any_maps(
    target: Target,
    images: int,
    of_maps: list[tuple[tuple[int, int, int], Layout, float]],
    windows: list[tuple[int, int, int]],
    layers: list[int],
    dtype: torch.dtype,
    density: float,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps = []
    for size, layout, _ in of_maps:
        shape = (images, *size)
        values = torch.rand(shape, generator=generator) * (torch.rand(shape, generator=generator) < density)
        maps.append(expanded(place(values.to(dtype).to(target.device), layout), layout, shape).tensor)
    assert_right(
        target,
        maps,
        layers=[layer % len(maps) for layer in layers],
        upper=[bound for *_, bound in of_maps],
        windows=[number for m, begin, step in windows for number in (m % len(maps), begin, step)],
    )


Y, S = torch.ones(2, 3, 4, 5), torch.ones(2, 6)
BAD_ARGUMENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "nothing": ("maps and sums are both empty", {"maps": [], "layers": [], "inverse_area": []}),
    "three dimensions": (r"maps\[0\] must be", {"maps": [Y[0]]}),
    "integers": (r"maps\[0\] must be", {"maps": [Y.int()]}),
    "a list": (r"maps\[1\] must be a torch.Tensor", {"maps": [Y, [1.0]]}),
    "another batch": (r"maps\[1\] must be", {"maps": [Y, Y[:1]]}),
    "another dtype": (r"maps\[1\] must be", {"maps": [Y, Y.half()]}),
    "sums of another batch": (r"sums\[1\] must be", {"sums": [S, S[:1]]}),
    "sums of half precision": (r"sums\[0\] must be", {"sums": [S.half()]}),
    "sums of three dimensions": (r"sums\[0\] must be", {"sums": [S[None]]}),
    "sums that are none": (r"sums\[0\] must be", {"sums": [None]}),
    "a layer of no map": ("layers must be", {"layers": [2]}),
    "a negative layer": ("layers must be", {"layers": [-1]}),
    "an area missing": ("inverse_area must be", {"inverse_area": []}),
    "an area of zero": ("inverse_area must be", {"inverse_area": [0.0]}),
    "an area that is not a number": ("inverse_area must be", {"inverse_area": [NAN]}),
    "a bound too many": ("upper must be", {"upper": [6.0, 6.0]}),
    "a bound of zero": ("upper must be", {"upper": [0.0]}),
    "a bound that is not a number": ("upper must be", {"upper": [NAN]}),
    "half a window": ("windows must be", {"windows": [0, 1]}),
    "a window of no map": ("windows must be", {"windows": [1, 0, 1]}),
    "a window of a sum": ("windows must be", {"windows": [1, 0, 1], "sums": [S]}),
    "a negative begin": ("windows must be", {"windows": [0, -1, 1]}),
    "a step of zero": ("windows must be", {"windows": [0, 0, 0]}),
    "p below 1": ("p must be", {"p": 0.5}),
    "p not a number": ("p must be", {"p": NAN}),
    "scratch of floats": ("scratch must be", {"scratch": torch.zeros(2, 4)}),
    "scratch too narrow": ("scratch must be", {"scratch": torch.zeros(2, 3, dtype=torch.int32)}),
    "scratch too short": ("scratch must be", {"scratch": torch.zeros(1, 4, dtype=torch.int32)}),
    "scratch with gaps": ("scratch must be", {"scratch": torch.zeros(2, 5, dtype=torch.int32)[:, :4]}),
}


@each_target
@pytest.mark.parametrize(("message", "changed"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_bad_arguments(target: Target, message: str, changed: dict[str, Any]) -> None:
    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(each) for each in value]
        return on_device(value, target.device) if isinstance(value, Tensor) else value

    arguments = {"maps": [Y], "sums": [], "layers": [0], "inverse_area": [1.0], **changed}
    with pytest.raises(BackendError, match=f"^{message}"):
        count_and_score(**{name: moved(each) for name, each in arguments.items()}, backend=target.backend)


@each_target
def test_more_than_the_arguments_of_a_kernel_hold(target: Target) -> None:
    y, s = torch.ones(1, 2, 1, 1, device=target.device), torch.ones(1, 1, device=target.device)
    # More than the smaller of two kernels takes; no two maps alike, so that none can stand for another.
    different = [torch.ones(1, 1 + m % 3, 1, 1 + m, device=target.device) for m in range(70)]
    assert_right(target, different, [s] * 20, windows=[number for m in range(70) for number in (m, 0, 1)])
    assert_right(target, [y] * 3, layers=[0, 1, 2] * 50)
    if target.backend != "cuda":
        return
    for maps, sums, layers, windows, what in (
        (300, 0, 1, 0, "300 maps"),
        (1, 300, 1, 0, "300 sums"),
        (1, 0, 1000, 0, "1000 layers"),
        (1, 0, 1, 300, "300 windows"),
    ):
        with pytest.raises(BackendError, match=f"{what}; at most .* 'torch'"):
            count_and_score(
                [y] * maps, [s] * sums, [0] * layers, areas(layers), [], [0, 0, 1] * windows, backend=target.backend
            )
        assert not fits(maps, sums, layers, windows)
    assert fits(152, 152, 156, 152)  # ResNet-152


@each_target
def test_many_wide_layers(target: Target) -> None:
    """So many columns that a warp of the CUDA kernel takes longer pieces of them."""
    s = torch.rand(1, 1000, device=target.device)
    assert_right(target, [], [s], layers=[0] * 100)


def test_unknown_and_unavailable_backends() -> None:
    with pytest.raises(ArgumentError, match="'cuddnn' does not exist"):
        count_and_score([Y], [], [0], [1.0], backend="cuddnn")
    if backends.available()["cpu"]:
        with pytest.raises(BackendError, match="no C\\+\\+ kernel; leave backend out, or ask for 'torch'"):
            count_and_score([Y], [], [0], [1.0], backend="cpu")
    for name in {"triton", "cuda"} - {target.backend for target in TARGETS}:
        with pytest.raises(BackendError, match=f"'{name}' cannot run here: .{{10,}}"):
            count_and_score([Y], [], [0], [1.0], backend=name)


def test_scratch_size() -> None:
    assert scratch_size([]) == 1
    assert scratch_size([(3, 4, 5), (7, 1, 1)]) == 11
    assert scratch_size([(3, 8, 8)], [0, 0, 1]) == 3 + 3 + 1
    assert scratch_size([(3, 8, 8)], [0, 1, 3, 0, 8, 1]) == 3 + 2 + 1 + 1
