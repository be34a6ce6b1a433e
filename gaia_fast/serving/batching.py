"""Batches of what waits: no image waits for others to come, only for a replica to be free."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Puts what waits into batches, whenever one of those that were sent is done.

    Ray Serve's own `batch` closes a batch while the one before it still runs, so that under load most hold one item.

    Args:
        run: answers a batch, one result an item, in order.
        max_batch: items in a batch, at most.
        concurrent: batches that run at one time.
    """

    def __init__(
        self, run: Callable[[list[Item]], Awaitable[Sequence[Result]]], max_batch: int, concurrent: int
    ) -> None:
        self._run, self._max_batch, self._free = run, max_batch, concurrent
        self._waiting: dict[asyncio.Future[Result], Item] = {}  # in order
        self._running: set[asyncio.Task[None]] = set()

    async def submit(self, item: Item) -> Result:
        """Returns the result of an item; raises whatever `run` does. Who is cancelled leaves nothing behind."""
        result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting[result] = item
        del item  # or it would be kept until there is a result
        self._send()
        try:
            return await result
        finally:
            self._waiting.pop(result, None)

    def _send(self) -> None:
        while self._free and self._waiting:
            batch = [(each, self._waiting.pop(each)) for each in list(islice(self._waiting, self._max_batch))]
            self._free -= 1
            task = asyncio.get_running_loop().create_task(self._answer(batch))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _answer(self, batch: list[tuple[asyncio.Future[Result], Item]]) -> None:
        batch = [each for each in batch if not each[0].done()]  # whoever asked has gone
        try:
            if batch:
                results = await self._run([item for _, item in batch])
                for (future, _), result in zip(batch, results, strict=True):
                    if not future.done():
                        future.set_result(result)
        except BaseException as error:
            for future, _ in batch:
                if not future.done():
                    future.set_exception(error) if isinstance(error, Exception) else future.cancel()
            if not isinstance(error, Exception):
                raise
        finally:
            self._free += 1
            self._send()
