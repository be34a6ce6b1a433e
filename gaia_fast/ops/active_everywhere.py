"""Whether every position of a grid has an active channel: what GAIA-Z's forward counts need to be true of an image."""

import torch
from torch import Tensor

from gaia_fast.backends import kernels
from gaia_fast.ops import maps


def active_everywhere(
    y: Tensor, begin: int, step: int, first: int = 0, last: int | None = None, *, backend: str | None = None
) -> Tensor:
    """Returns (N,) float32, 1 for images with a positive channel at all of y[n, first:last, begin::step, begin::step].

    Stops at the first position without one, and at each position at the first channel that is.

    Args:
        y: (N, K, H, W) float32 on the CPU, channels-last without a copy; with backend "torch" anything. A NaN is not
            positive.
        begin, step: of the grid, on both axes.
        first, last: of the channels; None for the end.
        backend: "cpu" or "torch"; None for "cpu".

    Raises:
        BackendError: wrong shape or dtype, or a backend that cannot run here.
    """
    y = maps.check_map(y, "y")
    if backend == "torch":
        return (y[:, first:last, begin::step, begin::step] > 0).any(1).flatten(1).all(1).to(torch.float32)
    maps.backend_name("cpu", y)
    maps.check_same(y, "y", y.shape, torch.float32, y.device)
    y = y.contiguous(memory_format=torch.channels_last)
    found = torch.empty(y.shape[0], dtype=torch.float32, device=y.device)
    images, channels, height, width = y.shape
    first, last, _ = slice(first, last).indices(channels)
    kernels.active_everywhere(
        y.data_ptr(), (images, height, width, channels), (begin, step), (first, last), found.data_ptr()
    )
    return found
