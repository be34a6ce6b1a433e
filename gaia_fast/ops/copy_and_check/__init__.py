"""Images copied to where a program reads them, and looked at on the way."""

from math import prod

import torch
from torch import Tensor

from gaia_fast.errors import BackendError
from gaia_fast.ops import maps
from gaia_fast.ops.library import define_op, implementation, is_traced

PART = 4096  # bytes of an image that a program of a kernel copies: one image alone is spread over a device


def copy_and_check(x: Tensor, out: Tensor, finite: Tensor | None = None, *, backend: str | None = None) -> Tensor:
    """Copies images, and tells of each whether every pixel is finite, in one launch.

        out[n, k, i, j] = x[n, k, i, j]
        finite[n, part] = 1 where all pixels of a part of image n are finite, else 0

    Args:
        x: (N, K, H, W) float32, float16 or bfloat16 (float64 with backend "torch"), any strides.
        out: of the same shape, dtype and device, contiguous; bit for bit what `x` is, afterwards.
        finite: (N, parts) uint8, contiguous, `parts_of(x)` of them; None: made here.
        backend: "cuda", "triton" or "torch"; None picks the fastest, plain PyTorch on the CPU.

    Returns:
        `finite`. An image is finite where all of its parts are.

    Raises:
        BackendError: tensors that do not fit together, or a backend that cannot run here.

    Example:
        >>> x = torch.tensor([[[[1.0, 2.0]]], [[[torch.inf, 0.0]]]])
        >>> copy_and_check(x, torch.empty_like(x)).tolist()
        [[1], [0]]
    """
    if finite is None:
        finite = torch.empty((x.shape[0], parts_of(x)), dtype=torch.uint8, device=x.device)
    if is_traced(x):
        torch.ops.gaia_fast.copy_and_check(x, out, finite, backend)
    else:
        _eager(x, out, finite, backend)
    return finite


def parts_of(x: Tensor) -> int:
    """Returns in how many parts each image of (N, K, H, W) ones is copied."""
    return max(-(-prod(x.shape[1:]) * x.element_size() // PART), 1)


def _eager(x: Tensor, out: Tensor, finite: Tensor, backend: str | None = None) -> None:
    if x.ndim != 4 or x.dtype not in maps.DTYPES or prod(x.shape[1:]) >= 2**31:
        raise BackendError(
            f"x must be a (N, K, H, W) tensor of float32, float16, bfloat16 or float64, of fewer than 2**31 pixels an "
            f"image, got {x.dtype} of shape {tuple(x.shape)}"
        )
    x = x.resolve_neg()
    maps.check_same(out, "out", x.shape, x.dtype, x.device)
    maps.check_same(finite, "finite", torch.Size((x.shape[0], parts_of(x))), torch.uint8, x.device)
    if out.is_neg() or not (out.is_contiguous() and finite.is_contiguous()):
        raise BackendError(
            f"out and finite must be contiguous, got strides {out.stride()} and {finite.stride()}; use torch.empty(...)"
        )
    run = implementation("copy_and_check", backend_for(backend, x))
    if x.numel():
        run(x, out, finite)
    else:
        finite.fill_(1)


def backend_for(requested: str | None, tensor: Tensor) -> str:
    """Returns the backend that a check takes for a tensor: there is none in C++, whose place plain PyTorch takes."""
    if requested == "cpu":
        raise BackendError("backend='cpu' cannot run here: there are no C++ kernels for this; use backend='torch'")
    name = maps.backend_name(requested, tensor)
    return "torch" if name == "cpu" else name


def _fake(x: Tensor, out: Tensor, finite: Tensor, backend: str | None = None) -> None:
    return None


define_op("copy_and_check", _eager, _fake, writes=("out", "finite"))
