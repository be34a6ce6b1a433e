"""Images that are files, in folders of any depth."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from gaia_fast.data.presets import Preset
from gaia_fast.data.source import ImageSource
from gaia_fast.errors import DataError


def listed(folder: Path) -> list[str]:
    """The files of a folder, relative to it, with forward slashes, sorted; linked folders are not entered.

    Raises:
        DataError: a folder in it cannot be listed.
    """
    return sorted(
        (Path(parent) / file).relative_to(folder).as_posix()
        for parent, _, files in os.walk(folder, onerror=_unlisted)
        for file in files
    )


def by_ending(names: Iterable[str]) -> Counter[str]:
    """How many names have which ending, such as ".txt"; "" for none."""
    return Counter(PurePosixPath(name).suffix.lower() for name in names)


def from_files(folder: Path, names: Sequence[str], preset: Preset, max_pixels: int) -> ImageSource:
    """Images in files of their own."""
    return ImageSource(list(names), [folder / name for name in names], preset, max_pixels=max_pixels)


def _unlisted(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be listed ({error.strerror}). Allow it to be read, or move it away.")
