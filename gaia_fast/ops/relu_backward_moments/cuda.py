"""`relu_backward_moments` in CUDA (csrc/cuda/relu_backward_moments.cu)."""

from torch import Tensor

from gaia_fast.ops.cuda_launch import launch, tiling_arguments, where
from gaia_fast.ops.maps import DTYPE_CODES
from gaia_fast.ops.partial_sums import partial_sums_for
from gaia_fast.ops.tiling import strides_of, tiling_for


def relu_backward_moments_cuda(g: Tensor, y: Tensor | None, scale: Tensor | None, grad_in: Tensor, out: Tensor) -> None:
    """Writes grad_in and the moments `out` (3, N, K); see `relu_backward_moments`."""
    layout = g if y is None else y
    tiling = tiling_for(g, layout, grad_in)
    sums = partial_sums_for(out, tiling)
    launch(
        "cuda_relu_backward_moments",
        g.data_ptr(),
        0 if y is None else y.data_ptr(),
        0 if scale is None else scale.data_ptr(),
        grad_in.data_ptr(),
        DTYPE_CODES[g.dtype],
        g.shape,
        strides_of(g),
        strides_of(layout),
        strides_of(grad_in),
        out.data_ptr(),
        out.stride(0),
        out.stride(1),
        tiling_arguments(tiling, sums),
        *where(g),
    )
