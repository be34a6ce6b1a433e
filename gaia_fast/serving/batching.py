"""Batches of what waits: no image waits for others to come, only for a replica to be free."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Batcher(Generic[Item, Answer]):
    """Puts what waits into batches, whenever one of those that were sent is done.

    Ray Serve's own `batch` closes a batch while the one before it still runs, so that under load most hold one item.

    Args:
        run: answers a batch, one answer an item, in order.
        max_batch: items in a batch, at most.
        concurrent: batches that run at one time.
    """

    def __init__(
        self, run: Callable[[list[Item]], Awaitable[Sequence[Answer]]], max_batch: int, concurrent: int
    ) -> None:
        self._run, self._max_batch, self._free = run, max_batch, concurrent
        self._waiting: deque[tuple[Item, asyncio.Future[Answer]]] = deque()
        self._running: set[asyncio.Task[None]] = set()

    async def submit(self, item: Item) -> Answer:
        """Returns the answer to an item; raises whatever `run` does."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, answer))
        self._send()
        return await answer

    def _send(self) -> None:
        while self._free and self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(self._max_batch, len(self._waiting)))]
            batch = [each for each in batch if not each[1].done()]  # whoever asked has gone
            if batch:
                self._free -= 1
                task = asyncio.get_running_loop().create_task(self._answer(batch))
                self._running.add(task)
                task.add_done_callback(self._running.discard)

    async def _answer(self, batch: list[tuple[Item, asyncio.Future[Answer]]]) -> None:
        try:
            answers = await self._run([item for item, _ in batch])
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)
        except BaseException as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error) if isinstance(error, Exception) else future.cancel()
            if not isinstance(error, Exception):
                raise
        finally:
            self._free += 1
            self._send()
