import io
import os
import pickle
import socket
import tracemalloc
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from gaia_fast.data import PRESETS, load_images
from gaia_fast.data.images import load_class_folders
from gaia_fast.errors import ArgumentError, DataError


def picture(seed: int, h: int = 32, w: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def save(path: Path, seed: int = 0, h: int = 32, w: int = 32) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(seed, h, w)).save(path)


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def test_nested_folders_in_order(tmp_path: Path) -> None:
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


def test_batches_are_filled(tmp_path: Path) -> None:
    for seed in range(5):
        save(tmp_path / f"{seed}.png", seed)
    batches = list(load_images(tmp_path, "cifar10").batches(2))
    assert [batch.names for batch in batches] == [["0.png", "1.png"], ["2.png", "3.png"], ["4.png"]]
    assert [tuple(batch.images.shape) for batch in batches] == [(2, 3, 32, 32), (2, 3, 32, 32), (1, 3, 32, 32)]
    assert torch.equal(batches[2].images[0], PRESETS["cifar10"](picture(4)))


def test_bad_images_never_stop_the_others(tmp_path: Path) -> None:
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


def test_all_images_bad(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("x")
    source = load_images(tmp_path, "none")
    assert list(source.batches(4)) == []
    assert [name for name, _ in source.unreadable] == ["a.png"]


def test_other_formats_are_not_tried(tmp_path: Path) -> None:
    Image.fromarray(picture(0)).save(tmp_path / "a.gif")
    (tmp_path / "a.gif").rename(tmp_path / "a.png")
    source = load_images(tmp_path, "none")
    assert list(source.batches(1)) == []
    assert len(source.unreadable) == 1


def test_an_image_deleted_meanwhile(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    save(tmp_path / "b.png")
    source = load_images(tmp_path, "none")
    (tmp_path / "a.png").unlink()
    assert [batch.names for batch in source.batches(4)] == [["b.png"]]
    assert source.unreadable[0][0] == "a.png"


def test_mixed_sizes_are_batched_in_runs(tmp_path: Path) -> None:
    for i, side in enumerate((8, 8, 9, 8, 8, 8)):
        save(tmp_path / f"{i}.png", i, h=side)
    batches = list(load_images(tmp_path, "none").batches(2))
    assert [batch.names for batch in batches] == [["0.png", "1.png"], ["2.png"], ["3.png", "4.png"], ["5.png"]]
    assert [batch.images.shape[2] for batch in batches] == [8, 9, 8, 8]


def test_exif_orientation_is_ignored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by a quarter
    Image.fromarray(picture(0, h=10, w=20)).save(tmp_path / "a.png", exif=exif)
    (batch,) = load_images(tmp_path, "none").batches(1)
    assert torch.equal(batch.images[0], PRESETS["none"](picture(0, h=10, w=20)))


def test_single_image(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    source = load_images(tmp_path / "a.png", PRESETS["none"])
    assert source.names == ["a.png"]
    assert torch.equal(source[0], PRESETS["none"](picture(0)))


def test_indexing(tmp_path: Path) -> None:
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


def test_a_source_can_be_sent_to_the_workers_of_a_data_loader(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=picture(0)[None])
    save(tmp_path / "a.png", 0)
    for path in (tmp_path, tmp_path / "d.npz"):
        source = pickle.loads(pickle.dumps(load_images(path, "none")))
        assert torch.equal(next(iter(DataLoader(source)))[0], PRESETS["none"](picture(0)))


def test_npz_with_labels(tmp_path: Path) -> None:
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


def test_npz_without_labels_and_too_small(tmp_path: Path) -> None:
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
def test_wrong_npz(tmp_path: Path, arrays: dict[str, Any], reason: str) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(DataError, match=rf"d\.npz.*{reason}.*Save it by numpy\.savez"):
        load_images(tmp_path / "d.npz", "none")


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_damaged_npz(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "d.npz"
    if content is None:
        np.savez_compressed(path, x=np.stack([picture(0)]))
        whole = bytearray(path.read_bytes())
        whole[200:260] = bytes(60)
        content = bytes(whole)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"d\.npz cannot be read as an \.npz .*Save it by"):
        load_images(path, "none")


def test_npy_under_the_name_of_an_npz(tmp_path: Path) -> None:
    with open(tmp_path / "d.npz", "wb") as file:
        np.save(file, X)
    with pytest.raises(DataError, match=r"cannot be read as an \.npz \(File is not a zip file\)"):
        load_images(tmp_path / "d.npz", "none")


def npz(path: Path, compression: int = zipfile.ZIP_DEFLATED, /, **entries: bytes) -> None:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compression) as archive:
        warnings.simplefilter("ignore")  # of names that come twice
        for name, data in entries.items():
            archive.writestr(name.replace("__", "."), data)


def header(shape: tuple[int, ...], dtype: str = "|u1", version: bytes = b"\1\0") -> bytes:
    text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape!r}, }}\n".encode()
    return b"\x93NUMPY" + version + len(text).to_bytes(2 if version == b"\1\0" else 4, "little") + text


IMAGE = header((4, 8, 8, 3)) + bytes(768)


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"x__npy": header((2**20, 2**20, 2**20, 3)) + bytes(8)}, "not of the size"),
        ({"x__npy": header((4, 8, 8, 3)) + bytes(2**16)}, "not of the size"),
        ({"x__npy": header((-4, 8, -8, 3)) + bytes(768)}, "not of the size"),
        ({"x__npy": header((4, 8, 8, 3)) + bytes(767)}, "not of the size"),
        ({"x__npy": IMAGE, "x": IMAGE}, "'x' more than once"),
        ({"x__npy": IMAGE, "y__npy": header((2**50,), "<i8")}, "not of the size"),
        ({"x__npy": IMAGE, "y__npy": header((4,), "|O") + bytes(32)}, "Object arrays"),
        ({"x__npy": IMAGE, "y__npy": header((4,), "<m8[s]") + bytes(32)}, r"'y' is timedelta64\[s\]"),
        ({"x__npy": IMAGE, "y__npy": header((4,), "|b1") + bytes(4)}, "'y' is bool"),
        ({"x__npy": IMAGE, "y__npy": header((), "<i8") + bytes(8)}, r"'y' is int64 \(\)"),
        ({"x__npy": IMAGE, "y__npy": header((4,), "<u8") + bytes([0] * 31 + [128])}, "'y' holds 9223372036854775808"),
        ({"x__npy": IMAGE, "y__npy": header((4,), ">u8") + bytes([255] * 32)}, "'y' holds 18446744073709551615"),
        ({"x__npy": b""}, "cannot be read"),
        ({"x__npy": b"\x93NUMPY\1\0\xff\xff" + b"[" * 65535}, "cannot be read"),
        ({"x__npy": header((4, 8, 8, 3), version=b"\2\0") + bytes(768)}, "format"),
    ],
)
def test_hostile_npz(tmp_path: Path, entries: dict[str, bytes], reason: str) -> None:
    npz(tmp_path / "d.npz", **entries)
    with pytest.raises(DataError, match=rf"d\.npz.*{reason}.*Save it by numpy\.savez"):
        load_images(tmp_path / "d.npz", "none")


@pytest.mark.parametrize("dtype", ["u1", "i1", "<i4", ">i8", "<u8"])
def test_labels_of_any_integer_dtype(tmp_path: Path, dtype: str) -> None:
    np.savez(tmp_path / "d.npz", x=X, y=np.array([0, 1, 2, 127], dtype))
    labels = load_images(tmp_path / "d.npz", "none").labels
    assert labels is not None
    assert labels.tolist() == [0, 1, 2, 127]


def test_the_largest_label(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=X, y=np.full(4, 2**63 - 1, np.uint64))
    labels = load_images(tmp_path / "d.npz", "none").labels
    assert labels is not None
    assert labels.tolist() == [2**63 - 1] * 4


def test_other_arrays_of_an_npz_are_not_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=X, names=np.array([{}] * 4, dtype=object))
    assert len(load_images(tmp_path / "d.npz", "none")) == 4


@pytest.mark.parametrize("entry", ["x__npy", "y__npy", "other__npy"])
def test_an_npz_bomb_is_not_inflated(tmp_path: Path, entry: str) -> None:
    entries = {"x__npy": IMAGE} | {entry: header((2**26,), "<f4") + bytes(2**28)}
    npz(tmp_path / "d.npz", **entries)
    del entries
    tracemalloc.start()
    try:
        if entry == "other__npy":
            load_images(tmp_path / "d.npz", "none")
        else:
            with pytest.raises(DataError, match=rf"'{entry[0]}' is float32 \(67108864,\)"):
                load_images(tmp_path / "d.npz", "none")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**22


@pytest.fixture
def odd_folder(tmp_path: Path) -> Iterator[Path]:
    """One image, and what only has the name of one."""
    save(tmp_path / "m.png")
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("a.png")
    (tmp_path / "c.png").symlink_to("/dev/zero")
    (tmp_path / "d.png").symlink_to("absent")
    (tmp_path / "e.png").symlink_to("e.png")
    (tmp_path / "f.png").mkdir()
    save(tmp_path / "f.png" / "n.png", 1)
    (tmp_path / "g.png").symlink_to("f.png")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(tmp_path / "s.png"))
        yield tmp_path


@pytest.mark.usefixtures("deadline")
def test_only_regular_files_are_opened(odd_folder: Path) -> None:
    source = load_images(odd_folder, "none")
    (batch,) = source.batches(8)
    assert batch.names == ["f.png/n.png", "m.png"]
    reasons = dict(source.unreadable)
    assert {name: reasons[name] for name in ("a.png", "b.png", "c.png", "s.png")} == {
        "a.png": "it is a named pipe, no file",
        "b.png": "it is a named pipe, no file",
        "c.png": "it is a device, no file",
        "s.png": "it is a socket, no file",
    }
    assert sorted(reasons) == ["a.png", "b.png", "c.png", "d.png", "e.png", "s.png"]


@pytest.mark.usefixtures("deadline")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a.png", "a named pipe"), ("b.png", "a named pipe"), ("c.png", "a device"), ("s.png", "a socket"),
        ("d.png", "does not exist"), ("e.png", "out of reach"), ("a.npz", "a named pipe"), ("\0.png", "out of reach"),
        ("x" * 300 + ".png", "out of reach"), ("m.png/m.png", "out of reach"),
    ],
)  # fmt: skip
def test_a_single_path_that_is_no_regular_file(odd_folder: Path, name: str, reason: str) -> None:
    (odd_folder / "a.npz").symlink_to("a.png")
    with pytest.raises(DataError, match=rf"{reason}.*Give a folder of images"):
        load_images(odd_folder / name, "none")


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is so large, and holds nothing of it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size + b"\x08\x02\0\0\0") + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_too_many_pixels(tmp_path: Path) -> None:
    save(tmp_path / "a.png", h=20, w=30)
    save(tmp_path / "b.webp", h=20, w=31)
    save(tmp_path / "c.bmp", h=21, w=30)
    save(tmp_path / "d.jpg", h=21, w=30)
    (tmp_path / "e.png").write_bytes(png_header(2**31 - 1, 2**31 - 1))
    source = load_images(tmp_path, "none", max_pixels=600)
    assert [batch.names for batch in source.batches(8)] == [["a.png"]]
    reasons = dict(source.unreadable)
    assert reasons["b.webp"] == "31x20 pixels are more than 600, the limit (max_pixels)"
    assert reasons["c.bmp"] == reasons["d.jpg"] == "30x21 pixels are more than 600, the limit (max_pixels)"
    assert "exceeds limit" in reasons["e.png"]  # Pillow's own
    assert len(list(load_images(tmp_path, "none").batches(1))) == 4


def test_a_large_image_is_not_decoded(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_header(10_000, 10_000))  # decoded, it is cut short
    with pytest.raises(DataError, match="10000x10000 pixels are more than 64000000"):
        load_images(tmp_path / "a.png", "none")[0]
    with pytest.raises(DataError, match="truncated|cannot be read"):
        load_images(tmp_path / "a.png", "none", max_pixels=10**8)[0]


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    os.truncate(tmp_path / "a.png", 2**28)  # what follows the image would be of no account
    save(tmp_path / "b.png")
    os.truncate(tmp_path / "b.png", 2**28 + 1)
    source = load_images(tmp_path, "none")
    assert [batch.names for batch in source.batches(2)] == [["a.png"]]
    why = "its 268435457 bytes are more than 268435456, the most that an encoded image may have"
    assert source.unreadable == [("b.png", why)]


def test_a_relative_path_stays_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "d" / "a.png")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    sources = [load_images(path, "none") for path in ("d", "d/a.png", ".")]
    assert [source.names for source in sources] == [["a.png"], ["a.png"], ["d/a.png"]]
    assert sources[0].digest() == load_images(tmp_path / "d", "none").digest()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for source in sources:
        assert torch.equal(source[0], PRESETS["none"](picture(0)))


def test_limits_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a.png")
    assert Image.MAX_IMAGE_PIXELS is not None
    for limit in (0, -1, 2 * Image.MAX_IMAGE_PIXELS + 1):
        with pytest.raises(ArgumentError, match=rf"max_pixels is {limit}; .* PIL\.Image\.MAX_IMAGE_PIXELS"):
            load_images(tmp_path, "none", max_pixels=limit)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert len(list(load_images(tmp_path, "none", max_pixels=10**12).batches(1))) == 1


def test_pillows_warnings_stay_with_us(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """Of transparency, animation, metadata and size: none of them is about the pixels."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    palette = Image.fromarray(picture(0, 16, 16)).convert("P")
    palette.save(tmp_path / "palette.png", transparency=bytes(range(256)))
    whole = (tmp_path / "palette.png").read_bytes()
    control = b"acTL" + bytes(8)
    (tmp_path / "animated.png").write_bytes(
        whole[:33] + (8).to_bytes(4, "big") + control + zlib.crc32(control).to_bytes(4, "big") + whole[33:]
    )
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 40
    Image.fromarray(picture(0, 16, 16)).save(tmp_path / "exif.jpg", exif=exif)
    Image.fromarray(picture(0, 16, 16)).save(tmp_path / "mpo.jpg")
    whole = (tmp_path / "mpo.jpg").read_bytes()
    index = b"MPF\0II*\0\x08\0\0\0" + b"\1\0\1\xb0\4\0\1\0\0\0\2\0\0\0" + bytes(4)
    (tmp_path / "mpo.jpg").write_bytes(
        whole[:2] + b"\xff\xe2" + (len(index) + 2).to_bytes(2, "big") + index + whole[2:]
    )
    save(tmp_path / "large.png", h=20, w=20)
    warnings.simplefilter("always")
    source = load_images(tmp_path, "none", max_pixels=500)
    assert sum(len(batch.names) for batch in source.batches(8)) == 5
    assert source.unreadable == []
    assert [str(each.message) for each in recwarn] == []


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone does not exist\. Give"):
        load_images(tmp_path / "gone", "none")
    with pytest.raises(DataError, match=r"holds no image\. Put \.png"):
        load_images(tmp_path, "none")
    (tmp_path / "a.csv").write_text("1")
    with pytest.raises(DataError, match=r"a\.csv is neither an image"):
        load_images(tmp_path / "a.csv", "none")


def test_wrong_arguments(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    with pytest.raises(ArgumentError, match="no preset 'cifar'; choose one of cifar10, cifar100, imagenet"):
        load_images(tmp_path, "cifar")
    with pytest.raises(ArgumentError, match="batch_size is 0"):
        load_images(tmp_path, "none").batches(0)


def _file(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def _files(path: Path, files: list[bytes], **more: object) -> Path:
    arrays: dict[str, object] = {
        "data": np.frombuffer(b"".join(files), dtype=np.uint8),
        "offsets": np.cumsum([0, *map(len, files)]),
    }
    np.savez(path, **{**arrays, **more})  # type: ignore[arg-type]
    return path


def test_an_archive_of_files(tmp_path: Path) -> None:
    pictures = [np.full((4, 5 + n, 3), 10 * n, dtype=np.uint8) for n in range(3)]
    path = _files(tmp_path / "a.npz", [_file(each) for each in pictures], y=np.array([2, 0, 1]))
    source = load_images(path, "none")
    assert source.names == ["0", "1", "2"]
    assert source.labels is not None
    assert source.labels.tolist() == [2, 0, 1]
    for n, picture in enumerate(pictures):
        expected = torch.from_numpy(picture).permute(2, 0, 1).float() / 255
        torch.testing.assert_close(source[n], expected)


def test_a_damaged_file_in_an_archive_is_left_out(tmp_path: Path) -> None:
    good = _file(np.zeros((4, 4, 3), np.uint8))
    source = load_images(_files(tmp_path / "a.npz", [good, b"no image", good]), "none")
    assert [batch.names for batch in source.batches(8)] == [["0", "2"]]
    assert source.unreadable[0][0] == "1"


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"offsets": np.array([0, 10**9])}, "do not rise"),
        ({"offsets": np.array([5, 3])}, "do not rise"),
        ({"offsets": np.array([0.0, 1.0])}, "'offsets' float64"),
        ({"offsets": np.array([0])}, "of no image"),
        ({"data": np.zeros(4, np.int16)}, "'data' is int16"),
        ({"y": np.array([1, 2])}, "'y' is int64"),
    ],
)
def test_archives_of_files_that_do_not_fit(tmp_path: Path, more: dict[str, np.ndarray], reason: str) -> None:
    path = _files(tmp_path / "a.npz", [_file(np.zeros((4, 4, 3), np.uint8))], **more)
    with pytest.raises(DataError, match=reason):
        load_images(path, "none")


def test_a_part_is_a_source_of_its_own(tmp_path: Path) -> None:
    x = np.arange(5 * 2 * 2 * 3, dtype=np.uint8).reshape(5, 2, 2, 3)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(5))
    source = load_images(tmp_path / "a.npz", "none")
    part = source.part(2, 9)
    assert part.names == ["2", "3", "4"]
    assert part.labels is not None
    assert part.labels.tolist() == [2, 3, 4]
    torch.testing.assert_close(part[0], source[2])
    assert len(source.part(5, 7)) == 0


def test_the_digest_says_what_decides_the_images(tmp_path: Path) -> None:
    x = np.arange(4 * 2 * 2 * 3, dtype=np.uint8).reshape(4, 2, 2, 3)
    np.savez(tmp_path / "a.npz", x=x)
    np.savez(tmp_path / "b.npz", x=x, y=np.arange(4))
    changed = x.copy()
    changed[3, 0, 0, 0] += 1
    np.savez(tmp_path / "c.npz", x=changed)
    a, b, c = (load_images(tmp_path / f"{name}.npz", "none") for name in "abc")
    assert a.digest() == b.digest() != c.digest()
    assert a.part(0, 3).digest() == c.part(0, 3).digest()
    assert load_images(tmp_path / "a.npz", replace(PRESETS["none"], mean=(0.1, 0.0, 0.0))).digest() != a.digest()
    d, e = _files(tmp_path / "d.npz", [b"ab", b"c"]), _files(tmp_path / "e.npz", [b"a", b"bc"])
    assert load_images(d, "none").digest() != load_images(e, "none").digest()


def test_labels_from_the_classes_folders(tmp_path: Path) -> None:
    for name in ("n02/a.png", "n01/z.png", "n01/deeper/b.png"):
        path = tmp_path / "val" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    source = load_class_folders(tmp_path / "val", "none")
    assert source.labels is not None
    assert dict(zip(source.names, source.labels.tolist(), strict=True)) == {
        "n01/deeper/b.png": 0,
        "n01/z.png": 0,
        "n02/a.png": 1,
    }
    Image.new("RGB", (4, 4)).save(tmp_path / "val" / "loose.png")
    with pytest.raises(DataError, match=r"loose\.png outside"):
        load_class_folders(tmp_path / "val", "none")


def test_an_empty_class_keeps_its_label(tmp_path: Path) -> None:
    for name in ("n1", "n2", "n3"):
        (tmp_path / "val" / name).mkdir(parents=True)
    for name in ("n1", "n3"):
        Image.new("RGB", (4, 4)).save(tmp_path / "val" / name / "a.png")
    source = load_class_folders(tmp_path / "val", "none")
    assert source.labels is not None
    assert source.labels.tolist() == [0, 2]


def test_taken_images_are_a_source_of_their_own(tmp_path: Path) -> None:
    x = np.arange(5 * 2 * 2 * 3, dtype=np.uint8).reshape(5, 2, 2, 3)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(5))
    source = load_images(tmp_path / "a.npz", "none")
    taken = source.take([4, 1])
    assert taken.names == ["4", "1"]
    assert taken.labels is not None
    assert taken.labels.tolist() == [4, 1]
    torch.testing.assert_close(taken[0], source[4])


def test_the_first_images_that_can_be_read(tmp_path: Path) -> None:
    good = _file(np.zeros((4, 4, 3), np.uint8))
    source = load_images(_files(tmp_path / "a.npz", [b"no image", good, good]), "none")
    assert source.first(1).names == ["1"]
    with pytest.raises(DataError, match="none of the 1 images can be read"):
        source.part(0, 1).first(4)


def test_what_resizing_makes_too_large_is_unreadable(tmp_path: Path) -> None:
    save(tmp_path / "a.png", h=2, w=900)
    save(tmp_path / "b.png", h=30, w=60)
    preset = replace(PRESETS["none"], name="larger", resize=40)
    source = load_images(tmp_path, preset, max_pixels=10_000)
    assert [batch.names for batch in source.batches(4)] == [["b.png"]]
    reason = "900x2 pixels become 720000 where the preset 'larger' resizes them, more than 10000, the limit "
    reason += "(max_pixels)"
    assert source.unreadable == [("a.png", reason)]
    np.savez(tmp_path / "x.npz", x=np.stack([picture(0, 2, 900)]))
    archive = load_images(tmp_path / "x.npz", preset, max_pixels=10_000)
    assert list(archive.batches(4)) == []
    assert archive.unreadable == [("0", reason)]
    # An array is in memory as it is.
    assert len(list(load_images(tmp_path / "x.npz", "none", max_pixels=100).batches(4))) == 1
