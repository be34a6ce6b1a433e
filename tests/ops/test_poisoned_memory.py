"""The conftest's promise: memory that nobody has written is NaN. Without it the other tests here prove less."""

import pytest
import torch


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_uninitialised_memory_is_nan(dtype: torch.dtype) -> None:
    like = torch.ones(2, 3, 4, 5, dtype=dtype)
    for made in (
        torch.empty(7, 9, dtype=dtype),
        torch.empty_like(like),
        torch.empty_like(like, memory_format=torch.channels_last),
        torch.empty_strided((2, 3), (3, 1), dtype=dtype),
        like.new_empty(11),
        like.new_empty_strided((2, 2), (2, 1)),
    ):
        assert bool(made.isnan().all())
