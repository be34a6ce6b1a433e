"""The demo's data: scikit-learn's digits, split once and for all, and pictures that are no such digits.

All of it comes with scikit-learn and Pillow. A picture is gray, uint8 (8, 8), ink bright on dark; networks see
it through the preset `digits`: stretched to 32x32 RGB.
"""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits, load_sample_image
from sklearn.model_selection import train_test_split
from torch import Tensor

from gaia_fast.data.presets import PRESETS
from gaia_fast.data.source import ImageSource

_COUNT = 500  # pictures in each set that is drawn or generated

# At 8x8 pixels nobody can tell these letters from 8, 6, 1, 0, 0, 5 and 2.
_LETTERS = [letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if letter not in "BGIOQSZ"]


def _split() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    digits = load_digits()
    pictures = np.round(digits.images * (255 / 16)).astype(np.uint8)
    return tuple(train_test_split(pictures, digits.target, test_size=0.3, stratify=digits.target, random_state=0))


def prepare(pictures: np.ndarray) -> Tensor:
    """The network's input, float32 (N, 3, 32, 32), for gray pictures, uint8 (N, H, W)."""
    preset = PRESETS["digits"]
    if len(pictures) == 0:
        return torch.empty(0, 3, *(preset.input_size or (0, 0)))
    return torch.stack([preset(np.repeat(picture[:, :, None], 3, axis=2)) for picture in pictures])


def training_pictures() -> tuple[np.ndarray, np.ndarray]:
    """The 1257 digits that the demo's network was trained on: uint8 (1257, 8, 8), labels int (1257,)."""
    pictures, _, labels, _ = _split()
    return pictures, labels


def held_out_pictures() -> tuple[np.ndarray, np.ndarray]:
    """The 540 digits that it has never seen: uint8 (540, 8, 8), labels int (540,)."""
    _, pictures, _, labels = _split()
    return pictures, labels


def training_digits() -> tuple[Tensor, Tensor]:
    """`training_pictures` as network input: float32 (1257, 3, 32, 32), labels int64 (1257,)."""
    pictures, labels = training_pictures()
    return prepare(pictures), torch.from_numpy(labels).long()


def held_out_digits() -> tuple[Tensor, Tensor]:
    """`held_out_pictures` as network input: float32 (540, 3, 32, 32), labels int64 (540,)."""
    pictures, labels = held_out_pictures()
    return prepare(pictures), torch.from_numpy(labels).long()


def photo_pictures() -> np.ndarray:
    """32x32 patches of scikit-learn's two photographs, in gray, averaged over 4x4 blocks: uint8 (500, 8, 8)."""
    rng = np.random.default_rng(1)
    photos = [np.asarray(Image.fromarray(load_sample_image(name)).convert("L")) for name in ("china.jpg", "flower.jpg")]
    patches = []
    for i in range(_COUNT):
        photo = photos[i % 2]
        top, left = (int(rng.integers(side - 32 + 1)) for side in photo.shape)
        patches.append(photo[top : top + 32, left : left + 32])
    return _blocks(np.stack(patches))


def letter_pictures() -> np.ndarray:
    """Capital letters in Pillow's own font, scanned as the digits were: uint8 (500, 8, 8).

    Each is drawn in black and white on 32x32 pixels at a random size and place, then averaged over 4x4 blocks. Letters
    that look like a digit (B, G, I, O, Q, S, Z) are left out.
    """
    rng = np.random.default_rng(2)
    pages = []
    for i in range(_COUNT):
        font = ImageFont.load_default(size=float(rng.integers(30, 41)))
        x, y = 16 + rng.integers(-2, 3, size=2)
        page = Image.new("1", (32, 32))
        ImageDraw.Draw(page).text(
            (float(x), float(y)), _LETTERS[i % len(_LETTERS)], fill=1, font=font, anchor="mm", stroke_width=1
        )
        pages.append(np.asarray(page, dtype=np.uint8) * 255)
    return _blocks(np.stack(pages))


def mirrored_pictures() -> np.ndarray:
    """Held-out digits, left and right swapped; 0, 1 and 8, which may pass for themselves, are left out."""
    pictures, labels = held_out_pictures()
    return np.ascontiguousarray(pictures[~np.isin(labels, (0, 1, 8)), :, ::-1])


def inverted_pictures() -> np.ndarray:
    """Held-out digits, dark ink on bright paper: uint8 (540, 8, 8)."""
    return 255 - held_out_pictures()[0]


def noise_pictures() -> np.ndarray:
    """Independent uniform pixels: uint8 (500, 8, 8)."""
    return np.random.default_rng(3).integers(0, 256, size=(_COUNT, 8, 8), dtype=np.uint8)


def _blocks(pictures: np.ndarray) -> np.ndarray:
    """Means over 4x4 blocks: (N, 32, 32) to (N, 8, 8)."""
    return np.round(pictures.reshape(-1, 8, 4, 8, 4).mean(axis=(2, 4))).astype(np.uint8)


OOD_PICTURES: dict[str, Callable[[], np.ndarray]] = {
    "photos": photo_pictures,
    "letters": letter_pictures,
    "mirrored": mirrored_pictures,
    "inverted": inverted_pictures,
    "noise": noise_pictures,
}


def ood_set(name: str) -> Tensor:
    """`OOD_PICTURES[name]` as network input: float32 (N, 3, 32, 32)."""
    return prepare(OOD_PICTURES[name]())


def digits_sources() -> tuple[ImageSource, dict[str, ImageSource]]:
    """The demo's images: the held-out digits with their labels, and the OOD sets by name."""
    pictures, labels = held_out_pictures()
    ood = {name: _gray_source(make()) for name, make in OOD_PICTURES.items()}
    return _gray_source(pictures, torch.from_numpy(labels).long()), ood


def _gray_source(pictures: np.ndarray, labels: Tensor | None = None) -> ImageSource:
    names = [str(index) for index in range(len(pictures))]
    return ImageSource(names, np.repeat(pictures[..., None], 3, axis=3), PRESETS["digits"], labels)
