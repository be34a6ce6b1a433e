"""Stand-ins for OOD images, made from in-distribution ones: for choosing layers and scores where there is no OOD data.

What does well on them need not do well on the OOD images that will come: each shows one way of being different.
"""

import hashlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from gaia_fast.data.presets import as_rgb
from gaia_fast.data.source import ImageSource
from gaia_fast.errors import DataError

PREFIX = "surrogate-"  # of the names of sets, so that they are never taken for OOD data
_TILES = 4  # along each side

Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def noise(picture: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Uniform noise of the picture's size: nothing of the picture is left."""
    return random.integers(0, 256, picture.shape, dtype=np.uint8)


def jigsaw(picture: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The picture with 4x4 tiles in another order, none at its place: textures are left, shapes are not.

    Rows and columns that are left over, fewer than four, stay.
    """
    rows, columns = (min(_TILES, side) for side in picture.shape[:2])
    height, width = picture.shape[0] // rows, picture.shape[1] // columns
    places = [
        (slice(row * height, (row + 1) * height), slice(column * width, (column + 1) * width))
        for row in range(rows)
        for column in range(columns)
    ]
    # One cycle through all tiles: no tile stays, and the picture changes unless all tiles are the same.
    cycle = random.permutation(len(places))
    changed = picture.copy()
    for to, taken in zip(cycle, np.roll(cycle, 1), strict=True):
        changed[places[to]] = picture[places[taken]]
    return changed


def colour_shifted(picture: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The picture with its hues turned by 120 or 240 degrees: shapes, saturation and value are left.

    That is what it is to give each channel the values of the next. A grey picture has no hue: one of its channels is
    inverted. A picture with hardly any colour hardly changes.
    """
    changed = np.roll(picture, random.integers(1, 3), axis=2)
    if np.array_equal(changed, picture):
        channel = random.integers(3)
        changed[..., channel] = 255 - picture[..., channel]
    return changed


def rotated(picture: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The picture turned by 180 degrees: the one turn that keeps every pixel, the sides and the directions of edges.

    Only what is up has changed, which a classifier was not trained on unless up means nothing in its images; any other
    turn would interpolate, leave corners, or exchange height and width. The nearest of the stand-ins, and none where
    images may be turned (satellites, textures).
    """
    return picture[::-1, ::-1]


CHANGES: dict[str, Change] = {
    "noise": noise,
    "jigsaw": jigsaw,
    "colour-shifted": colour_shifted,
    "rotated": rotated,
}


class SurrogateSource(ImageSource):
    """The images of a source, each changed before the preset prepares it. They have no labels.

    An image that the change leaves as it is (one colour all over, the same upside down) is unreadable: it is no
    stand-in.
    """

    def __init__(self, source: ImageSource, change: Change, seed: int, first: int = 0) -> None:
        super().__init__(source.names, (), source.preset, max_pixels=source.max_pixels)
        self._source = source
        self._change = change
        self._seed = seed
        self._first = first  # of the whole source, where this is a part

    def part(self, start: int, stop: int) -> ImageSource:
        start, stop, _ = slice(start, stop).indices(len(self))
        return SurrogateSource(self._source.part(start, stop), self._change, self._seed, self._first + start)

    def digest(self) -> str:
        of = f"{self._source.digest()} {self._change.__qualname__} {self._seed} {self._first}"
        return hashlib.sha256(of.encode()).hexdigest()[:32]

    def picture(self, index: int) -> Image.Image | np.ndarray:
        original = np.asarray(as_rgb(self._source.picture(index)))
        changed = np.ascontiguousarray(self._change(original, np.random.default_rng((self._seed, self._first + index))))
        if np.array_equal(changed, original):
            raise DataError("it looks the same when changed, so that it cannot stand in for an OOD image")
        return changed


def surrogate_sources(source: ImageSource, seed: int = 0) -> dict[str, ImageSource]:
    """The stand-ins for OOD sets that can be made from in-distribution images; see `CHANGES`.

    Pictures are changed as they are read, before the preset resizes, crops and normalises them, as OOD pictures would
    come. Each depends on the seed and on its place in the source, and on nothing else.

    Args:
        source: the in-distribution images.
        seed: of what is drawn.

    Returns:
        By name: "surrogate-noise", "surrogate-jigsaw", "surrogate-colour-shifted", "surrogate-rotated". Each has the
        names of the source, gives float32 (3, H, W) as it does, and raises what it raises.

    Raises:
        DataError: on indexing, as the source, and for an image that looks the same when changed.

    Example:
        >>> from gaia_fast.data import PRESETS
        >>> pictures = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
        >>> found = surrogate_sources(ImageSource(["a", "b"], pictures, PRESETS["none"]))
        >>> list(found)
        ['surrogate-noise', 'surrogate-jigsaw', 'surrogate-colour-shifted', 'surrogate-rotated']
        >>> bool((found["surrogate-rotated"][0] == PRESETS["none"](pictures[0]).flip(1, 2)).all())
        True
    """
    return {f"{PREFIX}{name}": SurrogateSource(source, change, seed) for name, change in CHANGES.items()}
