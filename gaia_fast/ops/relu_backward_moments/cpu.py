"""`relu_backward_moments` in C++ (csrc/cpu/relu_backward_moments.h)."""

import torch
from torch import Tensor

from gaia_fast.backends import kernels
from gaia_fast.ops.maps import DTYPE_CODES


def relu_backward_moments_cpu(g: Tensor, y: Tensor | None, scale: Tensor | None, grad_in: Tensor, out: Tensor) -> None:
    """Writes grad_in and the moments `out` (3, N, K); see `relu_backward_moments`."""
    kernels.relu_backward_moments(
        g.data_ptr(),
        0 if y is None else y.data_ptr(),
        0 if scale is None else scale.data_ptr(),
        grad_in.data_ptr(),
        DTYPE_CODES[g.dtype],
        g.shape,
        g.stride(),
        (g if y is None else y).stride(),
        grad_in.stride(),
        out.data_ptr(),
        out.stride(0),
        out.stride(1),
        torch.get_num_threads(),
    )
