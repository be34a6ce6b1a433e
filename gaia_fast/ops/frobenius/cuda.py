"""`frobenius` in CUDA (csrc/cuda/frobenius.cu): one launch for all layers."""

from collections.abc import Sequence

from torch import Tensor

from gaia_fast.ops.cuda_launch import launch, where


def frobenius_cuda(
    moments: Tensor,
    begins: Sequence[int],
    widths: Sequence[int],
    inverse_area: Sequence[float],
    output_component: Tensor | None,
    p: float,
    score: Tensor,
) -> None:
    """Writes the (N,) p-norms of the rows; see `frobenius`."""
    launch(
        "cuda_frobenius",
        moments.data_ptr(),
        moments.shape[0],
        moments.stride(0),
        begins,
        widths,
        inverse_area,
        0 if output_component is None else output_component.data_ptr(),
        p,
        score.data_ptr(),
        *where(moments),
    )
