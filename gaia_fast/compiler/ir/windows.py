"""How the windows of a convolution or a pooling lie on what they read."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def unread(
    size: Sequence[int],
    out: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    """Returns, axis by axis, how many of the last positions (padding counted) no window reaches.

    Negative where the last window hangs over the edge. Transposed convolutions call it their output padding.
    """
    return [
        length - ((o - 1) * s - 2 * p + d * (k - 1) + 1)
        for length, o, k, s, p, d in zip(size, out, kernel, stride, padding, dilation, strict=True)
    ]


@dataclass(frozen=True)
class Geometry:
    """How the windows of a convolution, or of a pooling, lie on what they read."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    inputs: int
    size: tuple[int, int]
    out: tuple[int, int]

    def covers(self) -> bool:
        """Whether every position is in some window."""
        return all(all(windows) for windows in self._windows())

    def needs_each(self) -> bool:
        """Whether every window is the only one at some position."""
        return all(
            {next(iter(each)) for each in windows if len(each) == 1}.issuperset(range(out))
            for windows, out in zip(self._windows(), self.out, strict=True)
        )

    def _windows(self) -> list[list[set[int]]]:
        """Axis by axis, the windows that each position is in."""
        axes = []
        for k, s, p, d, size, out in zip(
            self.kernel, self.stride, self.padding, self.dilation, self.size, self.out, strict=True
        ):
            windows: list[set[int]] = [set() for _ in range(size)]
            for o in range(out):
                for position in range(o * s - p, o * s - p + k * d, d):
                    if 0 <= position < size:
                        windows[position].add(o)
            axes.append(windows)
        return axes

    def grid(self) -> tuple[int, int]:
        """(begin, step) of positions, on both axes, of which each window holds one; (0, 1) for all of them."""
        (k, width), (p, across) = self.kernel, self.padding
        plain = self.stride == (1, 1) == self.dilation and k == width and p == across and 2 * p == k - 1
        for begin in range(p + 1) if plain and k > 1 else ():
            if all(begin + (size - 1 - begin) // k * k >= size - 1 - p for size in self.size):
                return begin, k
        return 0, 1

    def reach(self, windows: Tensor) -> Tensor:
        """(N, C, H, W) of what is read, from (N, C, H', W') of windows: the largest value of the windows around."""
        reach = tuple(d * (k - 1) for d, k in zip(self.dilation, self.kernel, strict=True))
        if self.stride == (1, 1) and all(2 * p == r for p, r in zip(self.padding, reach, strict=True)):
            if self.kernel == (1, 1):
                return windows
            if all(2 * p <= k for p, k in zip(self.padding, self.kernel, strict=True)):
                return torch.nn.functional.max_pool2d(windows, self.kernel, 1, self.padding, self.dilation)
        channels = windows.shape[1]
        beyond = unread(self.size, self.out, self.kernel, self.stride, self.padding, self.dilation)
        ones = torch.ones((channels, 1, *self.kernel), dtype=windows.dtype, device=windows.device)
        more = [max(each, 0) for each in beyond]
        reached = torch.conv_transpose2d(
            windows.clamp(max=1), ones, None, self.stride, self.padding, more, channels, self.dilation
        )
        for axis, size, each in zip((2, 3), self.size, beyond, strict=True):
            if each < 0:  # windows hang over the edge
                reached = reached.narrow(axis, 0, size)
        return reached
