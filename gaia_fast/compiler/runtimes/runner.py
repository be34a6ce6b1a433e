"""What every way of running a program is: a function of the images."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

Guard = Callable[[], None]


def no_guard() -> None:
    """Checks nothing."""


class Runner(Protocol):
    """A program, ready to run; safe to call from several threads at once."""

    def __call__(self, x: Tensor, guard: Guard = no_guard) -> tuple[Tensor, ...]:
        """The program's outputs for (N, C, H, W) images; nothing in them is used by a later call.

        Calls `guard` once, on this thread, where it costs least: while a device, or other threads, are at work.
        What it raises is raised.
        """
