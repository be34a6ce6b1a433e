from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from gaia_fast.ops import channel_moments, relu_backward_moments, relu_forward_count, tiling
from gaia_fast.ops.tiling import Tiling, strides_of, tiling_for

from cases import CHANNELS_LAST, LAYOUT, LAYOUTS, NCHW, PATHS, Layout, Target, activation, gradient, norm_scale
from tolerance import assert_moments, assert_same_bits


def of(shape: tuple[int, ...], layout: Layout = NCHW, dtype: torch.dtype = torch.float32) -> Tiling:
    return tiling_for(gradient(shape, dtype, layout=layout).tensor)


@pytest.mark.parametrize(
    ("shape", "layout", "expected"),
    [
        ((2, 64, 8, 8), NCHW, "rows"),
        ((2, 64, 8, 8), CHANNELS_LAST, "channels"),
        ((2, 64, 1, 1), NCHW, "channels"),
        ((2, 1, 8, 8), CHANNELS_LAST, "rows"),
        ((2, 64, 8, 8), LAYOUT["crop"], "strided"),
        ((2, 64, 8, 8), LAYOUT["channels_last_crop"], "strided"),
        ((2, 64, 8, 8), LAYOUT["channels_of_a_buffer"], "rows"),
        ((2, 64, 8, 8), LAYOUT["channels_last_of_a_buffer"], "channels"),
        ((2, 64, 8, 8), LAYOUT["every_other_column"], "strided"),
        ((2, 64, 8, 8), LAYOUT["expanded_positions"], "channels"),
    ],
    ids=str,
)
def test_what_lies_side_by_side(shape: tuple[int, ...], layout: Layout, expected: str) -> None:
    assert of(shape, layout).layout == expected


def test_maps_that_lie_differently_share_no_layout() -> None:
    g, y = (gradient((2, 8, 4, 4), torch.float32, layout=layout).tensor for layout in (NCHW, CHANNELS_LAST))
    assert tiling_for(g, g).layout == "rows"
    assert tiling_for(y, y).layout == "channels"
    assert tiling_for(g, y).layout == tiling_for(y, g).layout == "strided"


@pytest.mark.parametrize(("dtype", "full"), [(torch.float32, 4), (torch.float16, 8), (torch.bfloat16, 8)], ids=str)
def test_vectors_are_128_bits_where_every_row_allows_them(dtype: torch.dtype, full: int) -> None:
    assert of((2, 3, 4, 8), NCHW, dtype).vector == full
    assert of((2, 64, 7, 7), CHANNELS_LAST, dtype).vector == full
    assert of((2, 61, 7, 7), NCHW, dtype).vector == 1  # 49 positions: the second row begins anywhere
    assert of((2, 60 + 1, 8, 8), CHANNELS_LAST, dtype).vector == 1
    assert of((2, 64, 8, 8), LAYOUT["unaligned"], dtype).vector == 1
    assert of((2, 64, 8, 8), LAYOUT["crop"], dtype).vector == 1
    whole = torch.zeros(2, 64, 64 + full, dtype=dtype)[:, :, :64].unflatten(2, (8, 8))
    assert tiling_for(whole).vector == full
    ragged = torch.zeros(2, 64, 64 + 1, dtype=dtype)[:, :, :64].unflatten(2, (8, 8))
    assert tiling_for(ragged).vector == 1


@pytest.mark.parametrize(
    ("shape", "layout", "dtype", "piece"),
    [
        ((2, 2048, 7, 7), NCHW, torch.float32, 80),  # 15680 bytes of the 16384 meant
        ((2, 2048, 7, 7), NCHW, torch.bfloat16, 160),
        ((2, 48, 7, 7), NCHW, torch.float32, 48),
        ((2, 256, 14, 14), NCHW, torch.bfloat16, 40),  # 196 positions: an even number is enough
        ((2, 256, 14, 14), NCHW, torch.float32, 0),  # whole vectors in each
        ((2, 8, 35, 35), NCHW, torch.float32, 4),
        ((2, 8, 37, 37), NCHW, torch.float32, 0),  # four are too large
        ((2, 33, 7, 5), NCHW, torch.float32, 0),  # the second image begins anywhere
        ((2, 64, 7, 7), LAYOUT["unaligned"], torch.float32, 0),
        ((2, 64, 7, 7), LAYOUT["channels_of_a_buffer"], torch.float32, 0),  # 67 channels to the next image
        ((2, 64, 7, 7), LAYOUT["images_of_a_buffer"], torch.float32, 64),
        ((2, 64, 7, 7), LAYOUT["expanded_channels"], torch.float32, 0),
        ((2, 64, 7, 7), LAYOUT["crop"], torch.float32, 0),
        ((2, 64, 7, 7), CHANNELS_LAST, torch.float32, 0),
    ],
    ids=str,
)
def test_channels_read_as_one_row(shape: tuple[int, ...], layout: Layout, dtype: torch.dtype, piece: int) -> None:
    found = of(shape, layout, dtype)
    assert found.piece == piece
    assert not piece or found.splits == 1
    assert found.piece * shape[2] * shape[3] % (16 // dtype.itemsize) == 0


@pytest.mark.parametrize(
    ("shape", "dtype", "block_k", "flat"),
    [
        ((2, 2048, 7, 7), torch.bfloat16, 64, 4096),
        ((2, 2048, 7, 7), torch.float32, 32, 2048),
        ((2, 48, 7, 7), torch.float16, 64, 4096),
        ((2, 256, 14, 14), torch.bfloat16, 16, 4096),
        ((2, 8, 35, 35), torch.float32, 1, 0),  # four channels are more than Triton holds: each by itself
        ((2, 61, 7, 7), torch.float32, 16, 0),
        ((2, 64, 8, 8), torch.float32, 32, 0),
    ],
    ids=str,
)
def test_channels_that_triton_reads_as_one_row(
    shape: tuple[int, ...], dtype: torch.dtype, block_k: int, flat: int
) -> None:
    found = of(shape, NCHW, dtype)
    assert (found.block_k, found.flat) == (block_k, flat)
    if flat:
        positions = shape[2] * shape[3]
        assert block_k * positions <= flat
        assert found.flat_vector == 16 // dtype.itemsize
        assert block_k * positions % found.flat_vector == 0
        assert found.vector == 1
        assert found.splits == 1


def programs_of(shape: tuple[int, ...], layout: Layout, dtype: torch.dtype = torch.bfloat16) -> int:
    found = of(shape, layout, dtype)
    return shape[0] * -(-shape[1] // found.block_k) * found.splits


def test_one_image_is_shared_out_among_programs() -> None:
    """Of 16 KiB each, and of few channels rather than of few positions: fewer sums are left to add up."""
    assert programs_of((1, 64, 32, 32), CHANNELS_LAST) == 8
    assert of((1, 64, 32, 32), CHANNELS_LAST, torch.bfloat16).splits == 4
    assert programs_of((1, 64, 32, 32), CHANNELS_LAST, torch.float32) == 16
    assert programs_of((1, 256, 56, 56), CHANNELS_LAST) == 104
    assert programs_of((1, 2048, 7, 7), CHANNELS_LAST) == 16
    assert of((1, 2048, 7, 7), CHANNELS_LAST, torch.bfloat16).splits == 1
    assert programs_of((1, 64, 112, 112), CHANNELS_LAST) == 98
    assert of((1, 64, 112, 112), NCHW, torch.bfloat16).splits == 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [NCHW, CHANNELS_LAST], ids=str)
@pytest.mark.parametrize(
    "shape", [(64, 32, 32), (64, 112, 112), (256, 56, 56), (512, 28, 28), (64, 224, 224), (1024, 14, 14)], ids=str
)
def test_partial_sums_are_few_beside_the_map(shape: tuple[int, ...], layout: Layout, dtype: torch.dtype) -> None:
    found = of((1, *shape), layout, dtype)
    partial = 0 if found.splits == 1 else 3 * 4 * found.splits
    assert partial <= 0.035 * shape[1] * shape[2] * dtype.itemsize


def test_the_batch_changes_nothing() -> None:
    for layout in LAYOUTS:
        for shape in ((37, 5, 5), (64, 8, 8), (3, 112, 112)):
            batch = gradient((5, *shape), torch.float32, layout=layout).tensor
            expected = tiling_for(batch)
            for image in range(5):
                assert tiling_for(batch[image : image + 1]) == expected, (layout, shape)


def test_strides_of_what_is_single_are_as_in_a_contiguous_map() -> None:
    odd = torch.zeros(100).as_strided((2, 1, 1, 3), (50, 7, 11, 1))
    assert strides_of(odd) == (50, 1, 3, 1)
    assert strides_of(torch.zeros(100).as_strided((2, 4, 1, 1), (50, 2, 13, 17))) == (50, 2, 1, 1)


@pytest.mark.parametrize("layout", PATHS, ids=str)
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 4096, 4096), (1, 4096, 64, 64), (1, 3, 1, 1), (1, 1000, 7, 7), (1, 2, 112, 112), (1, 1, 1, 1)],
    ids=str,
)
def test_programs_cover_the_positions_and_fit_a_grid(shape: tuple[int, ...], layout: Layout) -> None:
    strides = {"nchw": (0, shape[2] * shape[3], shape[3], 1), "channels_last": (0, 1, shape[3] * shape[1], shape[1])}
    # No memory: one element stands for all, and the strides are what counts.
    found = tiling._tiling(torch.Size(shape[1:]), (strides.get(layout.name, (0, 3, 9999, 5)),), 4, 0)
    assert (found.splits - 1) * found.chunk < shape[2] * shape[3] <= found.splits * found.chunk
    assert found.splits <= 65535
    assert found.splits <= tiling.MAX_SPLITS
    assert found.layout == "channels" or found.chunk % found.block_p == 0
    assert found.block_k * found.block_p <= (tiling.TILE // 4 if found.vector > 1 or found.flat else tiling.SCALARS)
    # Equal values are rounded the same way at every step: as many steps as tests/tolerance.py has in mind, or partial
    # sums that are too many for a grid otherwise.
    assert min(found.chunk, shape[2] * shape[3]) // found.block_p <= 32 or shape[2] * shape[3] > 2**20


@pytest.fixture
def small_programs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Programs so small that small maps are split among several."""
    sizes = {"TILE": 256, "SCALARS": 64, "PROGRAM": 256, "LARGEST_PROGRAM": 256, "RUN": 16, "ROW_BLOCK": 8}
    for name, value in (sizes | {"ROW_CHUNK": 64}).items():
        monkeypatch.setattr(tiling, name, value)
    tiling._tiling.cache_clear()
    yield
    tiling._tiling.cache_clear()


@pytest.mark.usefixtures("small_programs")
@pytest.mark.parametrize("layout", PATHS, ids=str)
@pytest.mark.parametrize("shape", [(2, 5, 9, 7), (2, 24, 8, 8)], ids=str)
def test_partial_sums_of_several_programs(target: Target, shape: tuple[int, ...], layout: Layout) -> None:
    g = gradient(shape, torch.float32, target.device, layout).tensor
    y = activation(shape, torch.float32, target.device, layout).tensor
    scale = norm_scale(shape[1], torch.float32, target.device)
    assert tiling_for(g).splits > 2
    n, k = shape[:2]
    wide: Tensor = torch.full((3, n, k + 9), torch.nan, device=target.device)
    moments = channel_moments(g, out=wide[:, :, 4 : 4 + k], backend=target.backend)
    assert_moments(moments, g)
    assert bool(wide[:, :, :4].isnan().all())
    assert bool(wide[:, :, 4 + k :].isnan().all())
    grad_in, masked = relu_backward_moments(g, y, scale, backend=target.backend)
    passed = g.masked_fill(y <= 0, 0.0)
    assert_moments(masked, passed)
    assert_same_bits(grad_in, passed * scale.view(1, -1, 1, 1), "grad_in")
    rectified, nonzero = relu_forward_count(g, backend=target.backend)
    assert_same_bits(rectified, g.masked_fill(g <= 0, 0.0), "y")
    assert torch.equal(nonzero, (rectified != 0).sum((2, 3)).float())
