"""What was timed on this machine: kept in memory, and in files of the user's cache, so that a process that comes later
decides in the same way, and at once."""

import contextlib
import hashlib
import json
import platform
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from gaia_fast import user_cache
from gaia_fast.backends import kernels
from gaia_fast.errors import GaiaError
from gaia_fast.files import write_text

# What tells one processor from another: two generations may share a name.
_PROCESSOR = ("model name", "cpu family", "model", "stepping", "CPU implementer", "CPU part")


# By cache, what was asked for while this thread records; see `recorded`.
_recording = threading.local()
_CACHES: dict[str, "TimingCache"] = {}
_MEASURING = threading.RLock()


class TimingCache:
    """JSON values under keys; for each processor, instruction-set level and build of the kernels a file.

    Safe to use from many threads. Where no file can be read or written, the values last as long as the process.

    Args:
        name: the beginning of the file's name.
        valid: whether a value that was read means something.
    """

    def __init__(self, name: str, valid: Callable[[Any], bool]) -> None:
        self._name, self._valid = name, valid
        self._known: dict[str, Any] = {}
        self._read_from: Path | None = None
        self._lock = threading.RLock()
        _CACHES[name] = self

    def get(self, key: str, measure: Callable[[], Any]) -> Any:
        """Returns what is kept under a key; measures and keeps it where there is nothing.

        One thread of the process measures at a time: two would slow each other. Who only asks never waits for it.
        """
        found = self.find(key)
        if found is None:
            with _MEASURING:
                found = self.find(key)
                if found is None:
                    found = measure()
                    self.put(key, found)
        return found

    def find(self, key: str) -> Any:
        """Returns what is kept under a key; None for nothing."""
        with self._lock:
            self._load()
            return self._noted(key)

    def put(self, key: str, value: Any) -> None:
        """Keeps a value under a key, in the place of what was there."""
        with self._lock:
            self._load()
            self._known[key] = value
            self._noted(key)
            self._write()

    def _noted(self, key: str) -> Any:
        """What is kept under a key, written down for who records."""
        found = self._known.get(key)
        if found is not None:
            for record in getattr(_recording, "records", ()):
                record.setdefault(self._name, {})[key] = found
        return found

    def take(self, values: Mapping[str, Any]) -> None:
        """Takes what was timed by another process on a machine like this, in the place of what was timed here."""
        with self._lock:
            self._load()
            self._known |= {key: value for key, value in values.items() if self._valid(value)}

    def forget(self) -> None:
        """Forgets what this process knows; the file stays."""
        with self._lock:
            self._known.clear()
            self._read_from = None

    def file(self) -> Path | None:
        """Where the values are kept: in $GAIA_FAST_CACHE, else in the user's cache; None for nowhere."""
        folder = user_cache.folder()
        return None if folder is None else folder / f"{self._name}-{machine()}.json"

    def _load(self) -> None:
        path = self.file()
        if path is not None and path != self._read_from:
            self._read_from = path
            self._known = self._read() | self._known

    def _read(self) -> dict[str, Any]:
        """The values of earlier processes; none where there is no such file, or nothing sensible in it."""
        path = self.file()
        try:
            found = {} if path is None else json.loads(path.read_text())
        except (OSError, ValueError):
            return {}
        return {key: value for key, value in found.items() if self._valid(value)} if isinstance(found, dict) else {}

    def _write(self) -> None:
        path = self.file()
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps({**self._read(), **self._known}, indent=0) + "\n")
        except (OSError, GaiaError):  # it will be measured again
            return


@contextlib.contextmanager
def recorded() -> Iterator[dict[str, dict[str, Any]]]:
    """Yields a mapping that fills with what this thread is told meanwhile: by cache, values by key."""
    record: dict[str, dict[str, Any]] = {}
    outer = getattr(_recording, "records", ())
    _recording.records = (*outer, record)
    try:
        yield record
    finally:
        _recording.records = outer


def take(record: Mapping[str, Mapping[str, Any]]) -> None:
    """Takes what was `recorded` by another process on a machine like this, in the place of what was timed here.

    What that process decided by it is then decided in the same way: else the last bit would differ.
    """
    for name, values in record.items():
        if name in _CACHES:
            _CACHES[name].take(values)


@lru_cache
def machine() -> str:
    """The processor, the instruction-set level and the build of the kernels, in a few letters."""
    of = hashlib.sha256(platform.machine().encode())
    if kernels is not None:
        of.update(Path(str(kernels.__file__)).read_bytes())
        of.update(kernels.cpu_level().encode())
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        lines = [platform.processor()]
    for line in lines:
        if line.partition(":")[0].strip() in _PROCESSOR or len(lines) == 1:
            of.update(line.encode())
    return of.hexdigest()[:16]
