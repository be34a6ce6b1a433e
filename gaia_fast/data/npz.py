"""Images in an `.npz`: as pixels, or as files end to end."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from gaia_fast import npz
from gaia_fast.data.presets import Preset
from gaia_fast.data.source import ImageSource, Picture, reason
from gaia_fast.errors import DataError

_WANTED = (
    "Save it by numpy.savez(path, x=images) with images uint8 (N, H, W, 3), and y=labels (N,) if there are any; or "
    "data=files end to end (uint8) with offsets=where each begins (N + 1)."
)


def from_npz(path: Path, preset: Preset, max_pixels: int) -> ImageSource:
    try:
        held = npz.names(path)
        headers = npz.read_headers(path, ("x", "y", "data", "offsets"))
    # zlib, zipfile and numpy each report damage in their own way.
    except Exception as error:
        raise DataError(f"{path} cannot be read as an .npz ({reason(error)}). {_WANTED}") from error
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
        raise DataError(f"{path} cannot be read as an .npz ({reason(error)}). {_WANTED}") from error
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


def _split(path: Path, data: np.ndarray, offsets: np.ndarray) -> list[Picture]:
    ends = [int(each) for each in offsets]
    if ends[0] < 0 or ends[-1] > data.size or any(end < start for start, end in pairwise(ends)):
        raise DataError(f"{path}: 'offsets' do not rise from 0 to the {data.size} bytes of 'data'. {_WANTED}")
    return [data[start:end].tobytes() for start, end in pairwise(ends)]
