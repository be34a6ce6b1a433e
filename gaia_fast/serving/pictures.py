"""A picture in the body of a request, as the network takes it; or what is wrong with it."""

import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from gaia_fast.data.images import FORMATS, open_picture
from gaia_fast.data.presets import Preset
from gaia_fast.errors import DataError, first_line
from gaia_fast.serving.errors import RequestError


def read_picture(data: bytes, preset: Preset, max_pixels: int) -> np.ndarray:
    """Returns float32 (3, H, W), as the preset prepares the picture that these bytes are.

    Args:
        data: a PNG, JPEG, BMP or WebP file.
        preset: that makes images of one size.
        max_pixels: width times height of the most that is decoded; told from the file's head.

    Raises:
        RequestError: 400 where there is nothing, 413 more pixels, 415 no such file, 422 a file that cannot be decoded,
            or a picture that the preset cannot prepare.
    """
    if not data:
        raise RequestError("the body is empty; send the bytes of an image file", 400)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                width, height = image.size
        except Image.DecompressionBombError as error:
            raise _too_many(first_line(error), max_pixels) from error
        except UnidentifiedImageError as error:
            kinds = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
            raise RequestError(f"the body is no {kinds} image; send the bytes of one", 415) from error
        except Exception as error:
            raise _damaged(error) from error
        if width * height > max_pixels:
            raise _too_many(f"{width}x{height} pixels", max_pixels)
        try:
            return preset(open_picture(data, max_pixels)).numpy()
        except Exception as error:  # Pillow's decoders raise whatever damaged bytes make them trip over
            raise _damaged(error) from error


def _too_many(what: str, max_pixels: int) -> RequestError:
    return RequestError(f"the image has {what}, and {max_pixels} are the limit; make it smaller", 413)


def _damaged(error: Exception) -> RequestError:
    if isinstance(error, (DataError, ValueError)):  # what a preset refuses says what to do
        return RequestError(f"the image cannot be read: {first_line(error)}", 422)
    return RequestError(f"the image cannot be read: {first_line(error)}; it is damaged, send it again whole", 422)
