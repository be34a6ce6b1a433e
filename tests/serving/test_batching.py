"""Batches of what waits: full ones under load, none that waits for others, and nobody's answer lost or another's."""

import asyncio
import weakref
from collections.abc import Sequence

import pytest

from gaia_fast.serving.batching import Batcher


class Doubles:
    """Answers twice what it is given, when it is let."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.running = self.most = 0
        self.gate = asyncio.Event()

    async def __call__(self, items: list[int]) -> Sequence[int]:
        self.batches.append(items)
        self.running += 1
        self.most = max(self.most, self.running)
        await self.gate.wait()
        self.running -= 1
        if 13 in items:
            raise ValueError("thirteen")
        return [2 * item for item in items]


def test_one_alone_does_not_wait() -> None:
    async def body() -> None:
        run = Doubles()
        run.gate.set()
        assert await Batcher(run, 8, 1).submit(21) == 42
        assert run.batches == [[21]]

    asyncio.run(asyncio.wait_for(body(), 10))


def test_what_waits_goes_together() -> None:
    async def body() -> None:
        run = Doubles()
        batcher = Batcher(run, 4, concurrent=2)
        answers = [asyncio.create_task(batcher.submit(k)) for k in range(12)]
        await asyncio.sleep(0)
        # Two are sent at once, each alone; the rest waits for either.
        assert run.batches == [[0], [1]] or run.batches == []
        await asyncio.sleep(0.01)
        assert run.batches == [[0], [1]]
        run.gate.set()
        assert await asyncio.gather(*answers) == [2 * k for k in range(12)]
        assert run.batches == [[0], [1], [2, 3, 4, 5], [6, 7, 8, 9], [10, 11]]
        assert run.most == 2

    asyncio.run(asyncio.wait_for(body(), 10))


def test_an_error_is_that_of_its_batch_alone() -> None:
    async def body() -> None:
        run = Doubles()
        batcher = Batcher(run, 2, concurrent=1)
        answers = [asyncio.create_task(batcher.submit(k)) for k in (0, 13, 14, 15)]
        await asyncio.sleep(0.01)
        run.gate.set()
        found = await asyncio.gather(*answers, return_exceptions=True)
        assert run.batches == [[0], [13, 14], [15]]
        assert found[0] == 0
        assert found[3] == 30
        assert all(isinstance(each, ValueError) for each in found[1:3])
        assert await batcher.submit(1) == 2

    asyncio.run(asyncio.wait_for(body(), 10))


def test_who_has_gone_is_not_scored() -> None:
    async def body() -> None:
        run = Doubles()
        batcher = Batcher(run, 4, concurrent=1)
        answers = [asyncio.create_task(batcher.submit(k)) for k in range(4)]
        await asyncio.sleep(0.01)
        answers[2].cancel()
        answers[0].cancel()  # its batch runs already, and its answer is nobody's
        await asyncio.sleep(0.01)
        run.gate.set()
        assert [await answers[1], await answers[3]] == [2, 6]
        assert run.batches == [[0], [1, 3]]

    asyncio.run(asyncio.wait_for(body(), 10))


def test_who_has_gone_leaves_nothing_behind() -> None:
    class Held:
        """What a picture takes in memory."""

    async def body() -> None:
        gate = asyncio.Event()

        async def run(items: list[Held]) -> list[int]:
            await gate.wait()
            return [0 for _ in items]

        batcher = Batcher(run, 4, concurrent=1)
        kept = asyncio.create_task(batcher.submit(Held()))
        await asyncio.sleep(0.01)
        waiting = [Held() for _ in range(8)]
        items = [weakref.ref(each) for each in waiting]
        answers = [asyncio.create_task(batcher.submit(waiting.pop())) for _ in range(8)]
        await asyncio.sleep(0.01)
        for each in answers:
            each.cancel()
        await asyncio.wait(answers)
        # Nothing has become free yet.
        assert [each() for each in items] == [None] * 8
        gate.set()
        assert await kept == 0

    asyncio.run(asyncio.wait_for(body(), 10))


def test_a_batch_that_nobody_waits_for_is_not_sent() -> None:
    async def body() -> None:
        run = Doubles()
        run.gate.set()
        batcher = Batcher(run, 4, concurrent=1)
        answer = asyncio.create_task(batcher.submit(1))
        await asyncio.sleep(0)  # its batch is about to be sent
        answer.cancel()
        await asyncio.sleep(0.01)
        assert run.batches == []
        assert await batcher.submit(2) == 4

    asyncio.run(asyncio.wait_for(body(), 10))


def test_too_few_answers_are_an_error() -> None:
    async def short(items: list[int]) -> list[int]:
        return items[1:]

    async def body() -> None:
        with pytest.raises(ValueError, match="shorter"):
            await Batcher(short, 4, 1).submit(1)

    asyncio.run(asyncio.wait_for(body(), 10))
