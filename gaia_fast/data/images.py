"""Images from a folder or an `.npz`, where one bad image never stops the others."""

import hashlib
import io
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from gaia_fast import files, npz
from gaia_fast.data.presets import Preset, preset_named
from gaia_fast.errors import ArgumentError, DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
# Named, so that no other reader of Pillow's is ever tried on a file that only claims to be an image.
FORMATS = ("PNG", "JPEG", "BMP", "WEBP")

MAX_PIXELS = 64_000_000  # of one image: it takes nearly 50 bytes a pixel until the network has it


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
    """

    def __init__(
        self,
        names: list[str],
        pictures: Sequence[Path | bytes] | np.ndarray,
        preset: Preset,
        labels: Tensor | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.names = names
        self.labels = labels
        self.preset = preset
        self.max_pixels = max_pixels
        self._pictures = pictures
        self._unreadable: dict[int, str] = {}

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
                f"{self.names[index]} cannot be read: {_reason(error)}. Replace it, or iterate over `batches`, which "
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
        return [(self.names[index], reason) for index, reason in sorted(self._unreadable.items())]

    def take(self, indices: Sequence[int]) -> "ImageSource":
        """These images, in this order, as a source of its own."""
        labels = None if self.labels is None else self.labels[list(indices)]
        if isinstance(self._pictures, np.ndarray):
            pictures: Sequence[Path | bytes] | np.ndarray = self._pictures[list(indices)]
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
            reason = self.unreadable[0][1] if self.unreadable else "there are none"
            raise DataError(f"none of the {len(self)} images can be read ({reason})")
        return batch

    def part(self, start: int, stop: int) -> "ImageSource":
        """The images from `start` to before `stop`, as a source of its own; fewer where there are no more."""
        start, stop, _ = slice(start, stop).indices(len(self))
        labels = None if self.labels is None else self.labels[start:stop]
        return ImageSource(self.names[start:stop], self._pictures[start:stop], self.preset, labels, self.max_pixels)

    def digest(self) -> str:
        """What decides the images, in a few letters: their bytes (of files in a folder: path, size and time of the last
        change) and the preset."""
        of = hashlib.sha256(repr((self.preset, self.max_pixels)).encode())
        for picture in self._pictures:
            if isinstance(picture, Path):
                of.update(f"{picture.absolute()} {_state(picture)}\n".encode(errors="surrogateescape"))
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
                self._unreadable[index] = _reason(error.__cause__ or error)
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


def load_images(path: str | os.PathLike[str], preset: str | Preset, max_pixels: int = MAX_PIXELS) -> ImageSource:
    """The images of a folder (any depth), of one image file, or of an `.npz`.

    Folders: .png, .jpg, .jpeg, .bmp and .webp in any case, sorted by path; linked folders are not entered. Only the
    first frame is read, an alpha channel is dropped, and an EXIF orientation is ignored: classifiers are trained on
    folders read that way. What is no regular file, such as a named pipe, is unreadable, and so is an image of more
    than `max_pixels`, or that the preset would make so large, before it is decoded.

    Archives: `x` uint8 (N, H, W, 3); or the files of N images (PNG, JPEG, BMP, WebP), end to end, as `data` uint8 (M,),
    with `offsets` integer (N + 1,): image n goes from offsets[n] to offsets[n + 1]. And `y` integer (N,), if there are
    labels. Nothing in them is unpickled, and nothing else read.

    Args:
        path: the folder or file.
        preset: a name in `PRESETS`, or a `Preset`.
        max_pixels: the most pixels, width times height, of an image in a file, and of any as the preset resizes it.
            Pillow has a limit of its own, twice `PIL.Image.MAX_IMAGE_PIXELS`.

    Raises:
        DataError: nothing is there, no image is in it, or the archive is damaged or holds something else.
        ArgumentError: no preset has this name, or the limit is below 1 or above Pillow's.
    """
    pillows = Image.MAX_IMAGE_PIXELS and 2 * Image.MAX_IMAGE_PIXELS
    if max_pixels < 1 or (pillows and max_pixels > pillows):
        raise ArgumentError(
            f"max_pixels is {max_pixels}; give at least 1, and no more than Pillow opens, {pillows or 'any number'}: "
            "twice PIL.Image.MAX_IMAGE_PIXELS, which can be set."
        )
    preset = preset_named(preset)
    path = Path(path)
    try:
        what = files.kind(path)
    except (OSError, ValueError) as error:  # a ValueError says that no file can have such a name
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"is out of reach ({error})"
        raise DataError(f"{path} {reason}. Give a folder of images, an image or an .npz.") from error
    if what == files.FOLDER:
        return _from_folder(path, preset, max_pixels)
    if what:
        raise DataError(f"{path} is {what}, no file. Give a folder of images, an image or an .npz.")
    if path.suffix.lower() == ".npz":
        return _from_npz(path, preset, max_pixels)
    if path.suffix.lower() in SUFFIXES:
        return ImageSource([path.name], [path], preset, max_pixels=max_pixels)
    raise DataError(f"{path} is neither an image ({', '.join(SUFFIXES)}) nor an .npz. Give one of these, or a folder.")


def load_class_folders(path: str | os.PathLike[str], preset: str | Preset, max_pixels: int = MAX_PIXELS) -> ImageSource:
    """The images of a folder that has a folder for each class, as ImageNet's do.

    Labels are the places of the classes' folders, empty ones too, in their sorted order.

    Raises:
        DataError: an image lies outside of these folders. Else as `load_images`.
    """
    found = load_images(path, preset, max_pixels)
    folders = [name.partition("/")[0] if "/" in name else "" for name in found.names]
    if "" in folders:
        raise DataError(
            f"{path} holds {found.names[folders.index('')]} outside of the classes' folders; move it into one."
        )
    there = sorted(each.name for each in Path(path).iterdir() if each.is_dir())
    classes = {name: index for index, name in enumerate(there)}
    found.labels = torch.tensor([classes[name] for name in folders])
    return found


def _state(path: Path) -> str:
    """Size and time of the last change of a file, or why they are not known."""
    try:
        state = path.stat()
    except OSError as error:
        return str(error.strerror)
    return f"{state.st_size} {state.st_mtime_ns}"


def _reason(error: BaseException) -> str:
    """The first line of the message; Pillow's "cannot identify" repeats the path or an object's address."""
    if isinstance(error, UnidentifiedImageError):
        return f"not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image"
    return (str(error).splitlines() or [type(error).__name__])[0]


def open_picture(file: Path | bytes, preset: Preset, max_pixels: int) -> Image.Image:
    """The decoded picture of a file, or of its bytes, as `load_images` reads it for a preset.

    Raises:
        DataError: no regular file, or more pixels than that, as it is or resized; before it is decoded. Else whatever
            Pillow raises.
    """
    if isinstance(file, Path) and (what := files.kind(file)):
        raise DataError(f"it is {what}, no file")
    with Image.open(file if isinstance(file, Path) else io.BytesIO(file), formats=FORMATS) as image:
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


def _unlisted(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be listed ({error.strerror}). Allow it to be read, or move it away.")


def _from_folder(folder: Path, preset: Preset, max_pixels: int) -> ImageSource:
    names = sorted(
        (Path(parent) / file).relative_to(folder).as_posix()
        for parent, _, files in os.walk(folder, onerror=_unlisted)
        for file in files
        if file.lower().endswith(SUFFIXES)
    )
    if not names:
        raise DataError(f"{folder} holds no image. Put {', '.join(SUFFIXES)} files into it or a folder below it.")
    return ImageSource(names, [folder / name for name in names], preset, max_pixels=max_pixels)


_WANTED = (
    "Save it by numpy.savez(path, x=images) with images uint8 (N, H, W, 3), and y=labels (N,) if there are any; or "
    "data=files end to end (uint8) with offsets=where each begins (N + 1)."
)


def _from_npz(path: Path, preset: Preset, max_pixels: int) -> ImageSource:
    try:
        held = npz.names(path)
        headers = npz.read_headers(path, ("x", "y", "data", "offsets"))
    # zlib, zipfile and numpy each report damage in their own way.
    except Exception as error:
        raise DataError(f"{path} cannot be read as an .npz ({_reason(error)}). {_WANTED}") from error
    if "x" in headers:
        count = _check_arrays(path, headers["x"])
        headers = {name: header for name, header in headers.items() if name in ("x", "y")}
    elif {"data", "offsets"} <= headers.keys():
        count = _check_files(path, headers["data"], headers["offsets"])
    else:
        raise DataError(f"{path} has no array 'x', only {', '.join(held) or 'nothing'}. {_WANTED}")
    y = headers.get("y")
    if y is not None and (y.dtype.kind not in "iu" or y.shape != (count,)):
        raise DataError(f"{path}: 'y' is {y.dtype} {y.shape} for {count} images; labels are integers (N,). {_WANTED}")

    try:
        arrays = npz.read_arrays(path, headers)
    except Exception as error:
        raise DataError(f"{path} cannot be read as an .npz ({_reason(error)}). {_WANTED}") from error
    labels = None
    if y is not None:
        if int(arrays["y"].max()) > np.iinfo(np.int64).max:  # else it would become a negative number
            raise DataError(f"{path}: 'y' holds {arrays['y'].max()}, which is no class. {_WANTED}")
        labels = torch.from_numpy(arrays["y"].astype(np.int64))
    pictures = arrays["x"] if "x" in arrays else _split(path, arrays["data"], arrays["offsets"])
    return ImageSource([str(index) for index in range(count)], pictures, preset, labels, max_pixels)


def _check_arrays(path: Path, x: npz.Header) -> int:
    if x.dtype != np.uint8 or len(x.shape) != 4 or x.shape[3] != 3 or 0 in x.shape[1:]:
        raise DataError(f"{path}: 'x' is {x.dtype} {x.shape}. {_WANTED}")
    if x.shape[0] == 0:
        raise DataError(f"{path}: 'x' holds no image. {_WANTED}")
    return x.shape[0]


def _check_files(path: Path, data: npz.Header, offsets: npz.Header) -> int:
    if data.dtype != np.uint8 or len(data.shape) != 1 or offsets.dtype.kind not in "iu" or len(offsets.shape) != 1:
        raise DataError(
            f"{path}: 'data' is {data.dtype} {data.shape} and 'offsets' {offsets.dtype} {offsets.shape}. {_WANTED}"
        )
    if offsets.shape[0] < 2:
        raise DataError(f"{path}: 'offsets' tells of no image. {_WANTED}")
    return offsets.shape[0] - 1


def _split(path: Path, data: np.ndarray, offsets: np.ndarray) -> list[Path | bytes]:
    ends = [int(each) for each in offsets]
    if ends[0] < 0 or ends[-1] > data.size or any(end < start for start, end in pairwise(ends)):
        raise DataError(f"{path}: 'offsets' do not rise from 0 to the {data.size} bytes of 'data'. {_WANTED}")
    return [data[start:end].tobytes() for start, end in pairwise(ends)]
