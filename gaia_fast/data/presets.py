"""Presets: how a picture becomes the network's input."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import floor, isfinite
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gaia_fast.errors import ArgumentError, DataError, InputError

# Pillow clips these to 8 bits when it converts them to RGB: almost every pixel of a 16-bit image would turn white.
_DEEP_MODES = ("I", "F")


# By torchvision's and timm's names.
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

Size: TypeAlias = int | tuple[int, int]


@dataclass(frozen=True)
class Preset:
    """`(x / 255 - mean) / std` of the resized and cropped RGB picture.

    Attributes:
        name: the name it is listed under.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        resize: of the shorter side, the other in proportion; or (height, width) that the picture is stretched to; or
            None.
        crop: side of the square, or (height, width), cut from the centre; or None.
        interpolation: of resizing, antialiased: a name in `INTERPOLATIONS`.
        resolution: what the shorter side is brought down to first, where it is longer, so that sets of pictures of
            different sizes compare; or None.

    Raises:
        ArgumentError: a size that is not positive, a standard deviation of zero, numbers that are not finite, or no
            such interpolation.
    """

    name: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: Size | None = None
    crop: Size | None = None
    interpolation: str = "bilinear"
    resolution: int | None = None

    def __post_init__(self) -> None:
        for size in (self.resize, self.crop, self.resolution):
            if size is not None and min(_pair(size)) < 1:
                raise ArgumentError(f"the preset {self.name!r} resizes or crops to {size}; sizes are positive")
        numbers = (*self.mean, *self.std)
        if len(self.mean) != 3 or len(self.std) != 3 or not all(map(isfinite, numbers)) or min(self.std) <= 0:
            raise ArgumentError(
                f"the preset {self.name!r} has mean {self.mean} and std {self.std}; give three numbers each, those of "
                "std positive"
            )
        if self.interpolation not in INTERPOLATIONS:
            raise ArgumentError(
                f"there is no interpolation {self.interpolation!r}; choose one of {', '.join(INTERPOLATIONS)}"
            )

    @property
    def input_size(self) -> tuple[int, int] | None:
        """Height and width of what it gives, where they do not depend on the picture."""
        if self.crop is not None:
            return _pair(self.crop)
        return self.resize if isinstance(self.resize, tuple) else None

    def __call__(self, picture: Image.Image | np.ndarray) -> Tensor:
        """The network's input for one picture.

        Args:
            picture: a Pillow image of any 8-bit mode (an alpha channel is dropped), or uint8 (H, W, 3).

        Returns:
            float32 (3, H', W').

        Raises:
            InputError: the array is not uint8 (H, W, 3), or the image has more than 8 bits per channel.
            DataError: the picture is smaller than the crop.
        """
        picture = as_rgb(picture)
        if isinstance(picture, np.ndarray) and (self.resize, self.resolution) != (None, None):
            picture = Image.fromarray(picture)
        if isinstance(picture, Image.Image):
            if self.resolution is not None and min(picture.size) > self.resolution:
                picture = self._resize(picture, self.resolution)
            if self.resize is not None:
                picture = self._resize(picture, self.resize)
        pixels = np.asarray(picture)

        if self.crop is not None:
            h, w = pixels.shape[:2]
            height, width = _pair(self.crop)
            self._check_crop(h, w)
            top, left = round((h - height) / 2), round((w - width) / 2)
            pixels = pixels[top : top + height, left : left + width]

        x = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1).div_(255)
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        return ((x - mean[:, None, None]) / std[:, None, None]).contiguous()

    def check_size(self, height: int, width: int) -> None:
        """Raises DataError where a picture of this size comes out smaller than the crop."""
        *_, last = self._sizes(height, width)
        self._check_crop(*last)

    def most_pixels(self, height: int, width: int) -> int:
        """Returns the most pixels that a picture of this size has until it is cropped, as it is or resized: a few rows
        that are long enough become millions where the shorter side is enlarged.

        Example:
            >>> from gaia_fast.data import PRESETS
            >>> PRESETS["imagenet"].most_pixels(8, 60_000)
            491520000
        """
        return max(h * w for h, w in self._sizes(height, width))

    def _sizes(self, height: int, width: int) -> Iterator[tuple[int, int]]:
        """The size of a picture, and each that it is then resized to: its rows first."""
        yield height, width
        if self.resolution is not None and min(height, width) > self.resolution:
            resized = _resized(self.resolution, height, width)
            yield height, resized[1]
            height, width = resized
            yield height, width
        if self.resize is not None:
            resized = _resized(self.resize, height, width)
            yield height, resized[1]
            yield resized

    def _check_crop(self, h: int, w: int) -> None:
        height, width = _pair(self.crop or 1)
        if h < height or w < width:
            raise DataError(
                f"picture is {w}x{h} pixels, smaller than the {width}x{height} crop of the preset "
                f"'{self.name}'; enlarge it, or choose another preset."
            )

    def _resize(self, picture: Image.Image, size: Size) -> Image.Image:
        """To a size, or so that the shorter side is as long as that."""
        height, width = _resized(size, picture.height, picture.width)
        # Each row, then each column, with 8 bits between. Asked for both at once, Pillow takes the columns of a tall
        # picture first from its version 13 on, and rounds otherwise.
        interpolation = INTERPOLATIONS[self.interpolation]
        return picture.resize((width, picture.height), interpolation).resize((width, height), interpolation)


def _resized(size: Size, height: int, width: int) -> tuple[int, int]:
    """Height and width of a picture that is brought to a size, or so that its shorter side is as long as that."""
    if isinstance(size, tuple):
        return size
    shorter = min(height, width)
    return int(size * height / shorter), int(size * width / shorter)


def as_rgb(picture: Image.Image | np.ndarray) -> Image.Image | np.ndarray:
    """Returns the picture in RGB of 8 bits: an image of the mode "RGB", or the array as it is.

    Raises:
        InputError: the array is not uint8 (H, W, 3), or the image has more than 8 bits per channel.
    """
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise InputError(f"picture is {picture.dtype} {picture.shape}; give a uint8 array of shape (H, W, 3).")
        return picture
    if picture.mode.startswith(_DEEP_MODES):
        raise InputError(f"picture has the mode {picture.mode}, more than 8 bits per channel; convert it to 8 bits.")
    return picture.convert("RGB")


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def preset_named(preset: str | Preset) -> Preset:
    """Returns the preset of a name, or the preset given; ArgumentError where none has the name."""
    if isinstance(preset, Preset):
        return preset
    if preset not in PRESETS:
        raise ArgumentError(f"There is no preset '{preset}'; choose one of {', '.join(PRESETS)}.")
    return PRESETS[preset]


def preset_record(preset: Preset) -> str:
    """Returns a preset as JSON; `preset_of` reads it."""
    return json.dumps(asdict(preset))


def preset_of(record: str) -> Preset:
    """Returns the preset of a record; ValueError or TypeError where it is none."""
    given = json.loads(record)
    if not isinstance(given, dict):
        raise ValueError("it is no JSON object")
    values: dict[str, Any] = {name: tuple(each) if isinstance(each, list) else each for name, each in given.items()}
    preset = Preset(**values)
    with contextlib.suppress(DataError):
        preset.check_size(1, 1)  # sizes of three numbers show where they are used
    return preset


def from_timm(config: Mapping[str, Any]) -> Preset:
    """Returns how a timm model's images are prepared when it is evaluated.

    Args:
        config: its `pretrained_cfg`; what is missing is as timm has it.

    Raises:
        ArgumentError: a way to crop that is not known here, or images that are not RGB.
    """
    channels, height, width = config.get("input_size") or (3, 224, 224)
    share, mode = config.get("crop_pct") or 0.875, config.get("crop_mode") or "center"
    if channels != 3 or (mode != "squash" and (mode != "center" or height != width)):
        raise ArgumentError(
            f"the model's configuration takes {channels} channels and crops to {height}x{width} by mode {mode!r}, "
            "which is not known"
        )
    larger = floor(height / share), floor(width / share)
    imagenet = PRESETS["imagenet"]
    return Preset(
        "model",
        mean=_three(config.get("mean") or imagenet.mean),
        std=_three(config.get("std") or imagenet.std),
        resize=larger[0] if mode == "center" else larger,
        crop=(height, width),
        interpolation=config.get("interpolation") or "bicubic",
    )


def from_torchvision(transforms: Any) -> Preset:
    """Returns how images are prepared for weights of torchvision's, from the `transforms()` that belong to them."""
    interpolation = getattr(transforms.interpolation, "value", transforms.interpolation)
    return Preset(
        "model",
        mean=_three(transforms.mean),
        std=_three(transforms.std),
        resize=_size(transforms.resize_size),
        crop=_size(transforms.crop_size),
        interpolation=str(interpolation),
    )


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    first, second, third = values
    return float(first), float(second), float(third)


def _size(sizes: Sequence[int]) -> Size:
    return int(sizes[0]) if len(sizes) == 1 else (int(sizes[0]), int(sizes[1]))


_HALF = (0.5, 0.5, 0.5)

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("cifar10", mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010), crop=32),
        Preset("cifar100", mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761), crop=32),
        Preset("imagenet", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), resize=256, crop=224),
        Preset("bit", mean=_HALF, std=_HALF, resize=(480, 480)),  # the paper's Big Transfer network
        Preset("digits", mean=_HALF, std=_HALF, resize=(32, 32)),
        Preset("none", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
    )
}
