"""Images from wherever they lie: a folder, a file, an `.npz`, Parquet or WebDataset."""

import os
from pathlib import Path

import torch
from PIL import Image

from gaia_fast import files
from gaia_fast.data import parquet, webdataset
from gaia_fast.data.folder import by_ending, from_files, listed
from gaia_fast.data.npz import from_npz
from gaia_fast.data.parquet import from_parquet
from gaia_fast.data.presets import Preset, preset_named
from gaia_fast.data.source import MAX_PIXELS, SUFFIXES, ImageSource
from gaia_fast.data.webdataset import from_webdataset
from gaia_fast.errors import ArgumentError, DataError

# What the files of a folder are taken for, the first that there are any of; the others are counted.
_READERS = (
    (SUFFIXES, from_files),
    (parquet.ENDINGS, from_parquet),
    (webdataset.ENDINGS, from_webdataset),
)
_GIVE = "Give a folder of images, an image, an .npz, .parquet or .tar, or a folder of these last two."


def load_images(path: str | os.PathLike[str], preset: str | Preset, max_pixels: int = MAX_PIXELS) -> ImageSource:
    """The images of a folder (any depth), of one image file, of an `.npz`, of Parquet or of a WebDataset.

    Folders: .png, .jpg, .jpeg, .bmp and .webp in any case, sorted by path; linked folders are not entered. Only the
    first frame is read, an alpha channel is dropped, and an EXIF orientation is ignored: classifiers are trained on
    folders read that way. What is no regular file, such as a named pipe, is unreadable, and so is an image of more
    than `max_pixels`, or that the preset would make so large, before it is decoded, or of more than 256 MiB as it is
    encoded.

    Parquet, a file or a folder of them: a column of encoded images, binary or Hugging Face's struct of `bytes` and
    `path`, called `image`, `images`, `jpg`, `png` or `bytes`, or the only one of that kind; `path`, `name` or `__key__`
    calls them if that tells all apart, else file and row, and integers in `label` are their labels. WebDataset, a .tar
    or a folder of them: the members that end as images do, in the archive's order, and ".cls" beside each for the
    labels; links and sparse members are unreadable. Each image is read from its place when it is asked for; those of a
    file that has changed since are unreadable. A folder that holds images is one of images, whatever else it holds: see
    `ImageSource.skipped`.

    An .npz: `x` uint8 (N, H, W, 3); or the files of N images (PNG, JPEG, BMP, WebP), end to end, as `data` uint8 (M,),
    with `offsets` integer (N + 1,): image n goes from offsets[n] to offsets[n + 1]. And `y` integer (N,), if there are
    labels. Nothing in them is unpickled, and nothing else read.

    Args:
        path: the folder or file.
        preset: a name in `PRESETS`, or a `Preset`.
        max_pixels: the most pixels, width times height, of an image in a file, and of any as the preset resizes it.
            Pillow has a limit of its own, twice `PIL.Image.MAX_IMAGE_PIXELS`.

    Raises:
        DataError: nothing is there, no image is in it, or a file of many is damaged or holds something else; or Parquet
            without pyarrow (the extra `parquet`).
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
        raise DataError(f"{path} {reason}. {_GIVE}") from error
    if what == files.FOLDER:
        return _from_folder(path.absolute(), preset, max_pixels)
    if what:
        raise DataError(f"{path} is {what}, no file. {_GIVE}")
    if path.suffix.lower() == ".npz":
        return from_npz(path, preset, max_pixels)
    for endings, read in _READERS:
        if path.name.lower().endswith(endings):
            return read(path.parent.absolute(), [path.name], preset, max_pixels)
    if path.name.lower().endswith(webdataset.COMPRESSED):
        raise DataError(f"{path} is compressed, so that no image can be read by itself. {webdataset.HOW}")
    raise DataError(f"{path} is neither an image ({', '.join(SUFFIXES)}) nor an .npz, .parquet or .tar. {_GIVE}")


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


def _from_folder(folder: Path, preset: Preset, max_pixels: int) -> ImageSource:
    names = listed(folder)
    for endings, read in _READERS:
        chosen = [name for name in names if name.lower().endswith(endings)]
        if chosen:
            found = read(folder, chosen, preset, max_pixels)
            found.skipped += by_ending(name for name in names if not name.lower().endswith(endings))
            return found
    raise DataError(
        f"{folder} holds no image. Put {', '.join(SUFFIXES)} files, or images in .parquet or .tar, into it or a folder "
        "below it."
    )
