"""Files that are whole: written aside and put in place when complete, and nothing but regular files opened."""

import contextlib
import errno
import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from gaia_fast.errors import ArgumentError

# Links that stand for a file that is open already: what holds it open would not see another one put in its place.
_OPEN_FILES = ("/proc/", "/dev/fd/")

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what writing to an open file says, without the file's name
_TRIES = 100  # to hold a file whose holders delete it

FOLDER = "a folder"
_KINDS = {
    stat.S_IFDIR: FOLDER,
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def kind(path: Path) -> str:
    """What stands at a path, links followed: "" for a regular file, else "a named pipe", "a folder" and so on.

    Whoever opens a named pipe waits for a writer that may never come.

    Raises:
        OSError: nothing is there, or it cannot be looked at.
    """
    mode = path.stat().st_mode
    return "" if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "no regular file")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a path to write to, whose file takes the place of `path` if all goes well.

    Whatever goes wrong leaves `path` as it was, and nothing beside it. What it links to is replaced, not the link;
    permissions are those of the file replaced, else those that any new file gets. The path yielded has the same name,
    in a folder of its own beside `path`. A device or pipe (/dev/stdout) cannot be replaced: it is yielded itself.

    Raises:
        ArgumentError: `path` is a folder, or its folder takes no files, or is full.
    """
    try:
        place = target(path)
        if place is not None:
            folder = tempfile.TemporaryDirectory(prefix=".gaia-fast-", dir=place.parent)
    except OSError as error:
        raise _refused(path, error) from error
    if place is None:
        yield path
        return
    with folder:
        written = Path(folder.name) / place.name
        try:
            yield written
        except OSError as error:
            if error.errno in _FULL and error.filename is None:
                raise _refused(path, error) from error
            raise
        try:
            with written.open("rb+") as file:
                os.fsync(file.fileno())  # else a crash of the machine could leave the name without the content
            if place.exists():
                written.chmod(stat.S_IMODE(place.stat().st_mode))
            written.replace(place)
        except OSError as error:
            raise _refused(path, error) from error


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields a folder to fill, which becomes `path` if all goes well. Whatever goes wrong leaves nothing.

    Raises:
        ArgumentError: there is something by that name, or its folder takes no new ones.
    """
    try:
        beside = tempfile.TemporaryDirectory(prefix=".gaia-fast-", dir=path.absolute().parent)
    except OSError as error:
        raise _refused(path, error) from error
    with beside:
        filled = Path(beside.name) / path.name
        filled.mkdir()
        yield filled
        if path.exists():
            raise ArgumentError(f"{path} is there already; it is left as it is")
        try:
            filled.rename(path)
        except OSError as error:
            raise _refused(path, error) from error


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text to a file, all of it or nothing; see `replacing`."""
    with replacing(path) as written:
        written.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def held(path: Path, refused: str) -> Iterator[None]:
    """Holds a file that no two processes hold at a time; whichever way this one ends lets it go.

    The file is made if need be, and its folder, too: whoever held it before may be about to delete both.

    Raises:
        ArgumentError: another process holds it, and the message is `refused`; the folder cannot be made, takes no
            files, or no file in it can be held.
    """
    for remaining in reversed(range(_TRIES)):
        try:
            path.parent.mkdir(exist_ok=True)
            file = path.open("a")
        except OSError as error:
            if isinstance(error, FileNotFoundError) and remaining:  # the folder was deleted since it was made
                continue
            raise _refused(path.parent, error) from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ArgumentError(refused) from error
            except OSError as error:
                raise ArgumentError(
                    f"{path.parent} is on a file system where no file can be held ({error.strerror}), so that two runs "
                    "could write there at once; choose a folder elsewhere"
                ) from error
            if _is_open(file.fileno(), path):
                yield
                return
    raise ArgumentError(refused)


def _is_open(file: int, path: Path) -> bool:
    """Whether an open file is still the one by that name: another may have been put there, or none."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


def target(path: Path) -> Path | None:
    """The file to be replaced, at the end of all links; None where `path` can only be written to as it is.

    Raises:
        ArgumentError: it is a folder. OSError: it cannot be looked at.
    """
    try:
        if what := kind(path):
            if what == FOLDER:
                raise ArgumentError(f"{path} is a folder; give the name of a file")
            return None
    except FileNotFoundError:  # a new file, or a link to one
        pass
    link = path.absolute()
    while link.is_symlink():
        link = link.parent.resolve() / link.name
        if str(link).startswith(_OPEN_FILES):
            return None
        link = link.parent / link.readlink()
    return path.resolve()


def _refused(path: Path, error: OSError) -> ArgumentError:
    how = "make room, or choose another folder" if error.errno in _FULL else "choose a folder that takes new files"
    return ArgumentError(f"{path} cannot be written ({error.strerror}); {how}")
