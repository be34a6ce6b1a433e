"""A picture in the body of a request, as the network takes it; or what is wrong with it.

What is sent may be made to hold a thread up: few bytes that Pillow works on for minutes. Its work is bounded here, by
`max_pixels` and by what a file of that format may be made of.
"""

import contextlib
import io
import re
from collections.abc import Iterator

import numpy as np
from PIL import Image, UnidentifiedImageError

from gaia_fast.data.presets import Preset
from gaia_fast.data.source import FORMATS
from gaia_fast.errors import DataError, first_line
from gaia_fast.serving.errors import RequestError

# Each is far above what cameras and programs write, and holds a thread up for seconds, not minutes.
_HEAD_READS = 4096  # until the pixels begin: a few for each chunk or marker
_HEAD_BYTES = 8 * 2**20
_READS = 50_000  # of the whole file, a few for each chunk of pixels
_SCANS = 100  # of a progressive JPEG, each of which goes over all pixels
_SEGMENTS = 1000  # of a JPEG
_PROFILES = 10  # of a PNG, each of which is inflated

# A marker of a JPEG, but those that may stand within a scan: its data has no other.
_MARKER = re.compile(rb"\xff([\xc0-\xcf\xd8-\xfe])")
_END, _SCAN = b"\xd9", b"\xda"


def opened(data: bytes, preset: Preset, max_pixels: int) -> Image.Image:
    """Returns the picture that these bytes are, from the head of the file; nothing is decoded.

    Raises:
        RequestError: 400 where there is nothing, 413 more pixels than that, as it is or as the preset resizes it, 415
            no PNG, JPEG, BMP or WebP file, 422 one whose head is damaged, or that would take long to decode for its
            size.
    """
    if not data:
        raise RequestError("the body is empty; send the bytes of an image file", 400)
    with _errors(max_pixels):
        _check_parts(data)
        reader = _Reader(data)
        image = Image.open(reader, formats=FORMATS)
        reader.decode()
        width, height = image.size
        if width * height > max_pixels:
            raise _too_many(f"{width}x{height} pixels", max_pixels)
        if (pixels := preset.most_pixels(height, width)) > max_pixels:
            raise _too_many(f"{width}x{height} pixels, of which resizing makes {pixels}", max_pixels)
        if image.tile and image.tile[0][0] == "bmp_rle":
            raise DataError("it is a run-length encoded BMP; save it without compression, or as a PNG")
    return image


def prepared(image: Image.Image, preset: Preset, max_pixels: int) -> np.ndarray:
    """Returns float32 (3, H, W), as the preset prepares a picture that was `opened`, which is decoded.

    Raises:
        RequestError: 422 for a file that cannot be decoded, or a picture that the preset cannot prepare.
    """
    with _errors(max_pixels):
        image.load()
        return preset(image).numpy()


class _Reader(io.BytesIO):
    """The bytes of a file, for Pillow, whose loops in Python read a few bytes in each round: what reads more often than
    a picture needs is refused.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._reads, self._bytes = _HEAD_READS, _HEAD_BYTES + len(data) * (data[:4] == b"RIFF")  # WebP is read whole

    def decode(self) -> None:
        """The head has been read, now come the pixels."""
        self._reads, self._bytes = _READS, 2 * len(self.getbuffer())

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        self._reads -= 1
        self._bytes -= len(found)
        if self._reads < 0 or self._bytes < 0:
            raise DataError("it is made of more pieces than a picture needs; save it again with another program")
        return found


def _check_parts(data: bytes) -> None:
    if data.startswith(b"\x89PNG") and data.count(b"iCCP") > _PROFILES:
        raise DataError("it has many colour profiles; save it with one, or none")
    if data.startswith(b"\xff\xd8"):
        _check_segments(data)


def _check_segments(data: bytes) -> None:
    """Looks at each marker of a JPEG, as its decoder does, until there are too many."""
    at, scans = 2, 0
    for _ in range(_SEGMENTS):
        marker = _MARKER.search(data, at)
        if marker is None or marker[1] == _END:
            return
        scans += marker[1] == _SCAN
        if scans > _SCANS:
            raise DataError(f"it is a JPEG of more than {_SCANS} scans; save it with fewer, or not progressively")
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    raise DataError(f"it is a JPEG of more than {_SEGMENTS} segments; save it again without its metadata")


@contextlib.contextmanager
def _errors(max_pixels: int) -> Iterator[None]:
    """Says of what Pillow and presets raise what is wrong with the request."""
    try:
        yield
    except RequestError:
        raise
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
