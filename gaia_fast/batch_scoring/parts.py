"""The parts of a table that is not whole yet: a file for each chunk of images, in a folder beside the table's place.

A part is there as a whole or not at all, and is called by the images it is of: a chunk that is scored twice gives the
same part again, so that no row is lost or comes twice, whoever is killed.
"""

import contextlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gaia_fast import files
from gaia_fast.batch_scoring.chunks import Chunk, Part, split
from gaia_fast.batch_scoring.request import Request
from gaia_fast.errors import ArgumentError, DataError, first_line

ENDING = ".partial"  # after the name of the table
PROGRAMS = "programs"  # a folder of the model's programs, so that a run that goes on scores with the very same

_LOCK, _MANIFEST, _REQUEST, _MORE = "lock", "manifest.json", "request", "more"
# What else there may be: a part, the programs, and what a run that was killed had not yet put in its place.
_OURS = re.compile(rf"\d+-\d+\.json|{PROGRAMS}|\.gaia-fast-.*")


@dataclass
class PartsFolder:
    """The parts there are of a table.

    Attributes:
        path: of the folder.
        request: what the rows are of.
        more: what was found out before the first image and holds for all of them, as plain data.
    """

    path: Path
    request: Request
    more: dict[str, Any] = field(default_factory=dict)

    def keep(self, more: Mapping[str, Any]) -> None:
        """Writes down what was asked, and `more`; before the first part."""
        self.more = dict(more)
        files.write_text(self.path / _MANIFEST, json.dumps({_REQUEST: asdict(self.request), _MORE: self.more}))

    @property
    def chunks(self) -> list[Chunk]:
        """All chunks, in the order of the images."""
        return split(self.request.count, self.request.chunk)

    @property
    def missing(self) -> list[Chunk]:
        """Those that there is no part of."""
        return [each for each in self.chunks if not self._file(each).exists()]

    @property
    def done(self) -> int:
        """How many images the parts are of."""
        return self.request.count - sum(stop - start for start, stop in self.missing)

    def write(self, chunk: Chunk, part: Part) -> None:
        """Keeps the part of a chunk, in place of an earlier one.

        Raises:
            DataError: it is not of all the chunk's images. ArgumentError: the folder takes no files.
        """
        _check(chunk, part, "what was scored")
        files.write_text(self._file(chunk), json.dumps(asdict(part)))

    def read(self) -> Iterator[Part]:
        """The parts of all chunks, in the order of the images.

        Raises:
            DataError: one is missing or damaged.
        """
        for chunk in self.chunks:
            path = self._file(chunk)
            try:
                data = json.loads(path.read_text(encoding="utf-8"))
                part = Part(data["rows"], [(name, reason) for name, reason in data["unreadable"]])
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path} cannot be read ({first_line(error)}); delete it, and resume") from error
            _check(chunk, part, str(path))
            yield part

    def remove(self) -> None:
        """Deletes all of it: the parts first, so that none is left without what it is of, and what is held last."""
        _empty(self.path)
        (self.path / _LOCK).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # another run has begun there since, or somebody else's file is there
            self.path.rmdir()

    def _file(self, chunk: Chunk) -> Path:
        return self.path / f"{chunk.start:09d}-{chunk.stop:09d}.json"


def _check(chunk: Chunk, part: Part, what: str) -> None:
    if part.images != chunk.stop - chunk.start:
        raise DataError(
            f"{what} is of {part.images} images, not of those from {chunk.start} to {chunk.stop}; delete it"
        )


@contextlib.contextmanager
def parts_of(table: Path, request: Request, resume: bool) -> Iterator[tuple[PartsFolder, bool]]:
    """The folder for the parts of a table, held by one process at a time; and whether there was one by an earlier run.

    Its `more` is empty where nothing was kept. The folder stays when the context ends; see `PartsFolder.remove`.

    Args:
        table: the file that the parts are for.
        request: what they are of.
        resume: whether to go on from those that are there, instead of deleting them.

    Raises:
        ArgumentError: another process writes this table; what is there belongs to another request, or is no folder of
            parts; or no folder can be made.
    """
    place = files.target(table)
    if place is None:
        raise ArgumentError(f"{table} is a pipe or a device, beside which nothing can be kept; give the name of a file")
    path = place.with_name(place.name + ENDING)
    held: set[str] = set()
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        held = {each.name for each in path.iterdir()}
    if held and not held & {_LOCK, _MANIFEST}:
        raise ArgumentError(f"{path} is there and holds no parts of a table; move it away, or choose another name")
    with files.held(path / _LOCK, f"another run is writing {table}: wait for its end, or choose another name"):
        earlier = (path / _MANIFEST).exists()
        folder = PartsFolder(path, request)
        if earlier and resume:
            folder.more = _kept(path, request)
        else:  # without a manifest, too: nobody knows what such parts are of
            _empty(path)
        yield folder, earlier


def _kept(path: Path, request: Request) -> dict[str, Any]:
    """What was found out for a request by an earlier run; ArgumentError for another request."""
    how = "Ask for what was asked, or leave --resume out, which starts from the beginning"
    try:
        data = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        before, more = Request.read(data[_REQUEST]), dict(data[_MORE])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArgumentError(f"{path / _MANIFEST} cannot be read ({first_line(error)}). {how}") from error
    if difference := before.difference(request):
        raise ArgumentError(f"{path} holds the rows of another run: {difference}. {how}")
    return more


def _empty(path: Path) -> None:
    """Deletes what an earlier run has left, but for the lock, which is held; the manifest last."""
    for each in path.iterdir():
        if not _OURS.fullmatch(each.name):
            continue
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each, ignore_errors=True)
        else:
            each.unlink(missing_ok=True)
    (path / _MANIFEST).unlink(missing_ok=True)
