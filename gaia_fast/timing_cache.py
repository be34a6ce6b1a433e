"""What was timed on this machine: kept in memory, and in files of the user's cache, so that a process that comes later
decides in the same way, and at once."""

import hashlib
import json
import platform
import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from gaia_fast import user_cache
from gaia_fast.backends import kernels
from gaia_fast.errors import GaiaError
from gaia_fast.files import write_text

# What tells one processor from another: two generations may share a name.
_PROCESSOR = ("model name", "cpu family", "model", "stepping", "CPU implementer", "CPU part")


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
        self._lock = threading.RLock()

    def get(self, key: str, measure: Callable[[], Any]) -> Any:
        """Returns what is kept under a key; measures and keeps it where there is nothing.

        One thread measures at a time: two would slow each other.
        """
        with self._lock:
            found = self.find(key)
            if found is None:
                found = measure()
                self.put(key, found)
            return found

    def find(self, key: str) -> Any:
        """Returns what is kept under a key; None for nothing."""
        with self._lock:
            self._load()
            return self._known.get(key)

    def put(self, key: str, value: Any) -> None:
        """Keeps a value under a key, in the place of what was there."""
        with self._lock:
            self._load()
            self._known[key] = value
            self._write()

    def forget(self) -> None:
        """Forgets what this process knows; the file stays."""
        with self._lock:
            self._known.clear()

    def file(self) -> Path | None:
        """Where the values are kept: in $GAIA_FAST_CACHE, else in the user's cache; None for nowhere."""
        folder = user_cache.folder()
        return None if folder is None else folder / f"{self._name}-{machine()}.json"

    def _load(self) -> None:
        if not self._known:
            self._known.update(self._read())

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
