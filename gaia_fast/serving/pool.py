"""What scores batches, as the HTTP interface sees it: a pool of replicas, of which some are ready."""

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from gaia_fast.serving.replica import Answer

_EVERY = 1.0  # seconds until a pool is asked again
_PATIENCE = 2.0  # seconds that its answer is waited for


class ReplicaPool(Protocol):
    """What scores batches: `ray_serve.Replicas`, or what a test puts in its place."""

    async def score(self, images: Sequence[np.ndarray]) -> list[Answer]:
        """The answer for each float32 (3, H, W), in order."""

    async def running(self) -> int:
        """How many replicas are ready."""


class Readiness:
    """How many replicas of a pool are ready, for whoever wants to know and however often: the pool is asked by one
    task, once a second at most.
    """

    def __init__(self, pool: ReplicaPool) -> None:
        self._pool = pool
        self._task: asyncio.Task[tuple[int, float]] | None = None

    async def running(self) -> int:
        """How many are ready; 0 where the pool does not say so within two seconds, or fails."""
        if self._task is None or (self._task.done() and time.monotonic() > self._task.result()[1] + _EVERY):
            self._task = asyncio.get_running_loop().create_task(self._ask())
        task = self._task  # another one may be asked for meanwhile
        await asyncio.wait({task}, timeout=_PATIENCE)
        return task.result()[0] if task.done() else 0

    async def _ask(self) -> tuple[int, float]:
        """How many, and when that was known."""
        try:
            running = await self._pool.running()
        except Exception:
            running = 0
        return running, time.monotonic()
