"""The parametrisations that the tests of all map kernels share."""

import pytest

from cases import PATHS, TARGET_DTYPES

each_target_and_dtype = pytest.mark.parametrize(
    ("target", "dtype"), TARGET_DTYPES, indirect=["target"], ids=lambda value: str(value).removeprefix("torch.")
)
each_path = pytest.mark.parametrize("layout", PATHS, ids=str)
