"""Any number of images, where a program is made for fixed numbers of them."""

import threading
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from gaia_fast.compiler.runtimes.runner import Guard, Runner, no_guard

# On an H200 a CUDA graph is ten times faster than the same operators one by one, of ResNet34 with one 32x32 image.
_MOST_PARTS = 8


class FixedSizes:
    """Keeps a runner for each number of images prepared; others are filled up with copies of the last image, or split.

    Images do not see each other in a program, so what is added changes nothing of the results.

    Args:
        make: makes the runner for a number of images; None where there are those of `runners` alone.
        runners: by number of images.
        otherwise: runs what would be split into more than `_MOST_PARTS`; None to split it all the same.
    """

    def __init__(
        self,
        make: Callable[[int], Runner] | None,
        runners: Mapping[int, Runner] | None = None,
        otherwise: Runner | None = None,
    ) -> None:
        self._make, self._otherwise = make, otherwise
        self._runners: dict[int, Runner] = dict(runners or {})
        self._lock = threading.Lock()

    def prepare(self, images: int) -> Runner:
        """Makes the runner for a number of images, unless it is there or cannot be made; returns what runs them."""
        with self._lock:
            if images not in self._runners:
                if self._make is None:
                    return self
                self._runners[images] = self._make(images)
            return self._runners[images]

    @property
    def how(self) -> str:
        """In which form each of the runners runs the program, where they say so."""
        told: dict[str, list[int]] = {}
        for images, runner in sorted(self._runners.items()):
            told.setdefault(getattr(runner, "how", ""), []).append(images)
        told.pop("", None)
        if len(told) == 1:
            return next(iter(told))
        return "; ".join(f"for {', '.join(map(str, images))} images {how}" for how, images in told.items())

    def __call__(self, x: Tensor, guard: Guard = no_guard) -> tuple[Tensor, ...]:
        images = x.shape[0]
        runner = self._runners.get(images)
        if runner is not None:
            return runner(x, guard)
        if not self._runners:
            return self.prepare(images)(x, guard)
        larger = [size for size in self._runners if size > images]
        if larger:
            size = min(larger)
            filled = torch.cat([x, x[-1:].expand(size - images, -1, -1, -1)])
            return tuple(each[:images] for each in self._runners[size](filled, guard))
        largest = max(self._runners)
        if self._otherwise is not None and images > _MOST_PARTS * largest:
            return self._otherwise(x, guard)
        first, *others = x.split(largest)
        parts = [self(first, guard), *(self(part) for part in others)]
        return tuple(torch.cat(each) for each in zip(*parts, strict=True))
