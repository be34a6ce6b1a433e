"""`relu_forward_count` in C++ (csrc/cpu/relu_forward_count.h)."""

import torch
from torch import Tensor

from gaia_fast.backends import kernels
from gaia_fast.ops.maps import DTYPE_CODES


def relu_forward_count_cpu(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, residual: Tensor | None, y: Tensor, nonzero: Tensor
) -> None:
    """Writes y and the counts `nonzero` (N, K); see `relu_forward_count`."""
    kernels.relu_forward_count(
        x.data_ptr(),
        0 if residual is None else residual.data_ptr(),
        0 if scale is None else scale.data_ptr(),
        0 if shift is None else shift.data_ptr(),
        y.data_ptr(),
        DTYPE_CODES[x.dtype],
        x.shape,
        x.stride(),
        (x if residual is None else residual).stride(),
        y.stride(),
        nonzero.data_ptr(),
        torch.get_num_threads(),
    )
