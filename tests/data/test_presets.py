import numpy as np
import pytest
import torch
from PIL import Image

from gaia_fast.data import PRESETS, Preset
from gaia_fast.errors import DataError, InputError


def gradient(h: int, w: int) -> np.ndarray:
    """A picture in which every pixel says where it lies: row, column, 7."""
    picture = np.full((h, w, 3), 7, np.uint8)
    picture[..., 0], picture[..., 1] = np.arange(h)[:, None], np.arange(w)
    return picture


# The published means and standard deviations, once more.
MOMENTS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "imagenet": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "digits": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


def test_all_presets_are_covered_here() -> None:
    assert set(PRESETS) == set(MOMENTS)
    assert all(PRESETS[name].name == name for name in PRESETS)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_centre_crop_and_normalisation_by_hand(name: str) -> None:
    mean, std = MOMENTS[name]
    x = PRESETS[name](gradient(36, 41))
    assert x.shape == (3, 32, 32)
    assert x.dtype == torch.float32
    assert x.is_contiguous()
    # Two of the 36 rows go at the top, four of the 41 columns on the left (4.5 rounds to even).
    for channel, value in enumerate((2 + 5, 4 + 9, 7)):
        assert x[channel, 5, 9].item() == pytest.approx((value / 255 - mean[channel]) / std[channel], abs=1e-6)


def test_none_only_divides() -> None:
    x = PRESETS["none"](gradient(5, 6))
    assert x.shape == (3, 5, 6)
    assert torch.equal(x[1], (torch.arange(6.0) / 255).expand(5, 6))


@pytest.mark.parametrize(("name", "side"), [("imagenet", 480), ("digits", 32)])
def test_resize_stretches_the_whole_picture(name: str, side: int) -> None:
    picture = np.zeros((20, 60, 3), np.uint8)
    picture[:, 30:] = 255
    for given in (picture, Image.fromarray(picture)):
        x = PRESETS[name](given)
        assert x.shape == (3, side, side)
        assert torch.equal(x[:, :, : side // 3], -torch.ones(3, side, side // 3))
        assert torch.equal(x[:, :, -(side // 3) :], torch.ones(3, side, side // 3))


def test_bilinear_upsampling_by_hand() -> None:
    picture = np.array([[[0] * 3, [200] * 3]], np.uint8)
    x = Preset("two", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), resize=4)(picture)
    assert (x[0, 0] * 255).round().tolist() == [0, 50, 150, 200]


def test_arrays_and_pillow_images_agree() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    for preset in PRESETS.values():
        assert torch.equal(preset(picture), preset(Image.fromarray(picture)))


def test_other_modes_become_rgb() -> None:
    gray = np.arange(256, dtype=np.uint8).reshape(16, 16)
    x = PRESETS["none"](Image.fromarray(gray))
    assert torch.equal(x, torch.from_numpy(gray).float().div(255).expand(3, 16, 16))
    rgba = np.dstack([gradient(4, 4), np.zeros((4, 4), np.uint8)])
    assert torch.equal(PRESETS["none"](Image.fromarray(rgba)), PRESETS["none"](gradient(4, 4)))


def test_too_small_for_the_crop() -> None:
    with pytest.raises(DataError, match=r"40x31 pixels, smaller than the 32x32 crop of the preset 'cifar10'"):
        PRESETS["cifar10"](gradient(31, 40))


def test_sixteen_bit_images_are_not_clipped_to_white() -> None:
    with pytest.raises(InputError, match=r"I;16.*convert it to 8 bits"):
        PRESETS["none"](Image.fromarray(np.full((4, 4), 40000, np.uint16)))


@pytest.mark.parametrize(
    "bad", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((3, 4, 4), np.uint8)]
)
def test_wrong_arrays(bad: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"give a uint8 array of shape \(H, W, 3\)"):
        PRESETS["none"](bad)


def test_the_picture_stays_as_it_was() -> None:
    picture = gradient(32, 32)
    PRESETS["cifar10"](picture)
    assert np.array_equal(picture, gradient(32, 32))
