from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gaia_fast.data import PRESETS, Preset
from gaia_fast.data.presets import from_timm, from_torchvision
from gaia_fast.errors import ArgumentError, DataError, InputError

import torchvision_schemas  # noqa: F401  (before torchvision)


def gradient(h: int, w: int) -> np.ndarray:
    """A picture in which every pixel says where it lies: row, column, 7."""
    picture = np.full((h, w, 3), 7, np.uint8)
    picture[..., 0], picture[..., 1] = np.arange(h)[:, None], np.arange(w)
    return picture


# The published means and standard deviations, once more.
MOMENTS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "bit": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "digits": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


def test_all_presets_are_covered_here() -> None:
    assert set(PRESETS) == set(MOMENTS)
    assert all(PRESETS[name].name == name for name in PRESETS)
    assert all((each.mean, each.std) == MOMENTS[name] for name, each in PRESETS.items())


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


@pytest.mark.parametrize(("name", "side"), [("bit", 480), ("digits", 32)])
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
    x = Preset("two", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), resize=(4, 4))(picture)
    assert (x[0, 0] * 255).round().tolist() == [0, 50, 150, 200]


@pytest.mark.parametrize(("height", "width"), [(90, 30), (30, 90)])
def test_rows_are_resized_first_whatever_the_picture(height: int, width: int) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
    x = Preset("small", (0.0,) * 3, (1.0,) * 3, resize=(20, 20))(picture)
    rows = picture.resize((20, height), Image.Resampling.BILINEAR)
    expected = np.asarray(rows.resize((20, 20), Image.Resampling.BILINEAR))
    assert torch.equal((x * 255).round().to(torch.uint8), torch.from_numpy(expected.copy()).permute(2, 0, 1))


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


@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(300, 401), (401, 300), (256, 256), (224, 900), (90, 131)], ids=str)
def test_imagenet_is_torchvisions(size: tuple[int, int], name: str) -> None:
    transforms = pytest.importorskip("torchvision.transforms", reason="torchvision is not installed")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    mean, std = MOMENTS["imagenet"]
    theirs = transforms.Compose(
        [
            transforms.Resize(256, transforms.InterpolationMode(name)),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )
    ours = replace(PRESETS["imagenet"], interpolation=name)
    assert torch.allclose(ours(picture), theirs(picture), rtol=0, atol=1e-6)


def test_sizes_that_are_not_square() -> None:
    x = Preset("oblong", (0.0,) * 3, (1.0,) * 3, resize=(20, 30), crop=(10, 30))(gradient(40, 60))
    assert x.shape == (3, 10, 30)
    with pytest.raises(DataError, match="40x31 pixels, smaller than the 50x20 crop"):
        Preset("wide", (0.0,) * 3, (1.0,) * 3, crop=(20, 50))(gradient(31, 40))


def test_the_size_of_what_a_preset_gives() -> None:
    sizes = {name: preset.input_size for name, preset in PRESETS.items()}
    square = {"cifar10": 32, "cifar100": 32, "imagenet": 224, "bit": 480, "digits": 32}
    assert sizes == {**{name: (side, side) for name, side in square.items()}, "none": None}
    assert Preset("shorter side", (0.0,) * 3, (1.0,) * 3, resize=256).input_size is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"resize": 0}, "sizes are positive"),
        ({"crop": (3, -1)}, "sizes are positive"),
        ({"std": (1.0, 0.0, 1.0)}, "those of std positive"),
        ({"mean": (1.0, float("nan"), 1.0)}, "three numbers each"),
        ({"mean": (1.0,)}, "three numbers each"),
        ({"interpolation": "cubic"}, "choose one of nearest, bilinear"),
    ],
)
def test_presets_that_mean_nothing(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        replace(PRESETS["imagenet"], **wrong)


CONFIG: dict[str, Any] = {
    "input_size": (3, 224, 224),
    "crop_pct": 0.875,
    "crop_mode": "center",
    "interpolation": "bicubic",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.25, 0.5, 0.5),
}


def test_the_configuration_of_a_model_of_timms() -> None:
    preset = from_timm(CONFIG)
    assert (preset.resize, preset.crop, preset.interpolation, preset.std) == (
        256,
        (224, 224),
        "bicubic",
        (0.25, 0.5, 0.5),
    )
    assert from_timm(CONFIG | {"crop_mode": "squash"}).resize == (256, 256)
    assert from_timm(CONFIG | {"crop_pct": None, "interpolation": ""}) == from_timm(CONFIG)
    assert (from_timm({}).mean, from_timm({}).crop) == (PRESETS["imagenet"].mean, (224, 224))
    for unknown in ({"crop_mode": "border"}, {"input_size": (3, 224, 160)}, {"input_size": (1, 28, 28)}):
        with pytest.raises(ArgumentError, match="which is not known"):
            from_timm(CONFIG | unknown)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18", "convnext_tiny"])
def test_a_model_of_timms_is_given_what_timm_gives_it(name: str) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    config = timm.get_pretrained_cfg(name).to_dict()
    theirs = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=config))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 401, 3), dtype=np.uint8))
    assert torch.allclose(from_timm(config)(picture), theirs(picture), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "inception_v3"])
def test_weights_of_torchvisions_are_given_what_torchvision_gives_them(name: str) -> None:
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    theirs = models.get_model_weights(name).DEFAULT.transforms(antialias=True)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 411, 3), dtype=np.uint8))
    assert torch.allclose(from_torchvision(theirs)(picture), theirs(picture), rtol=0, atol=1e-6)


def test_resolution_brings_larger_pictures_down_first() -> None:
    large = np.random.default_rng(0).integers(0, 256, (90, 60, 3), dtype=np.uint8)
    preset = Preset("p", (0.0,) * 3, (1.0,) * 3, resize=40, crop=32, resolution=20)
    reduced = Image.fromarray(large).resize((20, 30), Image.Resampling.BILINEAR)
    torch.testing.assert_close(preset(large), replace(preset, resolution=None)(reduced))
    small = large[:15, :15]
    torch.testing.assert_close(preset(small), replace(preset, resolution=None)(small))  # never enlarged by it


@pytest.mark.parametrize(
    ("changes", "size", "pixels"),
    [
        ({}, (20, 30), 600),
        ({"resize": 10}, (20, 30), 600),  # it only becomes smaller
        ({"resize": 256}, (8, 60_000), 256 * 1_920_000),
        ({"resize": (480, 480)}, (1_000_000, 1), 1_000_000 * 480),  # between: rows are resized first
        ({"resize": (480, 480)}, (1, 1_000_000), 1_000_000),
        ({"resize": 40, "resolution": 20}, (90, 60), 90 * 60),
    ],
    ids=["as it is", "smaller", "long", "tall, between", "wide", "resolution"],
)
def test_the_most_pixels_on_the_way(changes: dict[str, Any], size: tuple[int, int], pixels: int) -> None:
    preset = replace(PRESETS["none"], **changes)
    assert preset.most_pixels(*size) == pixels
    if pixels < 1_000_000:
        sizes: list[int] = []
        original = Image.Image.resize

        def resize(image: Image.Image, size: Any, *args: Any) -> Image.Image:
            sizes.append(size[0] * size[1])
            return original(image, size, *args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Image.Image, "resize", resize)
            preset(gradient(*size))
        assert max([size[0] * size[1], *sizes]) == pixels
