"""Pictures from requests: what the preset makes of a file, and every kind of file that is none."""

import io

import numpy as np
import pytest
from PIL import Image

from gaia_fast.data import PRESETS
from gaia_fast.data.digits import held_out_digits, held_out_pictures
from gaia_fast.serving.errors import RequestError
from gaia_fast.serving.pictures import read_picture

from served import digit, file_of

DIGITS, CIFAR = PRESETS["digits"], PRESETS["cifar10"]


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "JPEG"])
def test_a_file_is_prepared_by_the_preset(kind: str) -> None:
    picture = Image.fromarray(held_out_pictures()[0][3]).convert("RGB")
    data = io.BytesIO()
    picture.save(data, kind, lossless=True, quality=100)
    found = read_picture(data.getvalue(), DIGITS, 1000)
    assert found.dtype == np.float32
    with Image.open(io.BytesIO(data.getvalue())) as image:
        assert np.array_equal(found, DIGITS(image).numpy())


def test_a_digit_is_the_one_that_detectors_are_given() -> None:
    assert np.array_equal(read_picture(digit(5), DIGITS, 1000), held_out_digits()[0][5].numpy())


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
        read_picture(digit(0)[:cut], DIGITS, 1000)


def test_more_pixels_than_pillow_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(RequestError, match="limit") as raised:
        read_picture(file_of(Image.new("RGB", (100, 100))), DIGITS, 10_000_000)
    assert raised.value.status == 413
