"""Arrays of an `.npz`, known by their headers before any of their data are read."""

import math
import zipfile
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib import format as npy


@dataclass(frozen=True)
class Header:
    """What an array says that it is.

    Attributes:
        entry: its name in the archive.
        shape: as in numpy.
        dtype: as in numpy; no objects.
    """

    entry: str
    shape: tuple[int, ...]
    dtype: np.dtype


def names(path: Path) -> list[str]:
    """The names of what is in an archive.

    Raises:
        ValueError: a name occurs twice. Damaged archives raise whatever zipfile trips over.
    """
    with zipfile.ZipFile(path) as archive:
        count = Counter(_name(info) for info in archive.infolist())
    if twice := [name for name, times in count.items() if times > 1]:
        raise ValueError(f"it holds {twice[0]!r} more than once")
    return list(count)


def read_headers(path: Path, wanted: Collection[str]) -> dict[str, Header]:
    """The headers of those arrays that are there; no more of each is inflated.

    Raises:
        ValueError: pickled objects, or an array of another size than its entry. Damaged archives raise whatever
            zipfile, zlib and numpy trip over.
    """
    with zipfile.ZipFile(path) as archive:
        return {_name(info): _header(archive, info) for info in archive.infolist() if _name(info) in wanted}


def read_arrays(path: Path, headers: Mapping[str, Header]) -> dict[str, np.ndarray]:
    """The arrays whose headers were read before.

    Raises:
        ValueError: the archive is no longer the one that the headers are of. Else as `read_headers`.
    """
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        for name, header in headers.items():
            info = archive.getinfo(header.entry)
            if _header(archive, info) != header:
                raise ValueError(f"{name!r} changed while it was read")
            with archive.open(info) as file:
                arrays[name] = npy.read_array(file, allow_pickle=False)
                file.read(1)  # the checksum is compared where an entry ends
    return arrays


def _name(info: zipfile.ZipInfo) -> str:
    return info.filename.removesuffix(".npy")


def _header(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Header:
    with archive.open(info) as file:
        # Later formats are for structured arrays, and have headers of up to 4 GiB, which numpy would read first.
        if (version := npy.read_magic(file)) != (1, 0):
            raise ValueError(f"{info.filename!r} has the format {version} of structured arrays")
        shape, _, dtype = npy.read_array_header_1_0(file)
        if dtype.hasobject:
            raise ValueError(f"{info.filename!r}: Object arrays cannot be loaded without pickle")
        # A bomb's header and its entry tell different sizes, or the size is not one that anybody wants.
        if min(shape, default=0) < 0 or file.tell() + math.prod(shape) * dtype.itemsize != info.file_size:
            raise ValueError(f"{info.filename!r} is not of the size that its header says, {dtype} {shape}")
    return Header(info.filename, shape, dtype)
