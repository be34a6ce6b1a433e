"""Images in the shards of a WebDataset: tar archives, of which each member is read by itself, from where it lies."""

import os
import tarfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from gaia_fast import files
from gaia_fast.data.folder import by_ending
from gaia_fast.data.presets import Preset
from gaia_fast.data.source import (
    SUFFIXES,
    FileState,
    ImageSource,
    StoredPicture,
    check_encoded,
    check_unchanged,
    file_state,
    labels_tensor,
    reason,
)
from gaia_fast.errors import DataError, GaiaError

ENDINGS = (".tar",)
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
HOW = "Give whole, uncompressed .tar files."

_LABEL = ".cls"
_LABEL_BYTES = 32  # of the longest; a class has fewer digits
_NO_FILE = -1  # the size of a link or device
# Of a header that goes before a member, with its name and attributes, which tarfile reads whole: far more than any has.
_HEADER_BYTES = 2**16
_HEADERS = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TarMember(StoredPicture):
    """A picture in a tar archive, which is not compressed.

    Attributes:
        file: the archive.
        state: of the archive when its members were listed.
        offset: of its first byte.
        size: in bytes.
    """

    file: Path
    state: FileState
    offset: int
    size: int

    def read(self) -> bytes:
        if self.size < 0:
            raise DataError("it is a link, a sparse file or a device in the archive, no plain file")
        check_encoded(self.size)
        with self.file.open("rb") as archive:
            archive.seek(self.offset)
            data = archive.read(self.size)
            # Of the open file, and only now: it may be written to, or another put in its place, at any moment.
            check_unchanged(self.file, file_state(os.fstat(archive.fileno())), self.state)
        if len(data) < self.size:
            raise DataError(f"{self.file.name} ends within it")
        return data

    def place(self) -> str:
        return f"{self.offset} {self.size}"


class _Header(tarfile.TarInfo):
    """A member's header, refused before tarfile reads what it says: CVE-2025-8194 is a size below zero."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0:
            raise tarfile.ReadError(f"a member of {header.size} bytes")
        if header.type in _HEADERS and header.size > _HEADER_BYTES:
            raise tarfile.ReadError(f"the name and attributes of a member take {header.size} bytes")
        return header


def from_webdataset(folder: Path, names: Sequence[str], preset: Preset, max_pixels: int) -> ImageSource:
    """Images in tar archives, called by archive and member, those that would share a name also by their place among the
    archive's members; labels where each has a ".cls" with its number.

    Raises:
        DataError: an archive is damaged or compressed, or there is no image in any.
    """
    called: list[str] = []
    pictures: list[StoredPicture] = []
    labels: list[int | None] = []
    others: list[str] = []
    for name in names:
        path = folder / name
        members, state, classes = _read(path)
        shared = Counter(map(_called, members))
        for place, member in enumerate(members):
            if member.isdir():
                continue
            if member.name.lower().endswith(SUFFIXES):
                # No member that is an image ends in a number.
                which = f":{place}" if shared[_called(member)] > 1 else ""
                called.append(f"{name}/{_called(member)}{which}")
                pictures.append(TarMember(path, state, member.offset_data, member.size if _plain(member) else _NO_FILE))
                labels.append(classes.get(_sample(member.name)))
            elif not member.name.endswith(_LABEL):
                others.append(member.name)
    if not called:
        raise DataError(f"{folder / names[0]} holds no image. Images in a tar archive end in {', '.join(SUFFIXES)}.")
    found = ImageSource(called, pictures, preset, labels_tensor(labels), max_pixels)
    found.skipped = by_ending(others)
    return found


def _read(path: Path) -> tuple[list[tarfile.TarInfo], FileState, dict[str, int | None]]:
    """The members of an archive, its state before they were listed, and the classes of its samples."""
    try:
        if what := files.kind(path):
            raise DataError(f"{path} is {what}, no file. {HOW}")
        with path.open("rb") as file:
            state = file_state(os.fstat(file.fileno()))
            with tarfile.open(fileobj=file, mode="r:", tarinfo=_Header) as archive:
                members = _members(archive)
                end = archive.offset
            _check_end(path, file, end, len(members))
            return members, state, _classes(file, members)
    except GaiaError:
        raise
    # Damaged bytes make tarfile trip over more than it has errors for.
    except Exception as error:
        raise DataError(f"{path} cannot be read as a tar archive ({reason(error)}). {HOW}") from error


def _members(archive: tarfile.TarFile) -> list[tarfile.TarInfo]:
    members: list[tarfile.TarInfo] = []
    end = 0
    while (member := archive.next()) is not None:
        # An extended header gives its member a size of its own, below zero, too.
        if member.size < 0 or archive.offset <= end:
            raise tarfile.ReadError(f"a member of {member.size} bytes")
        end = archive.offset
        members.append(member)
    return members


def _check_end(path: Path, file: IO[bytes], end: int, count: int) -> None:
    """Raises a DataError unless a block of zeros ends the archive, and nothing but zeros comes behind.

    Writers end an archive with two, and fill it up to a length of their own; one is enough here, as it is for tar.
    """
    file.seek(end)
    after = file.read(tarfile.BLOCKSIZE)
    # tarfile takes a damaged header for the end, and the end of the file, too.
    if len(after) < tarfile.BLOCKSIZE or any(after):
        raise DataError(f"{path} is damaged or cut off behind {count} members: it has no end-of-archive block. {HOW}")
    while after := file.read(2**20):
        if after.count(0) < len(after):
            raise DataError(
                f"{path} goes on behind the end-of-archive block that follows {count} members, as archives put one "
                "behind the other do. Give each as a file of its own, or join them by `tar --concatenate`."
            )


def _classes(file: IO[bytes], members: Iterable[tarfile.TarInfo]) -> dict[str, int | None]:
    """The class of each sample that has one; None where it is said to be two."""
    classes: dict[str, int | None] = {}
    for member in members:
        if member.name.endswith(_LABEL) and not member.isdir():
            sample, label = _sample(member.name), _label(file, member)
            classes[sample] = label if classes.get(sample, label) == label else None
    return classes


def _label(file: IO[bytes], member: tarfile.TarInfo) -> int | None:
    if not _plain(member) or member.size > _LABEL_BYTES:
        return None
    file.seek(member.offset_data)
    text = file.read(member.size).strip()
    return int(text) if text.isdigit() else None


def _plain(member: tarfile.TarInfo) -> bool:
    return member.isreg() and not member.issparse()


def _called(member: tarfile.TarInfo) -> str:
    return member.name.removeprefix("./")


def _sample(name: str) -> str:
    """What the files of one sample share: the name up to the first dot of its last part."""
    path = PurePosixPath(name)
    return str(path.with_name(path.name.partition(".")[0] or path.name))
