"""What every way of running a program is: a function of the images."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from gaia_fast.errors import BackendError

Guard = Callable[[], None]


def no_guard() -> None:
    """Checks nothing."""


def check_float32_on_cpu(runtime: str, obstacle: str, example: Tensor) -> None:
    """Raises BackendError unless a runtime can run here, and for images like these: float32 on the CPU."""
    if obstacle:
        raise BackendError(f"runtime={runtime!r} cannot run here: {obstacle}")
    if example.device.type != "cpu" or example.dtype != torch.float32:
        raise BackendError(
            f"runtime={runtime!r} takes float32 images on the CPU, not {example.dtype} on {example.device}; use "
            "runtime='inductor'"
        )


class Runner(Protocol):
    """A program, ready to run; safe to call from several threads at once."""

    def __call__(self, x: Tensor, guard: Guard = no_guard) -> tuple[Tensor, ...]:
        """The program's outputs for (N, C, H, W) images; nothing in them is used by a later call.

        Calls `guard` once, on this thread, where it costs least: while a device, or other threads, are at work.
        What it raises is raised.
        """
