"""What the CUDA kernels share: the tiling as they take it, the stream, launch errors."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gaia_fast.backends import kernels
from gaia_fast.errors import BackendError
from gaia_fast.ops.partial_sums import PartialSums
from gaia_fast.ops.tiling import Tiling

_LAYOUTS: dict[str, int] = getattr(kernels, "CUDA_LAYOUTS", {})


def launch(name: str, *args: Any) -> None:
    """Calls a function of the extension; BackendError, with kernel and shape, where the kernel cannot be launched."""
    function: Callable[..., None] = getattr(kernels, name)
    try:
        function(*args)
    except RuntimeError as error:
        raise BackendError(str(error)) from None


def where(tensor: Tensor) -> tuple[int, int]:
    """Returns the tensor's device index and the caller's current stream on it."""
    if not tensor.is_cuda:
        return 0, 0
    return tensor.device.index, torch.cuda.current_stream(tensor.device).cuda_stream


def tiling_arguments(tiling: Tiling, sums: PartialSums | None) -> tuple[int, ...]:
    """Returns `tiling` as csrc/cuda/kernels.h has it, with the memory that programs which share a channel need."""
    partial, tickets = (0, 0) if sums is None else (sums.partial.data_ptr(), sums.tickets.data_ptr())
    layout = _LAYOUTS[tiling.layout]
    return layout, tiling.vector, tiling.block_k, tiling.chunk, tiling.splits, tiling.piece, partial, tickets
