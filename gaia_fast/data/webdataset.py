"""Images in the shards of a WebDataset: tar archives, of which each member is read by itself, from where it lies."""

import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from gaia_fast import files
from gaia_fast.data.folder import by_ending
from gaia_fast.data.presets import Preset
from gaia_fast.data.source import SUFFIXES, ImageSource, StoredPicture, reason
from gaia_fast.errors import DataError

ENDINGS = (".tar",)

_LABEL = ".cls"
_NO_FILE = -1  # the size of a link or device


@dataclass(frozen=True, slots=True)
class TarMember(StoredPicture):
    """A picture in a tar archive, which is not compressed.

    Attributes:
        file: the archive.
        offset: of its first byte.
        size: in bytes.
    """

    file: Path
    offset: int
    size: int

    def read(self) -> bytes:
        if self.size == _NO_FILE:
            raise DataError("it is a link, a sparse file or a device in the archive, no plain file")
        with self.file.open("rb") as archive:
            archive.seek(self.offset)
            data = archive.read(self.size)
        if len(data) < self.size:
            raise DataError(f"{self.file.name} ends within it")
        return data

    def place(self) -> str:
        return f"{self.offset} {self.size}"


def from_webdataset(folder: Path, names: Sequence[str], preset: Preset, max_pixels: int) -> ImageSource:
    """Images in tar archives, called by archive and member; labels where each has a ".cls" with its number.

    Raises:
        DataError: an archive is damaged or compressed, or there is no image in any.
    """
    called: list[str] = []
    pictures: list[StoredPicture] = []
    labels: list[int | None] = []
    others: list[str] = []
    for name in names:
        path = folder / name
        members = _members(path)
        classes = {_sample(each.name): _label(path, each) for each in members if each.name.endswith(_LABEL)}
        for member in members:
            if member.name.lower().endswith(SUFFIXES):
                plain = member.isreg() and not member.issparse()
                called.append(f"{name}/{member.name.removeprefix('./')}")
                pictures.append(TarMember(path, member.offset_data, member.size if plain else _NO_FILE))
                labels.append(classes.get(_sample(member.name)))
            elif not member.isdir() and not member.name.endswith(_LABEL):
                others.append(member.name)
    if not called:
        raise DataError(f"{folder / names[0]} holds no image. Images in a tar archive end in {', '.join(SUFFIXES)}.")
    found = ImageSource(called, pictures, preset, _tensor(labels), max_pixels)
    found.skipped = by_ending(others)
    return found


def _members(path: Path) -> list[tarfile.TarInfo]:
    how = "Give whole, uncompressed .tar files."
    try:
        if what := files.kind(path):
            raise DataError(f"{path} is {what}, no file. {how}")
        with tarfile.open(path, "r:") as archive:
            members = archive.getmembers()
            end = archive.offset
        with path.open("rb") as file:
            file.seek(end)
            after = file.read(tarfile.BLOCKSIZE)
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read as a tar archive ({reason(error)}). {how}") from error
    # tarfile takes a damaged header for the end, which are blocks of zeros.
    if any(after) or end > path.stat().st_size:
        raise DataError(f"{path} is damaged or cut off behind {len(members)} members. {how}")
    return members


def _sample(name: str) -> str:
    """What the files of one sample share: the name up to the first dot of its last part."""
    path = PurePosixPath(name)
    return str(path.with_name(path.name.partition(".")[0] or path.name))


def _label(path: Path, member: tarfile.TarInfo) -> int | None:
    try:
        text = TarMember(path, member.offset_data, min(member.size, 32)).read()
        return int(text)
    except (DataError, OSError, ValueError):
        return None


def _tensor(labels: Sequence[int | None]) -> Tensor | None:
    """Labels, where all are known and may be."""
    known = [each for each in labels if each is not None and 0 <= each < 2**63]
    return torch.tensor(known) if len(known) == len(labels) else None
