"""How many replicas are ready, asked by many and of a pool that may be silent."""

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from gaia_fast.serving import pool
from gaia_fast.serving.replica import Answer


class Counting:
    """Tells how many are ready after a while, and how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.says = asyncio.Event()

    async def score(self, images: Sequence[np.ndarray]) -> list[Answer]:
        raise NotImplementedError

    async def running(self) -> int:
        self.asked += 1
        await self.says.wait()
        return self.asked


def test_a_pool_is_asked_once_by_many() -> None:
    async def body() -> None:
        counting = Counting()
        counting.says.set()
        readiness = pool.Readiness(counting)
        assert await asyncio.gather(*(readiness.running() for _ in range(20))) == [1] * 20
        assert await readiness.running() == 1
        assert counting.asked == 1

    asyncio.run(asyncio.wait_for(body(), 30))


def test_it_is_asked_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_EVERY", -1.0)

    async def body() -> None:
        counting = Counting()
        counting.says.set()
        readiness = pool.Readiness(counting)
        assert [await readiness.running() for _ in range(3)] == [1, 2, 3]

    asyncio.run(asyncio.wait_for(body(), 30))


def test_one_that_is_silent_has_none_and_is_not_asked_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_PATIENCE", 0.02)

    async def body() -> None:
        counting = Counting()
        readiness = pool.Readiness(counting)
        assert [await readiness.running() for _ in range(3)] == [0, 0, 0]
        assert counting.asked == 1
        counting.says.set()
        await asyncio.sleep(0)
        assert await readiness.running() == 1

    asyncio.run(asyncio.wait_for(body(), 30))
