"""`relu_backward_moments` in plain PyTorch."""

import torch
from torch import Tensor

from gaia_fast.ops.channel_moments.reference import channel_moments_reference


@torch.no_grad()
def relu_backward_moments_reference(
    g: Tensor, y: Tensor | None, scale: Tensor | None, grad_in: Tensor, out: Tensor
) -> None:
    """Writes grad_in and the moments `out` (3, N, K); see `relu_backward_moments`."""
    masked = g if y is None else torch.where(y <= 0, torch.zeros_like(g), g)
    channel_moments_reference(masked, out)
    if scale is None:
        grad_in.copy_(masked)
    else:
        torch.mul(masked.to(out.dtype), scale.view(1, -1, 1, 1), out=grad_in)
