"""`channel_moments` in C++ (csrc/cpu/channel_moments.h)."""

import torch
from torch import Tensor

from gaia_fast.backends import kernels
from gaia_fast.ops.maps import DTYPE_CODES


def channel_moments_cpu(g: Tensor, out: Tensor) -> None:
    """Writes sum, abs_sum and nonzero of `g` (N, K, H, W) into `out` (3, N, K); see `channel_moments`."""
    kernels.channel_moments(
        g.data_ptr(),
        DTYPE_CODES[g.dtype],
        g.shape,
        g.stride(),
        out.data_ptr(),
        out.stride(0),
        out.stride(1),
        torch.get_num_threads(),
    )
