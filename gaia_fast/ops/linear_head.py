"""The output component of a linear head behind a mean over space."""

import torch
from torch import Tensor

from gaia_fast.backends import kernels
from gaia_fast.ops.tuning import LINEAR_HEAD_MOST

_LANES = 16


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
