"""Presets: how a picture becomes the network's input."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gaia_fast.errors import DataError, InputError

# Pillow clips these to 8 bits when it converts them to RGB: almost every pixel of a 16-bit image would turn white.
_DEEP_MODES = ("I", "F")


@dataclass(frozen=True)
class Preset:
    """`(x / 255 - mean) / std` of the resized and cropped RGB picture.

    Attributes:
        name: the name it is listed under.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        resize: side of the square that the picture is stretched to (bilinear, antialiased), or None.
        crop: side of the square cut from the centre, or None.
    """

    name: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize: int | None = None
    crop: int | None = None

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
        if isinstance(picture, np.ndarray):
            if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
                raise InputError(f"picture is {picture.dtype} {picture.shape}; give a uint8 array of shape (H, W, 3).")
            if self.resize is not None:
                picture = Image.fromarray(picture)
        elif picture.mode.startswith(_DEEP_MODES):
            raise InputError(
                f"picture has the mode {picture.mode}, more than 8 bits per channel; convert it to 8 bits."
            )
        else:
            picture = picture.convert("RGB")
        if self.resize is not None and isinstance(picture, Image.Image):
            picture = picture.resize((self.resize, self.resize), Image.Resampling.BILINEAR)
        pixels = np.asarray(picture)

        if self.crop is not None:
            h, w = pixels.shape[:2]
            if min(h, w) < self.crop:
                raise DataError(
                    f"picture is {w}x{h} pixels, smaller than the {self.crop}x{self.crop} crop of the preset "
                    f"'{self.name}'; enlarge it, or choose another preset."
                )
            top, left = round((h - self.crop) / 2), round((w - self.crop) / 2)
            pixels = pixels[top : top + self.crop, left : left + self.crop]

        x = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1).div_(255)
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        return ((x - mean[:, None, None]) / std[:, None, None]).contiguous()


_HALF = (0.5, 0.5, 0.5)

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("cifar10", mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010), crop=32),
        Preset("cifar100", mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761), crop=32),
        Preset("imagenet", mean=_HALF, std=_HALF, resize=480),
        Preset("digits", mean=_HALF, std=_HALF, resize=32),
        Preset("none", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
    )
}
