"""A picture in the body of a request, as the network takes it; or what is wrong with it."""

import contextlib
import io
from collections.abc import Iterator

import numpy as np
from PIL import Image, UnidentifiedImageError

from gaia_fast.data.presets import Preset
from gaia_fast.data.source import FORMATS, open_picture
from gaia_fast.errors import DataError, first_line
from gaia_fast.serving.errors import RequestError


def pixels_of(data: bytes, max_pixels: int) -> int:
    """Returns width times height of the image file that these bytes are, from its head; nothing is decoded.

    Raises:
        RequestError: 400 where there is nothing, 413 more pixels than that, 415 no PNG, JPEG, BMP or WebP file, 422 one
            whose head is damaged.
    """
    if not data:
        raise RequestError("the body is empty; send the bytes of an image file", 400)
    with _errors(max_pixels), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        width, height = image.size
    if width * height > max_pixels:
        raise _too_many(f"{width}x{height} pixels", max_pixels)
    return width * height


def read_picture(data: bytes, preset: Preset, max_pixels: int) -> np.ndarray:
    """Returns float32 (3, H, W), as the preset prepares the picture that these bytes are.

    Args:
        data: an image file.
        preset: that makes images of one size.
        max_pixels: of the largest that is decoded.

    Raises:
        RequestError: as `pixels_of`, and 422 for a file that cannot be decoded, or a picture that the preset cannot
            prepare.
    """
    pixels_of(data, max_pixels)
    with _errors(max_pixels):
        return preset(open_picture(data, max_pixels)).numpy()


@contextlib.contextmanager
def _errors(max_pixels: int) -> Iterator[None]:
    """Says of what Pillow and presets raise what is wrong with the request."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise _too_many(first_line(error), max_pixels) from error
    except UnidentifiedImageError as error:
        kinds = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise RequestError(f"the body is no {kinds} image; send the bytes of one", 415) from error
    except (DataError, ValueError) as error:  # what a preset refuses says what to do
        raise RequestError(f"the image cannot be read: {first_line(error)}", 422) from error
    except Exception as error:  # Pillow's decoders raise whatever damaged bytes make them trip over
        raise RequestError(
            f"the image cannot be read: {first_line(error)}; it is damaged, send it again whole", 422
        ) from error


def _too_many(what: str, max_pixels: int) -> RequestError:
    return RequestError(f"the image has {what}, and {max_pixels} are the limit; make it smaller", 413)
