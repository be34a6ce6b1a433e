"""`channel_moments` in CUDA (csrc/cuda/channel_moments.cu)."""

from torch import Tensor

from gaia_fast.ops.cuda_launch import launch, tiling_arguments, where
from gaia_fast.ops.maps import DTYPE_CODES
from gaia_fast.ops.partial_sums import partial_sums_for
from gaia_fast.ops.tiling import strides_of, tiling_for


def channel_moments_cuda(g: Tensor, out: Tensor) -> None:
    """Writes sum, abs_sum and nonzero of `g` (N, K, H, W) into `out` (3, N, K); see `channel_moments`."""
    tiling = tiling_for(g)
    sums = partial_sums_for(out, tiling)
    launch(
        "cuda_channel_moments",
        g.data_ptr(),
        DTYPE_CODES[g.dtype],
        g.shape,
        strides_of(g),
        out.data_ptr(),
        out.stride(0),
        out.stride(1),
        tiling_arguments(tiling, sums),
        *where(g),
    )
