"""`relu_backward_moments` in C++ (csrc/cpu/relu_backward_moments.h)."""

import torch
from torch import Tensor

from gaia_fast.backends import kernels
from gaia_fast.ops.maps import DTYPE_CODES


def relu_backward_moments_cpu(g: Tensor, y: Tensor | None, scale: Tensor | None, out: Tensor) -> Tensor:
    """Writes the moments into `out` (3, N, K) and returns grad_in; see `relu_backward_moments`."""
    layout = g if y is None else y
    grad_in = torch.empty_like(layout)
    kernels.relu_backward_moments(  # type: ignore[union-attr]
        g.data_ptr(),
        0 if y is None else y.data_ptr(),
        0 if scale is None else scale.data_ptr(),
        grad_in.data_ptr(),
        DTYPE_CODES[g.dtype],
        g.shape,
        g.stride(),
        layout.stride(),
        grad_in.stride(),
        out.data_ptr(),
        out.stride(0),
        out.stride(1),
        torch.get_num_threads(),
    )
    return grad_in
