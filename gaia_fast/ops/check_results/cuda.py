"""`check_results` in CUDA (csrc/cuda/result_checks.cu)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gaia_fast.ops.cuda_launch import launch, where
from gaia_fast.ops.maps import DTYPE_CODES
from gaia_fast.ops.result_checks import rounding

_NONE = (0, 0, 0, 0, 0)


def check_results_cuda(
    logits: Tensor,
    scores: Sequence[Tensor],
    preconditions: Tensor | None,
    components: Sequence[Tensor],
    finite: Tensor | None,
    memory: Sequence[Tensor],
    expected: Tensor | None,
    pieces: Tensor | None,
    counts: Tensor | None,
    told: Tensor | None,
    answers: Tensor,
) -> None:
    """Writes the (N,) answers, and counts; see `check_results`."""
    compared = pieces if memory else None
    launch(
        "cuda_check_results",
        logits.shape[0],
        _matrix(logits),
        _NONE if preconditions is None else _matrix(preconditions),
        [_matrix(each.unsqueeze(1)) for each in scores],
        [_matrix(each.unsqueeze(1)) for each in components],
        rounding(logits.shape[1], torch.float32),
        0 if finite is None else finite.data_ptr(),
        0 if finite is None else finite.shape[1],
        0 if finite is None else finite.stride(0),
        0 if compared is None else compared.data_ptr(),
        0 if compared is None else compared.shape[0],
        0 if expected is None else expected.data_ptr(),
        answers.data_ptr(),
        0 if counts is None else counts.data_ptr(),
        0 if told is None else told.data_ptr(),
        *where(logits),
    )


def _matrix(tensor: Tensor) -> tuple[int, int, int, int, int]:
    stride_n, stride_column = tensor.stride()
    return tensor.data_ptr(), DTYPE_CODES[tensor.dtype], tensor.shape[1], stride_n, stride_column
