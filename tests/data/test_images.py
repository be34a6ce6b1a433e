import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from gaia_fast.data import PRESETS, load_images
from gaia_fast.errors import ArgumentError, DataError


def picture(seed: int, h: int = 32, w: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def save(path, seed: int = 0, h: int = 32, w: int = 32) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(seed, h, w)).save(path)


def truncate(path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def test_nested_folders_in_order(tmp_path):
    for seed, name in enumerate(["b/z/one.PNG", "b/two.bmp", "a.JpEg", "c/three.webp", "a/four.jpg"]):
        save(tmp_path / name, seed)
    (tmp_path / "notes.txt").write_text("no image")
    source = load_images(str(tmp_path), "none")
    assert source.names == ["a.JpEg", "a/four.jpg", "b/two.bmp", "b/z/one.PNG", "c/three.webp"]
    assert len(source) == 5
    assert source.labels is None
    (batch,) = source.batches(8)
    assert batch.names == source.names
    assert batch.labels is None
    assert batch.images.dtype == torch.float32
    assert torch.equal(batch.images[2], PRESETS["none"](picture(1)))
    assert torch.equal(batch.images[3], PRESETS["none"](picture(0)))
    assert source.unreadable == []


def test_batches_are_filled(tmp_path):
    for seed in range(5):
        save(tmp_path / f"{seed}.png", seed)
    batches = list(load_images(tmp_path, "cifar10").batches(2))
    assert [batch.names for batch in batches] == [["0.png", "1.png"], ["2.png", "3.png"], ["4.png"]]
    assert [tuple(batch.images.shape) for batch in batches] == [(2, 3, 32, 32), (2, 3, 32, 32), (1, 3, 32, 32)]
    assert torch.equal(batches[2].images[0], PRESETS["cifar10"](picture(4)))


def test_bad_images_never_stop_the_others(tmp_path):
    for seed, name in enumerate(["0.png", "1_cut.png", "2.png", "3_cut.jpg", "5.png", "6_small.png", "7_cut.webp"]):
        save(tmp_path / name, seed, h=16 if "small" in name else 64, w=64)
    for name in ("1_cut.png", "3_cut.jpg", "7_cut.webp"):
        truncate(tmp_path / name)
    (tmp_path / "4_text.png").write_text("this is no image")
    (tmp_path / "8_empty.jpg").write_bytes(b"")
    source = load_images(tmp_path, "cifar10")
    for _ in range(2):  # the second pass reports nothing twice
        batches = list(source.batches(2))
        assert [batch.names for batch in batches] == [["0.png", "2.png"], ["5.png"]]
        reasons = dict(source.unreadable)
        assert len(reasons) == len(source.unreadable)
    assert list(reasons) == ["1_cut.png", "3_cut.jpg", "4_text.png", "6_small.png", "7_cut.webp", "8_empty.jpg"]
    assert "truncated" in reasons["1_cut.png"]
    assert "truncated" in reasons["3_cut.jpg"]
    assert reasons["4_text.png"] == "not a PNG, JPEG, BMP or WEBP image"
    assert "smaller than the 32x32 crop" in reasons["6_small.png"]
    assert all("\n" not in reason and str(tmp_path) not in reason for reason in reasons.values())


def test_all_images_bad(tmp_path):
    (tmp_path / "a.png").write_text("x")
    source = load_images(tmp_path, "none")
    assert list(source.batches(4)) == []
    assert [name for name, _ in source.unreadable] == ["a.png"]


def test_other_formats_are_not_tried(tmp_path):
    Image.fromarray(picture(0)).save(tmp_path / "a.gif")
    (tmp_path / "a.gif").rename(tmp_path / "a.png")
    source = load_images(tmp_path, "none")
    assert list(source.batches(1)) == []
    assert len(source.unreadable) == 1


def test_an_image_deleted_meanwhile(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "b.png")
    source = load_images(tmp_path, "none")
    (tmp_path / "a.png").unlink()
    assert [batch.names for batch in source.batches(4)] == [["b.png"]]
    assert source.unreadable[0][0] == "a.png"


def test_mixed_sizes_are_batched_in_runs(tmp_path):
    for i, side in enumerate((8, 8, 9, 8, 8, 8)):
        save(tmp_path / f"{i}.png", i, h=side)
    batches = list(load_images(tmp_path, "none").batches(2))
    assert [batch.names for batch in batches] == [["0.png", "1.png"], ["2.png"], ["3.png", "4.png"], ["5.png"]]
    assert [batch.images.shape[2] for batch in batches] == [8, 9, 8, 8]


def test_exif_orientation_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by a quarter
    Image.fromarray(picture(0, h=10, w=20)).save(tmp_path / "a.png", exif=exif)
    (batch,) = load_images(tmp_path, "none").batches(1)
    assert torch.equal(batch.images[0], PRESETS["none"](picture(0, h=10, w=20)))


def test_single_image(tmp_path):
    save(tmp_path / "a.png")
    source = load_images(tmp_path / "a.png", PRESETS["none"])
    assert source.names == ["a.png"]
    assert torch.equal(source[0], PRESETS["none"](picture(0)))


def test_indexing(tmp_path):
    save(tmp_path / "a.png", 0)
    save(tmp_path / "b.png", 1)
    (tmp_path / "c.png").write_text("x")
    source = load_images(tmp_path, "none")
    assert torch.equal(source[-2], PRESETS["none"](picture(1)))
    with pytest.raises(IndexError):
        source[3]
    with pytest.raises(DataError, match=r"c\.png cannot be read: not a PNG.*`batches`"):
        source[2]
    assert source.unreadable == []


def test_a_source_can_be_sent_to_the_workers_of_a_data_loader(tmp_path):
    np.savez(tmp_path / "d.npz", x=picture(0)[None])
    save(tmp_path / "a.png", 0)
    for path in (tmp_path, tmp_path / "d.npz"):
        source = pickle.loads(pickle.dumps(load_images(path, "none")))
        assert torch.equal(next(iter(DataLoader(source)))[0], PRESETS["none"](picture(0)))


def test_npz_with_labels(tmp_path):
    x = np.stack([picture(i, 40, 36) for i in range(5)])
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(5, dtype=np.uint8) + 3)
    source = load_images(tmp_path / "d.npz", "cifar100")
    assert source.labels is not None
    assert source.labels.tolist() == [3, 4, 5, 6, 7]
    batches = list(source.batches(3))
    assert [batch.names for batch in batches] == [["0", "1", "2"], ["3", "4"]]
    assert torch.equal(batches[1].images[1], PRESETS["cifar100"](x[4]))
    assert batches[1].labels is not None
    assert batches[1].labels.tolist() == [6, 7]
    assert batches[1].labels.dtype == torch.int64


def test_npz_without_labels_and_too_small(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.zeros((2, 31, 40, 3), np.uint8))
    source = load_images(tmp_path / "d.npz", "cifar10")
    assert source.labels is None
    assert list(source.batches(2)) == []
    assert [name for name, _ in source.unreadable] == ["0", "1"]


X = np.zeros((4, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"images": X}, "no array 'x', only images"),
        ({}, "no array 'x', only nothing"),
        ({"x": X.astype(np.float32)}, r"'x' is float32 \(4, 8, 8, 3\)"),
        ({"x": X[..., 0]}, r"'x' is uint8 \(4, 8, 8\)"),
        ({"x": X.transpose(0, 3, 1, 2)}, r"'x' is uint8 \(4, 3, 8, 8\)"),
        ({"x": X[:0]}, "'x' holds no image"),
        ({"x": X[:, :0]}, r"'x' is uint8 \(4, 0, 8, 3\)"),
        ({"x": X, "y": np.zeros(3, int)}, r"'y' is int64 \(3,\) for 4 images"),
        ({"x": X, "y": np.zeros(4)}, r"'y' is float64 \(4,\)"),
        ({"x": np.array([{}] * 4, dtype=object)}, "Object arrays"),
    ],
)
def test_wrong_npz(tmp_path, arrays, reason):
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(DataError, match=rf"d\.npz.*{reason}.*Save it by numpy\.savez"):
        load_images(tmp_path / "d.npz", "none")


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_damaged_npz(tmp_path, content):
    path = tmp_path / "d.npz"
    if content is None:
        np.savez_compressed(path, x=np.stack([picture(0)]))
        whole = bytearray(path.read_bytes())
        whole[200:260] = bytes(60)
        content = bytes(whole)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"d\.npz cannot be read as an \.npz .*Save it by"):
        load_images(path, "none")


def test_npy_under_the_name_of_an_npz(tmp_path):
    with open(tmp_path / "d.npz", "wb") as file:
        np.save(file, X)
    with pytest.raises(DataError, match=r"cannot be read as an \.npz \(File is not a zip file\)"):
        load_images(tmp_path / "d.npz", "none")


def test_nothing_to_read(tmp_path):
    with pytest.raises(DataError, match=r"gone does not exist\. Give"):
        load_images(tmp_path / "gone", "none")
    with pytest.raises(DataError, match=r"holds no image\. Put \.png"):
        load_images(tmp_path, "none")
    (tmp_path / "a.csv").write_text("1")
    with pytest.raises(DataError, match=r"a\.csv is neither an image"):
        load_images(tmp_path / "a.csv", "none")


def test_wrong_arguments(tmp_path):
    save(tmp_path / "a.png")
    with pytest.raises(ArgumentError, match="no preset 'cifar'; choose one of cifar10, cifar100, imagenet"):
        load_images(tmp_path, "cifar")
    with pytest.raises(ArgumentError, match="batch_size is 0"):
        load_images(tmp_path, "none").batches(0)
