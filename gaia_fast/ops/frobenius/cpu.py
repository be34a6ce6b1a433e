"""`frobenius` in C++ (csrc/cpu/frobenius.cpp)."""

from collections.abc import Sequence

from torch import Tensor

from gaia_fast.backends import kernels


def frobenius_cpu(
    moments: Tensor,
    begins: Sequence[int],
    widths: Sequence[int],
    inverse_area: Sequence[float],
    output_component: Tensor | None,
    p: float,
    score: Tensor,
) -> None:
    """Writes the (N,) p-norms of the rows; see `frobenius`."""
    kernels.frobenius(
        moments.data_ptr(),
        moments.shape[0],
        moments.stride(0),
        begins,
        widths,
        inverse_area,
        0 if output_component is None else output_component.data_ptr(),
        p,
        score.data_ptr(),
    )
