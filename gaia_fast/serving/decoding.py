"""Threads that decode pictures: as many as there are processors, and one more for large ones."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from joblib import cpu_count

from gaia_fast.data.presets import Preset
from gaia_fast.serving.errors import OverloadedError
from gaia_fast.serving.pictures import opened, prepared

_LARGE = 4_000_000  # pixels that take long to decode: such pictures wait for each other, and no small one for them

Found = TypeVar("Found")


class Decoder:
    """Makes the network's input of image files.

    Args:
        preset, max_pixels: as in `pictures.opened`.
        most_large: pictures of more than 4 megapixels that are decoded or wait for it.
    """

    def __init__(self, preset: Preset, max_pixels: int, most_large: int) -> None:
        self._preset, self._max_pixels, self._most_large = preset, max_pixels, most_large
        self._threads = _Threads(cpu_count(), "decoding")
        self._large_thread = _Threads(1, "decoding large pictures")
        self._large = 0

    async def decode(self, data: bytes) -> np.ndarray:
        """Returns float32 (3, H, W) of a file. Who is cancelled meanwhile goes on until its thread has finished.

        Raises:
            RequestError: as `pictures.opened` and `pictures.prepared`. OverloadedError: it is a large one too many.
        """
        image = await self._threads.run(opened, data, self._preset, self._max_pixels)
        if self._preset.most_pixels(image.height, image.width) <= _LARGE:
            return await self._threads.run(prepared, image, self._preset, self._max_pixels)
        if self._large >= self._most_large:
            raise OverloadedError(
                f"{self._large} pictures of more than {_LARGE} pixels wait already; try again later, or send a smaller "
                "one"
            )
        self._large += 1
        try:
            return await self._large_thread.run(prepared, image, self._preset, self._max_pixels)
        finally:
            self._large -= 1


class _Threads:
    """Runs functions in so many threads. What waits for one is no item of the executor's queue: who gives up leaves
    nothing behind there.
    """

    def __init__(self, count: int, name: str) -> None:
        self._executor = ThreadPoolExecutor(count, name)
        self._free = asyncio.Semaphore(count)

    async def run(self, function: Callable[..., Found], *args: Any) -> Found:
        async with self._free:
            future = asyncio.get_running_loop().run_in_executor(self._executor, function, *args)
            try:
                return await asyncio.shield(future)
            except asyncio.CancelledError:
                await asyncio.wait([future])  # a thread cannot be stopped
                raise
            finally:
                future.cancel()  # else its thread would tell a loop that has ended meanwhile
