"""`channel_moments` in CUDA (csrc/cuda/channel_moments.cu)."""

from torch import Tensor

from gaia_fast.ops.cuda_launch import add_partials, launch, tiling_arguments, where
from gaia_fast.ops.maps import DTYPE_CODES
from gaia_fast.ops.tiling import partials_for, strides_of, tiling_for


def channel_moments_cuda(g: Tensor, out: Tensor) -> None:
    """Writes sum, abs_sum and nonzero of `g` (N, K, H, W) into `out` (3, N, K); see `channel_moments`."""
    tiling = tiling_for(g)
    partial = partials_for(out, tiling)
    launch(
        "cuda_channel_moments",
        g.data_ptr(),
        DTYPE_CODES[g.dtype],
        g.shape,
        strides_of(g),
        partial.data_ptr(),
        partial.stride(1),
        partial.stride(2),
        tiling_arguments(tiling, partial),
        *where(g),
    )
    add_partials(partial, out)
