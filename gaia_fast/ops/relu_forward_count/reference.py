"""`relu_forward_count` in plain PyTorch."""

import torch
from torch import Tensor


@torch.no_grad()
def relu_forward_count_reference(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, residual: Tensor | None, nonzero: Tensor
) -> Tensor:
    """Writes the counts into `nonzero` (N, K) and returns y; see `relu_forward_count`."""
    y = x.to(nonzero.dtype)
    if scale is not None:
        y = y * scale.view(1, -1, 1, 1)
    if shift is not None:
        y = y + shift.view(1, -1, 1, 1)
    if residual is not None:
        y = y + residual.to(nonzero.dtype)
    y = y.masked_fill(y <= 0, 0).to(x.dtype)  # unlike relu, one zero only: +0
    nonzero.copy_((y != 0).sum((2, 3)))
    return y
