"""A preset as tensor operators, so that it can be a part of a program: uint8 pictures of any size in.

Pillow resizes each row, rounds to 8 bits, and resizes each column. Its weights are multiples of 2^-22, and so are all
sums. Here both are products with matrices of such weights in float64, where the sums are exact in any order: the
pictures are Pillow's, bit for bit; by lanczos where the runtime's sine is PyTorch's, and else rarely a level off.

The matrices are made from the pictures' size when the program runs. They are all but empty: a column of the result is
made of as many columns of the picture as the filter is wide. So columns are taken in blocks, each from the part of the
picture that it needs.
"""

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from gaia_fast.data.presets import Preset
from gaia_fast.errors import ArgumentError, DataError

_BITS = 22  # of Pillow's weights
_BLOCK = 32  # columns of the result that are made together


class _Filter(NamedTuple):
    """A filter of Pillow's: its values at distances in pixels of the result, and up to which of them it is not zero."""

    value: Callable[[Tensor], Tensor]
    support: int


def _triangle(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp_min(0)


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic convolution with a = -0.5."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return torch.where(x < 1, near, torch.where(x < 2, far, 0))


def _lanczos(x: Tensor) -> Tensor:
    return torch.where(x.abs() < 3, torch.sinc(x) * torch.sinc(x / 3), 0)


FILTERS = {"bilinear": _Filter(_triangle, 1), "bicubic": _Filter(_cubic, 2), "lanczos": _Filter(_lanczos, 3)}


class _Axis(NamedTuple):
    """How pictures are resized, and cut, along one axis.

    Attributes:
        dim: the axis.
        length: of the pictures; a symbol where a program is recorded.
        resized: float64 scalar, what it is resized to.
        start: float64 scalar, where the crop begins.
        crop: how long the crop is.
        scale: a quotient of whole numbers that length / resized is not above.
    """

    dim: int
    length: int
    resized: Tensor
    start: Tensor
    crop: int
    scale: tuple[int, int]


class Preprocessing(nn.Module):
    """From uint8 RGB pictures (N, 3, H, W) to the model's images (N, 3, H', W'), as the preset makes them.

    Args:
        preset: checked by `check_preset`.
        dtype: of the images.
        device: of pictures and images.
    """

    def __init__(self, preset: Preset, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.preset, self.dtype = preset, dtype
        self.register_buffer("mean", torch.tensor(preset.mean, device=device)[:, None, None])
        self.register_buffer("std", torch.tensor(preset.std, device=device)[:, None, None])

    @property
    def any_size(self) -> bool:
        """Whether it takes pictures of other sizes than the images have."""
        return (self.preset.resize, self.preset.crop) != (None, None)

    def forward(self, pictures: Tensor) -> Tensor:
        pixels, mean = pictures, self.mean
        if self.any_size:
            for axis in reversed(self._axes(pictures)):  # rows are resized first
                pixels = self._cut(pixels, axis) if self.preset.resize is None else self._resize(pixels, axis)
                # A picture smaller than the crop becomes no image, and so has no score.
                mean = torch.where(axis.resized >= axis.crop, mean, torch.nan)
        return ((pixels.to(torch.float32) / 255 - mean) / self.std).to(self.dtype)

    def _axes(self, pictures: Tensor) -> tuple[_Axis, _Axis]:
        lengths, resize = (pictures.shape[2], pictures.shape[3]), self.preset.resize
        exact = [_number(each, pictures) for each in lengths]
        scales: list[tuple[int, int]] = [(1, 1), (1, 1)]
        resized = exact
        if isinstance(resize, tuple):
            scales = [(length, size) for length, size in zip(lengths, resize, strict=True)]
            resized = [_number(each, pictures) for each in resize]
        elif resize is not None:
            shorter = torch.minimum(*exact)
            # The longer side is rounded down, by less than a pixel, from at least `resize`.
            scales = [(torch.sym_min(*lengths) * (resize + 1), resize * resize)] * 2
            resized = [torch.floor(resize * each / shorter) for each in exact]
        size = self.preset.input_size
        assert size is not None
        axes = []
        for place, (length, wanted, crop, scale) in enumerate(zip(lengths, resized, size, scales, strict=True)):
            axes.append(_Axis(2 + place, length, wanted, torch.round((wanted - crop) / 2), crop, scale))
        return axes[0], axes[1]

    def _cut(self, pixels: Tensor, axis: _Axis) -> Tensor:
        places = axis.start + torch.arange(axis.crop, dtype=torch.float64, device=pixels.device)
        return pixels.index_select(axis.dim, places.to(torch.int64))

    def _resize(self, pixels: Tensor, axis: _Axis) -> Tensor:
        """Resizes along one axis, and rounds to 8 bits: half up."""
        blocks = [self._block(pixels, axis, first) for first in range(0, axis.crop, _BLOCK)]
        sums = torch.cat(blocks, axis.dim)
        return ((sums + 2 ** (_BITS - 1)) / 2**_BITS).floor().clamp(0, 255)

    def _block(self, pixels: Tensor, axis: _Axis, first: int) -> Tensor:
        """Sums, times 2^22, for some columns from one on."""
        count = min(_BLOCK, axis.crop - first)
        values, support = FILTERS[self.preset.interpolation]
        scale = axis.length / axis.resized
        width = scale.clamp_min(1)  # of a pixel of the result, where it is larger than one of the picture
        places = torch.arange(count, dtype=torch.float64, device=pixels.device)
        centres = (axis.start + first + places + 0.5) * scale
        lowest = torch.floor(centres[:1] - support * width + 0.5).clamp_min(0)
        dividend, divisor = axis.scale
        needed = (count * dividend) // divisor + 2 * support * (dividend // divisor + 1) + 3
        taken = lowest + torch.arange(needed, dtype=torch.float64, device=pixels.device)
        weights = values((taken[:, None] - centres + 0.5) * (1 / width)) * (taken < axis.length)[:, None]
        weights = weights / weights.sum(0, keepdim=True)
        # To the nearest, and halves away from zero.
        rounded = torch.sign(weights) * torch.floor(weights.abs() * 2**_BITS + 0.5)
        part = pixels.index_select(axis.dim, taken.clamp_max(axis.length - 1).to(torch.int64)).to(torch.float64)
        return part @ rounded if axis.dim == 3 else rounded.T @ part


def _number(value: int, like: Tensor) -> Tensor:
    return torch.scalar_tensor(value, dtype=torch.float64, device=like.device)


def check_preset(preset: Preset, images: Tensor) -> None:
    """Raises ArgumentError unless the preset makes images of one size, that of these, by operators that are known here.

    Args:
        preset: the preset.
        images: (N, C, H, W).
    """
    name = f"the preset {preset.name!r}"
    if preset.resolution is not None:
        raise ArgumentError(
            f"{name} brings pictures down to {preset.resolution} pixels first, which a file does not; export without "
            "it, or with a preset that has no resolution"
        )
    if preset.resize is not None and preset.interpolation not in FILTERS:
        raise ArgumentError(
            f"{name} resizes by interpolation {preset.interpolation!r}, which a file does not; choose one of "
            f"{', '.join(FILTERS)}, or export without it"
        )
    if preset.input_size is None and preset.resize is not None:
        raise ArgumentError(
            f"{name} makes images whose size depends on the picture, and a file is for one; give the preset a crop, or "
            "a height and a width to resize to"
        )
    size = preset.input_size or tuple(images.shape[2:])
    if (3, *size) != tuple(images.shape[1:]):
        raise ArgumentError(
            f"{name} makes images of (3, {size[0]}, {size[1]}), and the example's are {tuple(images.shape[1:])}; "
            "prepare the example by the same preset"
        )
    if not _sizes(preset, images):
        raise ArgumentError(f"{name} resizes to {preset.resize}, smaller than its crop, {preset.crop}: no picture fits")


def pictures_like(preset: Preset, images: Tensor) -> list[Tensor]:
    """Returns uint8 pictures (N, 3, H, W) that look like these images, in several sizes where the preset takes them."""
    mean, std = (torch.tensor(each)[:, None, None] for each in (preset.mean, preset.std))
    pixels = ((images.detach().cpu().float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    pictures = [Image.fromarray(each) for each in pixels.permute(0, 2, 3, 1).numpy()]
    found = []
    for height, width in _sizes(preset, images):
        resized = [np.asarray(each.resize((width, height), Image.Resampling.BICUBIC)) for each in pictures]
        found.append(torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).contiguous().to(images.device))
    return found


def _sizes(preset: Preset, images: Tensor) -> list[tuple[int, int]]:
    """Some sizes of pictures that a preset takes; none where its crop is too large for any."""
    h, w = images.shape[2:]
    sizes = [(h, w)]
    if (preset.resize, preset.crop) != (None, None):
        sizes += [(2 * h, 2 * w), (h + 11, w), (h, w + 5), (h + h // 2, w + w // 2), (3 * h, 2 * w)]
    found = []
    for size in sizes:
        with contextlib.suppress(DataError):
            preset.check_size(*size)
            found.append(size)
    return found


def prepared(preset: Preset, pictures: Tensor, like: Tensor) -> Tensor:
    """Returns what a preset makes of uint8 pictures (N, 3, H, W), of the dtype and on the device of other images."""
    arrays = pictures.permute(0, 2, 3, 1).cpu().numpy()
    return torch.stack([preset(each) for each in arrays]).to(like)
