"""Images scored chunk by chunk: what has no score, what is out of reach, and what is said meanwhile."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gaia_fast import GaiaZ
from gaia_fast.batch_scoring.chunks import ChunkScorer, Part
from gaia_fast.batch_scoring.rows import columns
from gaia_fast.data import PRESETS, ImageSource, load_images
from gaia_fast.data.digits import held_out_pictures
from gaia_fast.errors import DataError
from gaia_fast.models import digits_resnet

from digit_sources import Damaged, source


class Faulty(nn.Module):
    """A network whose logits of black images are no numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = digits_resnet(pretrained=True)

    def forward(self, x: Tensor) -> Tensor:
        black = (x == x.amin()).flatten(1).all(1, keepdim=True)
        return self.inner(x).masked_fill(black, float("nan"))


class Failing(ImageSource):
    """Images of which those named cannot be had, for an error of the machine."""

    errors_of: dict[str, Exception]

    def picture(self, index: int) -> np.ndarray:
        if error := self.errors_of.get(self.names[index]):
            raise error
        found = super().picture(index)
        assert isinstance(found, np.ndarray)
        return found


def failing(errors: dict[str, Exception]) -> Failing:
    images = source(held_out_pictures()[0][:4])
    found = Failing(images.names, images._pictures, images.preset)
    found.errors_of = errors
    return found


def scorer(model: nn.Module | None = None) -> ChunkScorer:
    model = digits_resnet(pretrained=True) if model is None else model
    return ChunkScorer({"gaia-z": GaiaZ(model, engine="hooks")}, columns(["gaia-z"], {}), 4)


def test_an_image_without_a_score_stops_none_of_the_others() -> None:
    pictures = held_out_pictures()[0][:10].copy()
    expected = scorer().score(source(pictures)).rows
    pictures[5] = 0
    advanced: list[int] = []
    found = scorer(Faulty().eval()).score(source(pictures), advanced.append)
    assert [name for name, _ in found.unreadable] == ["5"]
    assert found.unreadable[0][1].startswith("it cannot be scored: ")
    assert [row["image"] for row in found.rows] == [str(index) for index in range(10) if index != 5]
    expected.pop(5)
    torch.testing.assert_close(
        torch.tensor([row["score"] for row in found.rows]), torch.tensor([row["score"] for row in expected])
    )
    assert sum(advanced) == 10


def test_unreadable_images_are_done_too() -> None:
    advanced: list[int] = []
    found = scorer().score(Damaged(source(held_out_pictures()[0][:10])), advanced.append)
    assert (len(found.rows), len(found.unreadable), found.images) == (8, 2, 10)
    assert sum(advanced) == 10


@pytest.mark.parametrize(
    "errors",
    [
        {"1": OSError(errno.EIO, "Input/output error"), "2": OSError(errno.EIO, "Input/output error")},
        {"0": OSError(errno.EMFILE, "Too many open files"), "3": MemoryError()},
        {str(index): FileNotFoundError(errno.ENOENT, "No such file or directory") for index in range(4)},
    ],
    ids=["disk", "machine", "all gone"],
)
def test_images_that_are_out_of_reach_are_not_noted_for_good(errors: dict[str, Exception]) -> None:
    first = min(errors)
    with pytest.raises(DataError, match=rf"{len(errors)} of the images from 0 to 3 are out of reach, such as {first} "):
        scorer().score(failing(errors))


@pytest.mark.parametrize(
    "errors",
    [
        {"1": OSError(errno.EIO, "Input/output error")},
        {str(index): FileNotFoundError(errno.ENOENT, "No such file or directory") for index in range(3)},
        {str(index): OSError("image file is truncated") for index in range(4)},
    ],
    ids=["one", "some gone", "damaged"],
)
def test_images_that_are_unreadable_by_themselves_are_noted(errors: dict[str, Exception]) -> None:
    assert [name for name, _ in scorer().score(failing(errors)).unreadable] == list(errors)


def test_images_are_found_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a worker of a cluster is in."""
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    (tmp_path / "other").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "pictures" / "a.png")
    monkeypatch.chdir(tmp_path)
    images = load_images("pictures", PRESETS["digits"]).part(0, 1)
    os.chdir("other")
    assert scorer().score(images).unreadable == []


def test_a_part_counts_all_of_its_images() -> None:
    assert Part([{}, {}], [("a", "damaged")]).images == 3
