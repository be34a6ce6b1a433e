from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gaia_fast.errors import BackendError
from gaia_fast.ops.copy_and_check import copy_and_check, parts_of

from cases import INF, LAYOUTS, NAN, NCHW, SHAPES, TARGETS, Layout, Placed, Target, bits, gradient, on_device, place

EACH = [each for each in TARGETS if each.backend != "cpu"]
each_target = pytest.mark.parametrize("target", EACH, ids=str)
each_target_and_dtype = pytest.mark.parametrize(
    ("target", "dtype"), [(each, dtype) for each in EACH for dtype in each.dtypes], ids=str
)


def copied(x: Tensor, target: Target) -> tuple[Placed, Tensor]:
    """Returns where a copy went, in a buffer that is not to be touched around it, and which images are finite."""
    out = place(torch.zeros(x.shape, dtype=x.dtype, device=x.device), NCHW)
    finite = copy_and_check(x, out.tensor, backend=target.backend)
    assert finite.shape == (x.shape[0], parts_of(x))
    assert set(finite.flatten().tolist()) <= {0, 1}
    return out, finite.all(1)


def assert_copied(x: Tensor, target: Target) -> None:
    out, finite = copied(x, target)
    assert torch.equal(bits(out.tensor), bits(x.contiguous()))
    assert torch.equal(finite, torch.isfinite(x).flatten(1).all(1))
    out.tensor.fill_(NAN)
    assert bool(out.buffer.isnan().all()), "the memory around the copy was written to"


@each_target_and_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes_and_layouts(shape: tuple[int, ...], target: Target, dtype: torch.dtype) -> None:
    for layout in target.some(LAYOUTS, sum(shape)):
        x = gradient(shape, dtype, target.device, layout)
        assert_copied(x.tensor, target)
        x.assert_untouched("x")


@each_target_and_dtype
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_one_pixel_is_enough(layout: Layout, target: Target, dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    for shape in ((3, 3, 21, 20), (3, 4, 16, 16)):
        for place_, value in ((0, INF), (-1, -INF), (700, NAN)):
            values = torch.full(shape, largest, dtype=dtype)
            values.view(3, -1)[1, place_] = value
            values.view(3, -1)[2, place_] = -largest
            x = on_device(place(values, layout).tensor, target.device)
            if layout.expand:
                x = x.expand(shape)
            assert_copied(x, target)


@each_target_and_dtype
def test_every_bit_is_copied(target: Target, dtype: torch.dtype) -> None:
    if dtype in (torch.float16, torch.bfloat16):
        every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    else:
        generator = torch.Generator().manual_seed(0)
        some = torch.randint(-(2**31), 2**31, (2**14 * torch.finfo(dtype).bits // 32,), generator=generator)
        every = some.to(torch.int32).view(dtype)
    x = every.view(1, 1, 2, -1).to(target.device)
    assert_copied(x, target)
    # An image for each of them: none is taken for what it is not.
    alone = every[:: max(every.numel() // (16 if target.is_emulated else 4096), 1)].view(-1, 1, 1, 1).to(target.device)
    assert_copied(alone, target)


@each_target
@given(data=st.data())
def test_properties(target: Target, data: st.DataObject) -> None:
    shape = tuple(data.draw(st.integers(1, most)) for most in (3, 4, 9, 9))
    layout = data.draw(st.sampled_from([each for each in LAYOUTS if not each.expand]))
    x = gradient(shape, data.draw(st.sampled_from(target.dtypes)), target.device, layout).tensor
    for index in data.draw(st.lists(st.integers(0, x.numel() - 1), max_size=2)):
        n, k, h, w = torch.unravel_index(torch.tensor(index), shape)
        x[n, k, h, w] = data.draw(st.sampled_from([INF, -INF, NAN]))
    assert_copied(x, target)


@each_target
def test_a_given_answer_is_filled(target: Target) -> None:
    x = torch.ones(2, 3, 40, 40, device=target.device)
    finite = torch.full((2, parts_of(x)), 7, dtype=torch.uint8, device=target.device)
    assert parts_of(x) == 5
    assert copy_and_check(x, torch.empty_like(x), finite, backend=target.backend) is finite
    assert finite.tolist() == [[1] * 5] * 2


@each_target
def test_negated_views_are_copied_as_they_are(target: Target) -> None:
    x = torch.view_as_complex(torch.ones(1, 1, 2, 2, 2, device=target.device)).conj().imag
    assert x.is_neg()
    out = torch.empty(1, 1, 2, 2, device=target.device)
    copy_and_check(x, out, backend=target.backend)
    assert out.flatten().tolist() == [-1.0] * 4


X = torch.ones(2, 3, 4, 4)
BAD: dict[str, tuple[str, tuple[Any, ...]]] = {
    "another shape": ("out must be", (X, torch.empty(2, 3, 4, 5))),
    "another dtype": ("out must be", (X, X.half())),
    "gaps": ("out and finite must be contiguous", (X, torch.empty(2, 3, 4, 8)[..., ::2])),
    "channels last": ("out and finite must be", (X, X.to(memory_format=torch.channels_last))),
    "finite too short": ("finite must be", (X, X.clone(), torch.empty(2, 2, dtype=torch.uint8))),
    "finite of bools": ("finite must be", (X, X.clone(), torch.empty(2, 1, dtype=torch.bool))),
    "integers": ("x must be", (X.int(), X.int())),
    "three dimensions": ("x must be", (X[0], X[0].clone(), torch.empty(3, 1, dtype=torch.uint8))),
    "images too large": ("x must be", (torch.ones(1).expand(1, 2, 2**15, 2**15), X, torch.empty(1, dtype=torch.uint8))),
}


@pytest.mark.parametrize("target", [each for each in EACH if each.device == "cpu"], ids=str)
@pytest.mark.parametrize(("message", "arguments"), BAD.values(), ids=BAD)
def test_bad_arguments(target: Target, message: str, arguments: tuple[Tensor, ...]) -> None:
    with pytest.raises(BackendError, match=f"^{message}"):
        copy_and_check(*arguments, backend=target.backend)


def test_no_kernels_for_the_cpu() -> None:
    with pytest.raises(BackendError, match="no C\\+\\+ kernels for this"):
        copy_and_check(X, X.clone(), backend="cpu")
    assert copy_and_check(X, X.clone()).tolist() == [[1], [1]]
