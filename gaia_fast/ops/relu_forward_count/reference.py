"""`relu_forward_count` in plain PyTorch."""

import torch
from torch import Tensor


@torch.no_grad()
def relu_forward_count_reference(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, residual: Tensor | None, y: Tensor, nonzero: Tensor
) -> None:
    """Writes y and the counts `nonzero` (N, K); see `relu_forward_count`."""
    wide = x.to(nonzero.dtype)
    if scale is not None:
        wide = wide * scale.view(1, -1, 1, 1)
    if shift is not None:
        wide = wide + shift.view(1, -1, 1, 1)
    if residual is not None:
        wide = wide + residual.to(nonzero.dtype)
    y.copy_(wide.masked_fill(wide <= 0, 0))  # unlike relu, one zero only: +0
    nonzero.copy_((y != 0).sum((2, 3)))
