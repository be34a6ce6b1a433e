"""Pictures from requests: what the preset makes of a file, and every kind of file that is none."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gaia_fast.data import PRESETS, Preset
from gaia_fast.data.digits import held_out_digits, held_out_pictures
from gaia_fast.serving.errors import RequestError
from gaia_fast.serving.pictures import opened, prepared

from served import digit, file_of

DIGITS, CIFAR = PRESETS["digits"], PRESETS["cifar10"]


def read_picture(data: bytes, preset: Preset, max_pixels: int) -> np.ndarray:
    return prepared(opened(data, preset, max_pixels), preset, max_pixels)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "JPEG"])
def test_a_file_is_prepared_by_the_preset(kind: str) -> None:
    picture = Image.fromarray(held_out_pictures()[0][3]).convert("RGB")
    data = io.BytesIO()
    picture.save(data, kind, lossless=True, quality=100)
    found = read_picture(data.getvalue(), DIGITS, 2000)
    assert found.dtype == np.float32
    with Image.open(io.BytesIO(data.getvalue())) as image:
        assert np.array_equal(found, DIGITS(image).numpy())


def test_a_digit_is_the_one_that_detectors_are_given() -> None:
    assert np.array_equal(read_picture(digit(5), DIGITS, 2000), held_out_digits()[0][5].numpy())


def gray16() -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(data, "PNG")
    return data.getvalue()


WHOLE = file_of(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), "JPEG")


@pytest.mark.parametrize(
    ("data", "status", "reason"),
    [
        (b"", 400, "empty"),
        (b"%PDF-1.7 and so on", 415, "no PNG, JPEG, BMP or WEBP image"),
        (np.random.default_rng(0).bytes(100_000), 415, "no PNG"),
        (file_of(Image.new("RGB", (8, 8)), "GIF"), 415, "no PNG"),
        (WHOLE[: len(WHOLE) // 2], 422, "truncated.*send it again whole"),
        (digit(0)[:80], 422, "send it again whole"),
        (file_of(Image.new("RGB", (101, 100))), 413, "101x100 pixels, and 10000 are the limit"),
        (file_of(Image.new("RGB", (31, 60))), 422, "31x60 pixels, smaller than the 32x32 crop"),
        (gray16(), 422, "more than 8 bits"),
    ],
    ids=["empty", "pdf", "noise", "gif", "half a JPEG", "half a PNG", "large", "smaller than the crop", "16 bits"],
)
def test_what_is_no_picture(data: bytes, status: int, reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as raised:
        read_picture(data, CIFAR, 10_000)
    assert raised.value.status == status


# Its last twenty bytes or so hold no pixel.
@pytest.mark.parametrize("cut", range(0, len(digit(0)) - 24, 7))
def test_wherever_a_file_is_cut_it_is_refused(cut: int) -> None:
    with pytest.raises(RequestError):
        read_picture(digit(0)[:cut], DIGITS, 2000)


def test_more_pixels_than_pillow_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(RequestError, match="limit") as raised:
        read_picture(file_of(Image.new("RGB", (100, 100))), DIGITS, 10_000_000)
    assert raised.value.status == 413


def jpeg(**options: Any) -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(data, "JPEG", **options)
    return data.getvalue()


def scans(count: int, between: bytes = b"") -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    data = jpeg(progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + count * (between + data[last:-2]) + data[-2:]


def segments(count: int, content: bytes, of: int) -> bytes:
    """A JPEG with that many of a segment in its head."""
    data = jpeg()
    return data[:2] + count * (bytes([0xFF, of]) + struct.pack(">H", len(content) + 2) + content) + data[2:]


def chunk(name: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def chunks(count: int, each: bytes, before: bytes) -> bytes:
    """A PNG with that many of a chunk before another."""
    data = file_of(Image.new("RGB", (64, 64)))
    place = data.index(before) - 4
    return data[:place] + count * each + data[place:]


def run_length_bmp() -> bytes:
    rows = 64 * b"\x40\x05\0\0"
    head = struct.pack("<IiiHHIIiiII", 40, 64, 64, 1, 8, 1, len(rows), 0, 0, 256, 0) + bytes(1024)
    return b"BM" + struct.pack("<IHHI", 14 + len(head) + len(rows), 0, 0, 14 + len(head)) + head + rows


PROFILE = chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1_000_000)))
LABELLED = b"\xff\xfe\0\6\xff\xd9\0\0"  # a comment that looks as if the file ended


# Each is few bytes, and minutes of work where there are some more of them.
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (scans(100), "more than 100 scans"),
        (scans(100, between=LABELLED), "more than 100 scans"),
        (segments(1000, b"", of=0xFE), "more than 1000 segments"),
        (segments(1000, b"Exif\0\0", of=0xE1), "more than 1000 segments"),
        (jpeg()[:2] + 5000 * b"\xff\x00" + jpeg()[2:], "more pieces"),
        (run_length_bmp(), "run-length encoded BMP"),
        (chunks(11, PROFILE, b"IDAT"), "colour profiles"),
        (chunks(11, PROFILE, b"IEND"), "colour profiles"),
        (chunks(5000, chunk(b"abCd"), b"IDAT"), "more pieces"),
        (chunks(30_000, chunk(b"abCd"), b"IEND"), "more pieces"),
        (chunks(30_000, chunk(b"IDAT"), b"IDAT"), "more pieces"),
    ],
    ids=[
        *("scans", "scans behind comments", "comments", "exif", "filling", "run-length BMP", "profiles"),
        *("profiles behind", "chunks", "chunks behind", "empty chunks of pixels"),
    ],
)
def test_files_that_would_take_long_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as raised:
        read_picture(data, DIGITS, 10_000)
    assert raised.value.status == 422


@pytest.mark.parametrize(
    "data",
    [
        scans(80),
        segments(100, b"Exif\0\0", of=0xE1),
        segments(100, 10_000 * b"\xff\xda", of=0xE2),  # is looked at by nobody
        jpeg() + 1000 * b"\xff\xda\0\2",  # a film behind the picture
        jpeg(restart_marker_blocks=1),
        chunks(1, PROFILE, b"IDAT"),
        chunks(1000, chunk(b"abCd"), b"IDAT"),
    ],
    ids=["scans", "exif", "metadata", "behind the end", "restarts", "profile", "chunks"],
)
def test_files_that_are_odd_and_quick_are_read(data: bytes) -> None:
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(read_picture(data, DIGITS, 10_000), DIGITS(image).numpy())


def test_a_picture_that_resizing_would_make_large() -> None:
    preset = Preset("shorter side", (0.0,) * 3, (1.0,) * 3, resize=256, crop=224)
    with pytest.raises(RequestError, match="6000x8 pixels, of which resizing makes 49152000, and 32000000") as raised:
        opened(file_of(Image.new("RGB", (6000, 8))), preset, 32_000_000)
    assert raised.value.status == 413
