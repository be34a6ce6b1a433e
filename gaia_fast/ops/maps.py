"""What all operations on (N, K, H, W) maps check and allocate alike."""

import torch
from torch import Tensor

from gaia_fast.backends import choose
from gaia_fast.errors import BackendError

SUM, ABS_SUM, NONZERO = 0, 1, 2
MAX_POSITIONS = 2**24  # a float32 counts no further without gaps

# The numbers that csrc/include/gaia_kernels.h gives these types.
DTYPE_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype that moments of maps of `dtype` are kept in: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_map(tensor: Tensor, name: str) -> None:
    """Raises BackendError unless `tensor` is a floating (N, K, H, W) map whose positions can be counted exactly."""
    if tensor.ndim != 4 or not tensor.is_floating_point():
        raise BackendError(
            f"{name} must be a floating-point (N, K, H, W) tensor, got {tensor.dtype} of shape {tuple(tensor.shape)}"
        )
    if tensor.shape[2] * tensor.shape[3] > MAX_POSITIONS:
        raise BackendError(f"{name} has {tuple(tensor.shape[2:])} positions a channel; at most 2**24 can be counted")


def check_same(tensor: Tensor, name: str, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> None:
    """Raises BackendError unless `tensor` has this shape, dtype and device."""
    if tensor.shape != shape or tensor.dtype != dtype or tensor.device != device:
        raise BackendError(
            f"{name} must be {dtype} of shape {tuple(shape)} on {device}, got {tensor.dtype} of shape "
            f"{tuple(tensor.shape)} on {tensor.device}"
        )


def moments_buffer(g: Tensor) -> Tensor:
    """Returns an uninitialised (3, N, K) tensor for the moments of `g`."""
    return g.new_empty((3, g.shape[0], g.shape[1]), dtype=accumulator_dtype(g.dtype))


def check_moments(out: Tensor, g: Tensor) -> None:
    """Raises BackendError unless `out` can take the moments of `g`: (3, N, K), consecutive channels, float32 or 64."""
    check_same(out, "out", torch.Size((3, *g.shape[:2])), accumulator_dtype(g.dtype), g.device)
    if out.shape[2] > 1 and out.stride(2) != 1:
        raise BackendError(f"out must hold its channels consecutively, got strides {out.stride()}")


def backend_name(requested: str | None, tensor: Tensor) -> str:
    """Returns the backend for `tensor`; None asks for the best one."""
    return choose(requested or "auto", tensor.device, tensor.dtype).name
