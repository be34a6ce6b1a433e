"""`relu_backward_moments` in plain PyTorch."""

import torch
from torch import Tensor

from gaia_fast.ops.channel_moments.reference import channel_moments_reference


@torch.no_grad()
def relu_backward_moments_reference(g: Tensor, y: Tensor | None, scale: Tensor | None, out: Tensor) -> Tensor:
    """Writes the moments into `out` (3, N, K) and returns grad_in; see `relu_backward_moments`."""
    masked = g if y is None else torch.where(y <= 0, torch.zeros_like(g), g)
    channel_moments_reference(masked, out)
    if scale is None:
        return masked.clone() if masked is g else masked
    return (masked.to(out.dtype) * scale.view(1, -1, 1, 1)).to(g.dtype)
