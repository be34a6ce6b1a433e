"""What every way of running a program is: a function of the images."""

from typing import Protocol

from torch import Tensor


class Runner(Protocol):
    """A program, ready to run; safe to call from several threads at once."""

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """The program's outputs for (N, C, H, W) images; nothing in them is used by a later call."""
