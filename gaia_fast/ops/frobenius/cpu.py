"""`frobenius` in C++ (csrc/cpu/frobenius.cpp)."""

from collections.abc import Sequence
from itertools import accumulate

from torch import Tensor

from gaia_fast.backends import kernels


def frobenius_cpu(
    moments: Tensor, widths: Sequence[int], inverse_area: Sequence[float], output_component: Tensor | None, p: float
) -> Tensor:
    """Returns the (N,) p-norms of the packed rows; see `frobenius`."""
    score = moments.new_empty(moments.shape[0])
    kernels.frobenius(  # type: ignore[union-attr]
        moments.data_ptr(),
        moments.shape[0],
        moments.stride(0),
        list(accumulate(widths, initial=0)),
        list(inverse_area),
        0 if output_component is None else output_component.data_ptr(),
        p,
        score.data_ptr(),
    )
    return score
