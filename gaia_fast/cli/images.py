"""A few images for commands that need to know what images look like, not what is in them."""

import re

import click
import torch
from torch import Tensor

from gaia_fast.data import Preset, load_images
from gaia_fast.errors import DataError


def first_images(path: str, preset: Preset, max_pixels: int, count: int) -> Tensor:
    """The first images of a source that can be read, at most `count`, as the preset prepares them."""
    source = load_images(path, preset, max_pixels)
    batch = next(source.batches(count), None)
    if batch is None:
        raise DataError(f"no image in {path} can be read ({source.unreadable[0][1]})")
    return batch.images


def blank_images(size: str | None, preset: Preset) -> Tensor:
    """One blank image of the size asked for, "H" or "HxW", or of the preset's own.

    Raises:
        click.UsageError: no size is known. click.BadParameter: no such size.
    """
    if size is None:
        if preset.input_size is None:
            raise click.UsageError("the size of the input is unknown: give an image, --size, or a --preset with a crop")
        return torch.zeros(1, 3, *preset.input_size)
    height_width = parse_size(size, "--size")
    return torch.zeros(1, 3, *(height_width if isinstance(height_width, tuple) else (height_width, height_width)))


def parse_size(text: str, option: str) -> int | tuple[int, int]:
    """Returns H of "H", or (H, W) of "HxW".

    Raises:
        click.BadParameter: it is neither.
    """
    match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)
    if match is None:
        raise click.BadParameter(f"{text!r} is not H or HxW, such as 32 or 480x640", param_hint=option)
    return (int(match[1]), int(match[2])) if match[2] else int(match[1])
