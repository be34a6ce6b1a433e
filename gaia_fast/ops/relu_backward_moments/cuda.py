"""`relu_backward_moments` in CUDA (csrc/cuda/relu_backward_moments.cu)."""

from torch import Tensor

from gaia_fast.ops.cuda_launch import add_partials, launch, tiling_arguments, where
from gaia_fast.ops.maps import DTYPE_CODES
from gaia_fast.ops.tiling import partials_for, strides_of, tiling_for


def relu_backward_moments_cuda(g: Tensor, y: Tensor | None, scale: Tensor | None, grad_in: Tensor, out: Tensor) -> None:
    """Writes grad_in and the moments `out` (3, N, K); see `relu_backward_moments`."""
    layout = g if y is None else y
    tiling = tiling_for(g, layout, grad_in)
    partial = partials_for(out, tiling)
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
        partial.data_ptr(),
        partial.stride(1),
        partial.stride(2),
        tiling_arguments(tiling, partial),
        *where(g),
    )
    add_partials(partial, out)
