"""What all operations on (N, K, H, W) maps check and allocate alike."""

from functools import lru_cache

import torch
from torch import Tensor

from gaia_fast.backends import KERNEL_DTYPES, choose, kernels
from gaia_fast.errors import BackendError

SUM, ABS_SUM, NONZERO = 0, 1, 2
MAX_POSITIONS = 2**24  # a float32 counts no further without gaps

# The numbers that the extension gives the types its kernels take (csrc/maps.h).
DTYPE_CODES: dict[torch.dtype, int] = {
    getattr(torch, name): code for name, code in getattr(kernels, "DTYPES", {}).items()
}
DTYPES = (*KERNEL_DTYPES, torch.float64)


def accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype that moments of maps of `dtype` are kept in: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_map(tensor: Tensor, name: str) -> Tensor:
    """Returns `tensor` as its memory holds it; BackendError unless it is a floating map that can be counted exactly."""
    if not isinstance(tensor, Tensor):
        raise BackendError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.ndim != 4 or tensor.dtype not in DTYPES:
        raise BackendError(
            f"{name} must be a (N, K, H, W) tensor of float32, float16, bfloat16 or float64, got {tensor.dtype} of "
            f"shape {tuple(tensor.shape)}"
        )
    if tensor.shape[2] * tensor.shape[3] > MAX_POSITIONS:
        raise BackendError(f"{name} has {tuple(tensor.shape[2:])} positions a channel; at most 2**24 can be counted")
    return tensor.resolve_neg() if tensor.is_neg() else tensor


def check_same(tensor: Tensor, name: str, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> None:
    """Raises BackendError unless `tensor` has this shape, dtype and device."""
    if tensor.shape != shape or tensor.dtype != dtype or tensor.device != device:
        raise BackendError(
            f"{name} must be {dtype} of shape {tuple(shape)} on {device}, got {tensor.dtype} of shape "
            f"{tuple(tensor.shape)} on {tensor.device}"
        )


def channel_parameter(tensor: Tensor | None, name: str, of: Tensor) -> Tensor | None:
    """Returns a (K,) parameter of the map `of` as its memory holds it, contiguous; None stays None."""
    if tensor is None:
        return None
    check_same(tensor, name, of.shape[1:2], accumulator_dtype(of.dtype), of.device)
    return tensor.resolve_neg().contiguous()


def moments_buffer(g: Tensor) -> Tensor:
    """Returns an uninitialised (3, N, K) tensor for the moments of `g`."""
    return g.new_empty((3, g.shape[0], g.shape[1]), dtype=accumulator_dtype(g.dtype))


def check_moments(out: Tensor, g: Tensor) -> None:
    """Raises BackendError unless `out` can take the moments of `g`: (3, N, K), consecutive channels, float32 or 64."""
    check_same(out, "out", torch.Size((3, *g.shape[:2])), accumulator_dtype(g.dtype), g.device)
    if out.shape[2] > 1 and out.stride(2) != 1:
        raise BackendError(f"out must hold its channels consecutively, got strides {out.stride()}")
    if out.is_contiguous():
        return
    reach = 0
    for stride, size in sorted(zip(out.stride(), out.shape, strict=True)):
        if size > 1 and stride <= reach:
            raise BackendError(f"out holds elements in one place: shape {tuple(out.shape)}, strides {out.stride()}")
        reach += stride * (size - 1)


def backend_name(requested: str | None, tensor: Tensor) -> str:
    """Returns the backend for `tensor`; None asks for the best one."""
    return _backend_name("auto" if requested is None else requested, tensor.device, tensor.dtype)


@lru_cache(maxsize=64)
def _backend_name(requested: str, device: torch.device, dtype: torch.dtype) -> str:
    return choose(requested, device, dtype).name
