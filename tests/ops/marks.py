"""The parametrisations that the tests of all map kernels share."""

import pytest

from cases import INTERPRETED, PATHS, TARGET_DTYPES

each_target_and_dtype = pytest.mark.parametrize(
    ("target", "dtype"), TARGET_DTYPES, indirect=["target"], ids=lambda value: str(value).removeprefix("torch.")
)
each_path = pytest.mark.parametrize("layout", PATHS, ids=str)

needs_speed = pytest.mark.skipif(INTERPRETED, reason="more programs than Triton's interpreter can run in a test")
computed_by_numpy = pytest.mark.skipif(INTERPRETED, reason="Triton's interpreter computes with numpy, which flushes")
