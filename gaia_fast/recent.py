"""What is kept for the kinds of images that came last, and forgotten for the others."""

import itertools
import threading
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """A bounded mapping that forgets what has not been read or written for longest; safe to use from many threads.

    Args:
        most: how many entries are kept.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._values: dict[K, V] = {}
        self._used: dict[K, int] = {}
        self._clock = itertools.count()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._values)

    def keys(self) -> list[K]:
        """Returns what something is kept under."""
        return list(self._values)

    def values(self) -> list[V]:
        """Returns all that is kept."""
        return list(self._values.values())

    def get(self, key: K) -> V | None:
        """Returns what is kept under a key, if anything."""
        found = self._values.get(key)
        if found is not None:
            self._used[key] = next(self._clock)
        return found

    def put(self, key: K, value: V) -> None:
        """Keeps a value under a key; the entry that was used least recently goes where there are too many."""
        with self._lock:
            self._used[key] = next(self._clock)
            self._values[key] = value
            while len(self._values) > self.most:
                oldest = min(self._values, key=lambda each: self._used.get(each, -1))
                del self._values[oldest]
                self._used.pop(oldest, None)

    def pop(self, key: K) -> None:
        """Forgets what is kept under a key."""
        with self._lock:
            self._values.pop(key, None)
            self._used.pop(key, None)
