"""Image sources made of the demo's digits."""

import numpy as np
import torch

from gaia_fast.data import PRESETS, ImageSource


def source(pictures: np.ndarray, labels: np.ndarray | None = None) -> ImageSource:
    """Of grey pictures (N, 8, 8), called by their places."""
    x = np.repeat(pictures[..., None], 3, axis=3)
    names = [str(index) for index in range(len(x))]
    return ImageSource(names, x, PRESETS["digits"], None if labels is None else torch.from_numpy(labels))


class Damaged(ImageSource):
    """The images of a source, without labels, of which those called "3" and "7" cannot be read."""

    def __init__(self, of: ImageSource) -> None:
        super().__init__(of.names, of._pictures, of.preset)

    def picture(self, index: int) -> np.ndarray:
        if self.names[index] in ("3", "7"):
            raise OSError("damaged")
        found = super().picture(index)
        assert isinstance(found, np.ndarray)
        return found

    def part(self, start: int, stop: int) -> ImageSource:
        return Damaged(super().part(start, stop))
