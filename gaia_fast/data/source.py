"""Images by index, wherever they lie: read one by one, prepared by a preset, and never stopped by one that is bad."""

import errno
import hashlib
import io
import os
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from gaia_fast import files
from gaia_fast.data.presets import Preset
from gaia_fast.errors import ArgumentError, DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
# Named, so that no other reader of Pillow's is ever tried on a file that only claims to be an image.
FORMATS = ("PNG", "JPEG", "BMP", "WEBP")

MAX_PIXELS = 64_000_000  # of one image: it takes nearly 50 bytes a pixel until the network has it
# Of one encoded picture: it is in memory before its pixels can be counted. So much is a BMP of MAX_PIXELS with alpha.
MAX_ENCODED_BYTES = 256 * 2**20

FileState: TypeAlias = tuple[int, int]  # size in bytes, and st_mtime_ns


class StoredPicture(ABC):
    """An encoded picture within a file that holds many.

    Attributes:
        file: that holds it.
        state: of the file when its pictures were listed.
    """

    __slots__ = ()

    file: Path
    state: FileState

    @abstractmethod
    def read(self) -> bytes:
        """The picture as it is encoded.

        Raises:
            DataError: it has more than MAX_ENCODED_BYTES, or the file is not as it was. Else whatever its reader does.
        """

    @abstractmethod
    def place(self) -> str:
        """Where in the file it is, which tells it from the others."""


Picture: TypeAlias = Path | bytes | StoredPicture


@dataclass(frozen=True)
class Batch:
    """Images that go through the network together.

    Attributes:
        names: paths relative to the folder, with forward slashes, or indices into the archive.
        images: float32 (B, 3, H, W).
        labels: int64 (B,), or None where the source has none.
    """

    names: list[str]
    images: Tensor
    labels: Tensor | None


class ImageSource(Dataset[Tensor]):
    """Images by index, each float32 (3, H, W), prepared by a preset.

    Indexing raises a DataError on an unreadable image; `batches` leaves it out and notes it in `unreadable`.

    Attributes:
        names: one per image, see `Batch`.
        labels: int64 (N,), or None.
        preset: what prepares each picture.
        max_pixels: of the picture in a file, and of any as the preset resizes it; one that has more is unreadable.
        skipped: how many files beside them are no images by the ending of their names, by that ending.
    """

    def __init__(
        self,
        names: list[str],
        pictures: Sequence[Picture] | np.ndarray,
        preset: Preset,
        labels: Tensor | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.names = names
        self.labels = labels
        self.preset = preset
        self.max_pixels = max_pixels
        self.skipped: Counter[str] = Counter()
        self._pictures = pictures
        self._unreadable: dict[int, str] = {}
        self._errors: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Tensor:
        index = range(len(self))[index]
        try:
            # Of metadata, frames and transparency, which are not read: Pillow raises for what is wrong with the pixels.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return self.preset(self.picture(index))
        # Pillow's decoders raise whatever damaged bytes make them trip over.
        except Exception as error:
            raise DataError(
                f"{self.names[index]} cannot be read: {reason(error)}. Replace it, or iterate over `batches`, which "
                "leaves such images out."
            ) from error

    def picture(self, index: int) -> Image.Image | np.ndarray:
        """The picture by its index, as the preset gets it; raises whatever its decoder does."""
        picture = self._pictures[index]
        if not isinstance(picture, np.ndarray):
            return open_picture(picture, self.preset, self.max_pixels)
        height, width = picture.shape[:2]
        _check_resized(self.preset, height, width, max(self.max_pixels, height * width))  # it is in memory already
        return picture

    @property
    def unreadable(self) -> list[tuple[str, str]]:
        """(name, reason) of each image that `batches` has left out so far, in order."""
        return [(self.names[index], why) for index, why in sorted(self._unreadable.items())]

    @property
    def errors(self) -> dict[int, int]:
        """By the index of an image in `unreadable`, the `errno` of the machine's error, if that is why: such an image
        may be right, and be read another time."""
        return dict(self._errors)

    def take(self, indices: Sequence[int]) -> "ImageSource":
        """These images, in this order, as a source of its own."""
        labels = None if self.labels is None else self.labels[list(indices)]
        if isinstance(self._pictures, np.ndarray):
            pictures: Sequence[Picture] | np.ndarray = self._pictures[list(indices)]
        else:
            pictures = [self._pictures[index] for index in indices]
        return ImageSource([self.names[index] for index in indices], pictures, self.preset, labels, self.max_pixels)

    def first(self, count: int) -> Batch:
        """The first images that can be read and go through a network together, at most `count`.

        Raises:
            DataError: none can be read.
        """
        batch = next(self.batches(count), None)
        if batch is None:
            why = self.unreadable[0][1] if self.unreadable else "there are none"
            raise DataError(f"none of the {len(self)} images can be read ({why})")
        return batch

    def part(self, start: int, stop: int) -> "ImageSource":
        """The images from `start` to before `stop`, as a source of its own; fewer where there are no more."""
        start, stop, _ = slice(start, stop).indices(len(self))
        labels = None if self.labels is None else self.labels[start:stop]
        return ImageSource(self.names[start:stop], self._pictures[start:stop], self.preset, labels, self.max_pixels)

    def digest(self) -> str:
        """What decides the images, in a few letters: their bytes (of what lies in files: path, size, time of the last
        change, and the place in it) and the preset."""
        of = hashlib.sha256(repr((self.preset, self.max_pixels)).encode())
        file, said = None, ""  # of the file before, which many pictures may lie in
        for picture in self._pictures:
            if isinstance(picture, (Path, StoredPicture)):
                holder = picture if isinstance(picture, Path) else picture.file
                if holder is not file:
                    file, said = holder, f"{holder.absolute()} {_state(holder)}"
                place = "" if isinstance(picture, Path) else f" {picture.place()} {picture.state}"
                of.update(f"{said}{place}\n".encode(errors="surrogateescape"))
            else:
                of.update(len(picture).to_bytes(8, "little"))
                of.update(picture.tobytes() if isinstance(picture, np.ndarray) else picture)
        return of.hexdigest()[:32]

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """The readable images in order, in batches.

        A batch ends after `batch_size` images, and also where the size of the images changes (which only the preset
        `none` lets happen), because images of different sizes cannot be stacked.

        Raises:
            ArgumentError: batch_size is less than 1.
        """
        if batch_size < 1:
            raise ArgumentError(f"batch_size is {batch_size}; it must be at least 1.")
        return self._batches(batch_size)

    def _batches(self, batch_size: int) -> Iterator[Batch]:
        indices: list[int] = []
        images: list[Tensor] = []
        for index in range(len(self)):
            try:
                image = self[index]
            except DataError as error:
                self._unreadable[index] = reason(error.__cause__ or error)
                if isinstance(error.__cause__, MemoryError):
                    self._errors[index] = errno.ENOMEM
                elif isinstance(error.__cause__, OSError) and error.__cause__.errno:  # Pillow's own have none
                    self._errors[index] = error.__cause__.errno
                continue
            if images and image.shape != images[0].shape:
                yield self._stack(indices, images)
                indices, images = [], []
            indices.append(index)
            images.append(image)
            if len(images) == batch_size:
                yield self._stack(indices, images)
                indices, images = [], []
        if images:
            yield self._stack(indices, images)

    def _stack(self, indices: list[int], images: list[Tensor]) -> Batch:
        labels = None if self.labels is None else self.labels[indices]
        return Batch([self.names[index] for index in indices], torch.stack(images), labels)


def _state(path: Path) -> str:
    """Size and time of the last change of a file, or why they are not known."""
    try:
        state = path.stat()
    except OSError as error:
        return str(error.strerror)
    return f"{state.st_size} {state.st_mtime_ns}"


def file_state(of: os.stat_result) -> FileState:
    """What tells whether a file is still the same."""
    return of.st_size, of.st_mtime_ns


def check_unchanged(file: Path, now: FileState, listed: FileState) -> None:
    """Raises a DataError where a file is no longer as it was when its pictures were listed."""
    if now != listed:
        raise DataError(f"{file.name} has changed since its images were listed; score them again when it is complete")


def check_encoded(size: int) -> None:
    """Raises a DataError where an encoded picture is larger than any may be."""
    if size > MAX_ENCODED_BYTES:
        raise DataError(f"its {size} bytes are more than {MAX_ENCODED_BYTES}, the most that an encoded image may have")


def labels_tensor(labels: Sequence[int | None]) -> Tensor | None:
    """Labels, int64 (N,), where all are known and can be classes."""
    known = [each for each in labels if each is not None and 0 <= each < 2**63]
    return torch.tensor(known) if len(known) == len(labels) else None


def reason(error: BaseException) -> str:
    """The first line of the message; Pillow's "cannot identify" repeats the path or an object's address."""
    if isinstance(error, UnidentifiedImageError):
        return f"not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image"
    return (str(error).splitlines() or [type(error).__name__])[0]


def open_picture(picture: Picture, preset: Preset, max_pixels: int) -> Image.Image:
    """The decoded picture of a file, or of its bytes, for a preset.

    Raises:
        DataError: no regular file, more than MAX_ENCODED_BYTES, or more pixels than that, as it is or resized; before
            it is decoded. Else whatever Pillow raises.
    """
    if isinstance(picture, Path):
        if what := files.kind(picture):
            raise DataError(f"it is {what}, no file")
        check_encoded(picture.stat().st_size)
    data = picture.read() if isinstance(picture, StoredPicture) else picture
    if isinstance(data, bytes):
        check_encoded(len(data))
    with Image.open(data if isinstance(data, Path) else io.BytesIO(data), formats=FORMATS) as image:
        if image.width * image.height > max_pixels:
            raise DataError(f"{image.width}x{image.height} pixels are more than {max_pixels}, the limit (max_pixels)")
        _check_resized(preset, image.height, image.width, max_pixels)
        image.load()
        return image


def _check_resized(preset: Preset, height: int, width: int, max_pixels: int) -> None:
    if (pixels := preset.most_pixels(height, width)) > max_pixels:
        raise DataError(
            f"{width}x{height} pixels become {pixels} where the preset {preset.name!r} resizes them, more than "
            f"{max_pixels}, the limit (max_pixels)"
        )
