"""The logits of a linear head behind a mean over space, and the output component that they have."""

import torch
from torch import Tensor

from gaia_fast.backends import kernels
from gaia_fast.ops.tuning import LINEAR_HEAD_MOST

_LANES = 16


def pooled_logits(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Returns S = mean over space of x, times weight^T, + bias: (N, C).

    Args:
        x: (N, K, H, W) float32 on the CPU.
        weight: (C, K) float32, contiguous.
        bias: (C,) float32, or None.
    """
    images, channels, height, width = x.shape
    if not _fits(images, weight):
        return torch.nn.functional.linear(x.mean((2, 3)), weight, bias)
    x = x.contiguous(memory_format=torch.channels_last)
    logits, pooled = _empty(images, len(weight)), _empty(channels)
    kernels.pooled_logits(
        x.data_ptr(),
        (images, height * width, channels, len(weight)),
        weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        pooled.data_ptr(),
        logits.data_ptr(),
    )
    return logits


def output_component(logits: Tensor, weight: Tensor, factor: float) -> Tensor:
    """Returns out = sqrt(mean over k of |g_k|) with g = factor (1 - C softmax(S)) weight: (N,).

    That is d(sum of log_softmax(S)) / dA_last averaged over space (Eq. 9), where A_last reaches the logits S through a
    mean over `1 / factor` positions and the weights of a linear head.

    Args:
        logits: S, (N, C) float32 on the CPU.
        weight: (C, K) float32, contiguous.
        factor: positive.
    """
    images, classes = logits.shape
    if not _fits(images, weight):
        g = torch.rsub(logits.softmax(1), 1, alpha=classes) @ weight
        return (g.abs().mean(1) * factor).sqrt()
    logits = logits.contiguous()
    out, slopes = _empty(images), _empty(classes)
    kernels.output_component(
        logits.data_ptr(),
        (images, classes, weight.shape[1]),
        weight.data_ptr(),
        factor,
        slopes.data_ptr(),
        out.data_ptr(),
    )
    return out


def _fits(images: int, weight: Tensor) -> bool:
    return images * weight.numel() <= LINEAR_HEAD_MOST and weight.shape[1] % _LANES == 0 and kernels is not None


def _empty(*size: int) -> Tensor:
    return torch.empty(size, dtype=torch.float32, device="cpu")
