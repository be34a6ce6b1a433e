from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gaia_fast.data import PRESETS, ImageSource, Preset, load_images, surrogate_sources
from gaia_fast.data.surrogates import CHANGES
from gaia_fast.errors import DataError

NAMES = ["surrogate-noise", "surrogate-jigsaw", "surrogate-colour-shifted", "surrogate-rotated"]


def pictures(count: int = 6, height: int = 13, width: int = 10) -> np.ndarray:
    return np.random.default_rng(99).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def source_of(x: np.ndarray, preset: Preset = PRESETS["none"]) -> ImageSource:
    return ImageSource([f"{index}.png" for index in range(len(x))], x, preset, torch.arange(len(x)))


def bytes_of(source: ImageSource, index: int) -> np.ndarray:
    """The picture, of a source that only divides by 255."""
    return (source[index] * 255).round().byte().permute(1, 2, 0).numpy()


def tiles(picture: np.ndarray, height: int, width: int) -> list[bytes]:
    down, right = (picture.shape[0] // height) * height, (picture.shape[1] // width) * width
    return [
        picture[y : y + height, x : x + width].tobytes() for y in range(0, down, height) for x in range(0, right, width)
    ]


def test_what_each_of_them_is() -> None:
    x = pictures(30)
    found = surrogate_sources(source_of(x))
    assert list(found) == NAMES
    for index, original in enumerate(x):
        noise, jigsaw, colour, rotated = (bytes_of(found[name], index) for name in NAMES)
        assert noise.shape == original.shape
        assert np.array_equal(rotated, np.rot90(original, 2))
        assert any(np.array_equal(colour, original[..., order]) for order in ([1, 2, 0], [2, 0, 1]))
        # 13x10 pixels: tiles of 3x2, of which a row and two columns are left over.
        before, after = tiles(original[:12, :8], 3, 2), tiles(jigsaw[:12, :8], 3, 2)
        assert sorted(before) == sorted(after)
        assert len(before) == 16
        assert all(a != b for a, b in zip(before, after, strict=True))
        assert np.array_equal(jigsaw[12:], original[12:])
        assert np.array_equal(jigsaw[:, 8:], original[:, 8:])


def test_noise_is_uniform_and_different_in_each_image() -> None:
    found = surrogate_sources(source_of(np.zeros((2, 64, 64, 3), np.uint8)))["surrogate-noise"]
    first, second = bytes_of(found, 0), bytes_of(found, 1)
    assert np.bincount(first.ravel() // 32, minlength=8) == pytest.approx(np.full(8, first.size / 8), rel=0.1)
    assert not np.array_equal(first, second)


def test_the_same_seed_gives_the_same_images_in_any_order() -> None:
    source = source_of(pictures())
    first, again, other = (surrogate_sources(source, seed) for seed in (3, 3, 4))
    for name in NAMES:
        (batch,) = first[name].batches(8)
        assert torch.equal(batch.images, torch.stack([again[name][index] for index in reversed(range(6))]).flip(0))
        assert batch.names == source.names
        assert batch.labels is None
        same = all(torch.equal(first[name][index], other[name][index]) for index in range(6))
        assert same == (name == "surrogate-rotated")


def test_pictures_are_changed_before_the_preset(tmp_path: Path) -> None:
    preset = Preset("own", (0.1, 0.2, 0.3), (0.5, 0.6, 0.7), resize=8, crop=(8, 6))
    x = pictures(2)
    for index, each in enumerate(x):
        Image.fromarray(each).save(tmp_path / f"{index}.png")
    for source in (load_images(tmp_path, preset), source_of(x, preset)):
        found = surrogate_sources(source)
        assert torch.equal(found["surrogate-rotated"][1], preset(np.ascontiguousarray(x[1, ::-1, ::-1])))
        plain = bytes_of(surrogate_sources(source_of(x))["surrogate-jigsaw"], 1)
        assert torch.equal(found["surrogate-jigsaw"][1], preset(plain))


@pytest.mark.parametrize("size", [(1, 2), (2, 1), (2, 2), (3, 5), (4, 4), (7, 33)])
def test_none_is_its_original(size: tuple[int, int]) -> None:
    for x in (pictures(40, *size), np.repeat(pictures(40, *size)[..., :1], 3, axis=3)):
        for name, source in surrogate_sources(source_of(x)).items():
            for index in range(40):
                try:
                    assert not np.array_equal(bytes_of(source, index), x[index]), name
                except DataError:  # two pixels, or shades of grey, may well be the same
                    assert np.array_equal(x[index], x[index, ::-1, ::-1])


def test_a_jigsaw_of_one_odd_tile_moves_it() -> None:
    x = np.zeros((50, 8, 8, 3), np.uint8)
    x[:, :2, :2] = 9
    found = surrogate_sources(source_of(x))["surrogate-jigsaw"]
    for index in range(50):
        changed = bytes_of(found, index)
        assert not changed[:2, :2].any()
        assert changed.sum() == x[index].sum()


def test_grey_pictures_get_a_colour() -> None:
    x = np.repeat(pictures()[..., :1], 3, axis=3)
    found = surrogate_sources(source_of(x))["surrogate-colour-shifted"]
    for index, grey in enumerate(x):
        inverted = [np.array_equal(bytes_of(found, index)[..., c], 255 - grey[..., c]) for c in range(3)]
        kept = [np.array_equal(bytes_of(found, index)[..., c], grey[..., c]) for c in range(3)]
        assert (sum(inverted), sum(kept)) == (1, 2)


def test_a_picture_that_looks_the_same_is_left_out() -> None:
    x = pictures(3)
    x[1] = 50
    found = surrogate_sources(source_of(x))
    for name in ("surrogate-jigsaw", "surrogate-rotated"):
        with pytest.raises(DataError, match="1.png cannot be read: it looks the same when changed"):
            found[name][1]
        (batch,) = found[name].batches(8)
        assert batch.names == ["0.png", "2.png"]
        assert found[name].unreadable[0][0] == "1.png"


def test_what_cannot_be_read_cannot_be_changed(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"none")
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(pictures(1)[0]).save(tmp_path / "good.png")
    source = load_images(tmp_path, "none")
    list(source.batches(4))
    for each in surrogate_sources(source).values():
        assert [batch.names for batch in each.batches(4)] == [["good.png"]]
        assert each.unreadable == source.unreadable


@pytest.mark.parametrize("change", CHANGES.values())
def test_the_picture_stays_as_it_was(change: Callable[..., np.ndarray]) -> None:
    x = pictures(1)[0]
    before = x.copy()
    change(x, np.random.default_rng(0))
    assert np.array_equal(x, before)


def test_parts_are_the_same_images() -> None:
    """Whatever is scored part by part sees what is scored at once."""
    pictures = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    for source in surrogate_sources(source_of(pictures)).values():
        part = source.part(2, 5)
        assert part.names == source.names[2:5]
        for index in range(3):
            torch.testing.assert_close(part[index], source[2 + index])
        assert part.digest() != source.part(1, 4).digest()
