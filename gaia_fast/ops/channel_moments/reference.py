"""`channel_moments` in plain PyTorch."""

import torch
from torch import Tensor


@torch.no_grad()
def channel_moments_reference(g: Tensor, out: Tensor) -> None:
    """Writes sum, abs_sum and nonzero of `g` (N, K, H, W) into `out` (3, N, K); see `channel_moments`."""
    out[0] = g.sum((2, 3), dtype=out.dtype)
    out[1] = g.abs().sum((2, 3), dtype=out.dtype)
    out[2] = (g != 0).sum((2, 3))
