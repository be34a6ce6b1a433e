from typing import Any

import pytest
import torch
from torch import Tensor

from gaia_fast.errors import ArgumentError, BackendError
from gaia_fast.ops import frobenius

from cases import INF, NAN, TARGETS, Target, on_device
from tolerance import CHAIN_ULPS, assert_close, assert_same_bits

# Channels of each layer: one alone, around the kernel's steps of four, a real network's, layers without channels.
WIDTHS = {
    "one": [1],
    "small": [1, 2, 3, 4, 5, 7, 8, 9],
    "resnet34_stages": [64] * 7 + [128] * 9 + [256] * 13 + [512] * 7,
    "empty layers": [0, 3, 0, 5, 0],
}
ORDERS = [1.0, 2.0, 2.1, 7, INF]
MOMENT_DTYPES = {"torch": (torch.float32, torch.float64)}
TARGET_DTYPES = [(target, dtype) for target in TARGETS for dtype in MOMENT_DTYPES.get(target.backend, (torch.float32,))]
each_target_and_dtype = pytest.mark.parametrize(
    ("target", "dtype"), TARGET_DTYPES, indirect=["target"], ids=lambda value: str(value).removeprefix("torch.")
)


def padded(moments: Tensor, widths: list[int], inverse_area: list[float], output: Tensor | None) -> Tensor:
    """Returns Lambda (N, L, K_max) in the dtype of `moments`, with the zeros that the paper writes."""
    rows = [
        torch.nn.functional.pad(layer.abs() * factor, (0, max(widths) - layer.shape[1]))
        for layer, factor in zip(moments.split(widths, dim=1), inverse_area, strict=True)
    ]
    matrix = torch.stack(rows, dim=1)
    return matrix if output is None else matrix / output.view(-1, 1, 1)


def assert_scores(
    got: Tensor, moments: Tensor, widths: list[int], inverse_area: list[float], output: Tensor | None, p: float
) -> None:
    assert got.dtype == moments.dtype
    assert got.shape == moments.shape[:1]
    truth, plain = (
        torch.linalg.vector_norm(
            padded(moments.to(dtype), widths, inverse_area, None if output is None else output.to(dtype)),
            ord=p,
            dim=(1, 2),
        )
        for dtype in (torch.float64, moments.dtype)
    )
    # Float32 is summed in float64 and rounded once: no reordering to forgive, one unit in the last place.
    assert_close(got, truth, plain, "score", ulps=CHAIN_ULPS if moments.dtype == torch.float64 else 1.0)


def packed(n: int, widths: list[int], dtype: torch.dtype, device: str) -> tuple[Tensor, list[float], Tensor]:
    generator = torch.Generator().manual_seed(n)
    moments = torch.randn(n, sum(widths), generator=generator, dtype=torch.float64) * 50
    inverse_area = [1.0 / (1 + layer % 5) ** 2 for layer in range(len(widths))]
    output = torch.rand(n, generator=generator, dtype=torch.float64) + 0.01
    return moments.to(dtype).to(device), inverse_area, output.to(dtype).to(device)


@each_target_and_dtype
@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize("widths", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("n", [0, 1, 5])
def test_against_the_padded_matrix(target: Target, dtype: torch.dtype, p: float, widths: list[int], n: int) -> None:
    moments, inverse_area, output = packed(n, widths, dtype, target.device)
    for component in (None, output, -output):
        got = frobenius(moments, widths, inverse_area, component, p, backend=target.backend)
        assert_scores(got, moments, widths, inverse_area, component, p)


@each_target_and_dtype
@pytest.mark.parametrize("p", ORDERS)
def test_the_padded_matrix_itself(target: Target, dtype: torch.dtype, p: float) -> None:
    widths = [3, 8, 0, 5]
    moments, inverse_area, output = packed(3, widths, dtype, target.device)
    expected = frobenius(moments, widths, inverse_area, output, p, backend=target.backend)
    wide = torch.full((6, 5, 10), NAN, dtype=dtype, device=target.device)  # what is not a layer's is never read
    for layer, columns in enumerate(moments.split(widths, dim=1)):
        wide[::2, layer, : columns.shape[1]] = columns
    for matrix in (wide[::2, :4], wide[::2, :4, :8], wide[::2, :4].contiguous()):
        got = frobenius(matrix, widths, inverse_area, output, p, backend=target.backend)
        torch.testing.assert_close(got, expected, rtol=2e-7, atol=0)


@each_target_and_dtype
def test_by_hand(target: Target, dtype: torch.dtype) -> None:
    # Lambda of image 0 is [[3, 0, 0], [4 * 0.5, 2 * 0.5, 0]] / 0.5 = [[6, 0, 0], [4, 2, 0]].
    moments = torch.tensor([[3.0, -4.0, 2.0], [0.0, 0.0, 0.0]], dtype=dtype, device=target.device)
    output = torch.tensor([0.5, 2.0], dtype=dtype, device=target.device)
    for p, expected in ((1.0, 12.0), (2.0, 56.0**0.5), (3.0, 288.0 ** (1 / 3))):
        got = frobenius(moments, [1, 2], [1.0, 0.5], output, p, backend=target.backend)
        assert got.tolist() == pytest.approx([expected, 0.0], rel=1e-6)


def test_default_is_the_norm_of_the_paper(target: Target) -> None:
    got = frobenius(torch.tensor([[3.0, 4.0]], device=target.device), [2], [1.0], backend=target.backend)
    assert got.tolist() == [5.0]


def test_infinite_order_is_the_largest_entry(target: Target) -> None:
    moments = torch.tensor([[3.0, -9.0, 4.0], [0.0, 0.0, 0.0], [NAN, 1.0, 2.0], [1.0, 2.0, NAN], [1.0, NAN, INF]])
    got = frobenius(moments.to(target.device), [1, 2], [1.0, 0.5], None, INF, backend=target.backend)
    assert got[:2].tolist() == [4.5, 0.0]
    assert bool(got[2:].isnan().all())


@pytest.mark.parametrize("magnitude", [1e-30, 1e-38, 1e-44, 1e30, 3e38])
@pytest.mark.parametrize("p", [1.0, 2.0, 3.5])
def test_squares_neither_vanish_nor_overflow(target: Target, magnitude: float, p: float) -> None:
    moments = torch.tensor([[0.0, 1.0, 0.0, -1.0, 1.0]], device=target.device) * magnitude
    got = frobenius(moments, [3, 2], [0.25, 0.25], backend=target.backend, p=p)
    assert_scores(got, moments, [3, 2], [0.25, 0.25], None, p)
    assert 0 < got.item() < INF


@pytest.mark.parametrize("p", [1.0, 2.0, 3.5])
def test_small_terms_are_not_lost_beside_a_large_one(target: Target, p: float) -> None:
    # Each small term is below half a unit in the last place of the large one: a float32 sum would stay at 1.
    moments = torch.full((1, 40001), (2.0**-26) ** (1 / p), device=target.device)
    moments[0, 0] = 1.0
    truth = torch.linalg.vector_norm(moments.double(), ord=p, dim=1)
    assert truth.item() > 1.0001
    for widths in ([40001], [1, 40000], [1] * 40001):
        got = frobenius(moments, widths, [1.0] * len(widths), None, p, backend=target.backend)
        assert (got.double() - truth).abs().item() <= 2.0**-24 * truth.item() * 1.0001


def test_scores_beyond_float32_are_infinite(target: Target) -> None:
    moments = torch.full((1, 4), 3e38, device=target.device)
    assert frobenius(moments, [4], [1.0], p=1.0, backend=target.backend).tolist() == [INF]


def test_nan_and_infinity_stay_in_their_image(target: Target) -> None:
    moments = torch.ones(5, 6, device=target.device)
    moments[1, 5], moments[2, 0], moments[3, 3] = NAN, INF, -INF
    scores = frobenius(moments, [2, 4], [1.0, 1.0], backend=target.backend)
    assert scores[[0, 4]].tolist() == pytest.approx([6.0**0.5] * 2, rel=1e-6)
    assert bool(scores[1].isnan())
    assert scores[2:4].tolist() == [INF, INF]


def test_output_component_of_zero_or_nan(target: Target) -> None:
    moments = torch.tensor([[1.0, 2.0], [1.0, 0.0], [1.0, 2.0]], device=target.device)
    output = torch.tensor([0.0, 0.0, NAN], device=target.device)
    scores = frobenius(moments, [2], [1.0], output, backend=target.backend)
    assert scores[0].item() == INF
    assert bool(scores[1:].isnan().all())  # 0 / 0, and whatever / NaN


def test_rows_and_output_may_be_slices(target: Target) -> None:
    moments, inverse_area, output = packed(4, [3, 6], torch.float32, target.device)
    fresh = frobenius(moments, [3, 6], inverse_area, output, backend=target.backend)
    wide = torch.full((8, 40), NAN, device=target.device)
    wide[::2, 7:16] = moments
    wide[1::2, 20] = output
    got = frobenius(wide[::2, 7:16], [3, 6], inverse_area, wide[1::2, 20], backend=target.backend)
    assert_same_bits(got, fresh, "scores")
    same_row = frobenius(moments[:1].expand(4, 9), [3, 6], inverse_area, output[:1].expand(4), backend=target.backend)
    assert_same_bits(same_row, fresh[:1].expand(4), "scores of one row, expanded")


def test_one_column_may_have_any_stride(target: Target) -> None:
    moments = torch.full((3, 4), NAN, device=target.device)
    moments[:, 2] = torch.tensor([1.0, -2.0, 3.0])
    scores = frobenius(moments[:, 2::5], [1], [0.5], backend=target.backend)
    assert scores.tolist() == [0.5, 1.0, 1.5]


def test_batch_and_repeats_agree_bit_for_bit(target: Target) -> None:
    widths = WIDTHS["resnet34_stages"]
    moments, inverse_area, output = packed(6, widths, torch.float32, target.device)
    batch = frobenius(moments, widths, inverse_area, output, backend=target.backend)
    assert_same_bits(frobenius(moments, widths, inverse_area, output, backend=target.backend), batch, "again")
    for n in range(6):
        one = slice(n, n + 1)
        alone = frobenius(moments[one], widths, inverse_area, output[one], backend=target.backend)
        assert_same_bits(alone, batch[one], f"image {n}")


def test_no_layers(target: Target) -> None:
    scores = frobenius(torch.empty(2, 0, device=target.device), [], [], backend=target.backend)
    assert scores.tolist() == [0.0, 0.0]


def test_result_carries_no_graph(target: Target) -> None:
    moments = torch.ones(2, 3, device=target.device, requires_grad=True)
    assert not frobenius(moments, [3], [1.0], backend=target.backend).requires_grad


def test_negated_views_are_read_as_they_are(target: Target) -> None:
    negated = torch.view_as_complex(torch.ones(2, 1, 2, device=target.device)).conj().imag
    assert negated.is_neg()  # only absolute values count here
    assert frobenius(negated, [1], [1.0], backend=target.backend).tolist() == [1.0, 1.0]


M = torch.ones(2, 5)
BAD_ARGUMENTS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "one dimension": ("moments of shape", (torch.ones(5), [5], [1.0])),
    "three dimensions": ("moments of shape", (torch.ones(1, 2, 5), [5], [1.0])),
    "a padded matrix too narrow": ("moments of shape", (torch.ones(1, 2, 5), [5, 6], [1.0, 1.0])),
    "four dimensions": ("moments of shape", (torch.ones(1, 1, 1, 5), [5], [1.0])),
    "widths too short": ("moments of shape", (M, [2, 2], [1.0, 1.0])),
    "widths too long": ("moments of shape", (M, [2, 4], [1.0, 1.0])),
    "one area missing": ("moments of shape", (M, [2, 3], [1.0])),
    "integers": ("moments must be", (M.int(), [5], [1.0])),
    "half precision": ("moments must be", (M.half(), [5], [1.0])),
    "every other column": ("moments must be", (torch.ones(2, 10)[:, ::2], [5], [1.0])),
    "output of another length": ("output_component must be", (M, [5], [1.0], torch.ones(3))),
    "output of two dimensions": ("output_component must be", (M, [5], [1.0], torch.ones(2, 1))),
    "output of another dtype": ("output_component must be", (M, [5], [1.0], torch.ones(2).double())),
    "an area of zero": ("inverse_area must be", (M, [5], [0.0])),
    "an area that is not a number": ("inverse_area must be", (M, [5], [NAN])),
    "p below 1": ("p must be", (M, [5], [1.0], None, 0.5)),
    "p negative": ("p must be", (M, [5], [1.0], None, -INF)),
    "p not a number": ("p must be", (M, [5], [1.0], None, NAN)),
}


@pytest.mark.parametrize(("message", "arguments"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_bad_arguments(target: Target, message: str, arguments: tuple[Any, ...]) -> None:
    moved: list[Any] = [on_device(each, target.device) if isinstance(each, Tensor) else each for each in arguments]
    with pytest.raises(BackendError, match=f"^{message}"):
        frobenius(*moved, backend=target.backend)


def test_negative_widths(target: Target) -> None:
    with pytest.raises(BackendError, match="width"):
        frobenius(torch.ones(2, 6, device=target.device)[:, :3], [5, -2], [1.0, 1.0], backend=target.backend)


def test_unknown_and_unavailable_backends() -> None:
    with pytest.raises(ArgumentError, match="'cuddnn' does not exist"):
        frobenius(M, [5], [1.0], backend="cuddnn")
    with pytest.raises(BackendError, match=r"'cpu' cannot run here: .*torch\.float64"):
        frobenius(M.double(), [5], [1.0], backend="cpu")
    for name in {"triton", "cuda"} - {target.backend for target in TARGETS}:
        with pytest.raises(BackendError, match=f"'{name}' cannot run here: .{{10,}}"):
            frobenius(M, [5], [1.0], backend=name)
