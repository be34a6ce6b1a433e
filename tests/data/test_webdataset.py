"""Images in tar archives: members in their order, labels beside them, and archives that are damaged."""

import io
import os
import pickle
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gaia_fast.data import PRESETS, load_images
from gaia_fast.data.source import file_state
from gaia_fast.data.webdataset import TarMember
from gaia_fast.errors import DataError

NONE = PRESETS["none"]
CHANGED = "d.tar has changed since its images were listed; score them again when it is complete"


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)


def encoded(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(seed)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, members: Mapping[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_members_in_their_order(tmp_path: Path, form: int) -> None:
    long = f"{'deep/' * 20}{'x' * 60}.PNG"
    members = {"b.png": encoded(1), "b.json": b"{}", long: encoded(2), "./a.jpeg": encoded(0), "notes": b""}
    source = load_images(write(tmp_path / "d.tar", members, form), "none")
    assert source.names == ["d.tar/b.png", f"d.tar/{long}", "d.tar/a.jpeg"]
    assert source.labels is None
    assert [torch.equal(source[index], NONE(picture(seed))) for index, seed in enumerate((1, 2, 0))] == [True] * 3
    assert source.skipped == {".json": 1, "": 1}


def test_a_folder_of_shards_with_labels(tmp_path: Path) -> None:
    write(tmp_path / "shards" / "1.tar", {"000.png": encoded(2), "000.cls": b"7\n"})
    write(tmp_path / "0.TAR", {"000.cls": b"3", "000.png": encoded(0), "x/001.left.png": encoded(1), "x/001.cls": b"4"})
    (tmp_path / "sizes.json").write_text("{}")
    source = load_images(tmp_path, "none")
    assert source.names == ["0.TAR/000.png", "0.TAR/x/001.left.png", "shards/1.tar/000.png"]
    assert source.labels is not None
    assert source.labels.tolist() == [3, 4, 7]
    assert torch.equal(source[2], NONE(picture(2)))
    assert source.skipped == {".json": 1}


@pytest.mark.parametrize("label", [b"", b"cat", b"-1", b"9" * 40, b"1" + b" " * 31 + b"2", b"1_0"])
def test_labels_that_are_none(tmp_path: Path, label: bytes) -> None:
    members = {"0.png": encoded(0), "0.cls": b"1", "1.png": encoded(1), "1.cls": label}
    assert load_images(write(tmp_path / "d.tar", members), "none").labels is None


def test_a_part_is_read_by_itself_in_another_process(tmp_path: Path) -> None:
    source = load_images(write(tmp_path / "d.tar", {f"{seed}.png": encoded(seed) for seed in range(6)}), "none")
    part = pickle.loads(pickle.dumps(source.part(2, 5)))
    assert part.names == ["d.tar/2.png", "d.tar/3.png", "d.tar/4.png"]
    assert torch.equal(part[1], NONE(picture(3)))
    assert part.digest() == source.part(2, 5).digest() != source.part(1, 4).digest()


def test_bad_members_never_stop_the_others(tmp_path: Path) -> None:
    path = tmp_path / "d.tar"
    with tarfile.open(path, "w") as archive:
        for name, content in {"0.png": encoded(0), "1.png": b"no image", "2.png": b""}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("3.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    source = load_images(path, "none")
    assert [batch.names for batch in source.batches(4)] == [["d.tar/0.png"]]
    reasons = dict(source.unreadable)
    assert list(reasons) == ["d.tar/1.png", "d.tar/2.png", "d.tar/3.png"]
    assert reasons["d.tar/1.png"] == "not a PNG, JPEG, BMP or WEBP image"
    assert reasons["d.tar/3.png"].startswith("it is a link")


def test_an_archive_that_is_cut_off_meanwhile(tmp_path: Path) -> None:
    path = write(tmp_path / "d.tar", {"0.png": encoded(0), "1.png": encoded(1)})
    source = load_images(path, "none")
    os.truncate(path, 512 + len(encoded(0)) + 600)
    assert list(source.batches(4)) == []
    assert {why for _, why in source.unreadable} == {CHANGED}


def test_an_archive_that_is_replaced_meanwhile(tmp_path: Path) -> None:
    path = write(tmp_path / "d.tar", {"0.png": encoded(0), "1.png": encoded(1)})
    source, digest = load_images(path, "none"), load_images(path, "none").digest()
    assert torch.equal(source[0], NONE(picture(0)))
    write(path, {"0.png": encoded(2), "1.png": encoded(3)})
    os.utime(path, ns=(0, 0))
    assert list(source.batches(4)) == []
    assert source.unreadable == [("d.tar/0.png", CHANGED), ("d.tar/1.png", CHANGED)]
    assert source.digest() != load_images(path, "none").digest() != digest


def test_damaged_archives_are_refused_by_name(tmp_path: Path) -> None:
    members = {f"{seed}.png": encoded(seed) for seed in range(3)}
    whole = write(tmp_path / "whole.tar", members).read_bytes()
    second = 512 + -(-len(encoded(0)) // 512) * 512
    damaged = {
        "empty": b"",
        "text": b"no archive" * 100,
        "in_a_member": whole[: second + 600],
        "in_a_header": whole[: second + 100],
        "header": whole[:second] + b"\xff" * 512 + whole[second + 512 :],
    }
    for name, content in damaged.items():
        (tmp_path / f"{name}.tar").write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}\.tar (cannot be read|is damaged).*uncompressed \.tar"):
            load_images(tmp_path / f"{name}.tar", "none")
    with tarfile.open(tmp_path / "gz.tar", "w:gz") as archive:
        archive.add(tmp_path / "whole.tar")
    with pytest.raises(DataError, match=r"gz\.tar cannot be read as a tar archive"):
        load_images(tmp_path / "gz.tar", "none")
    with pytest.raises(DataError, match=r"gz\.tar\.gz is compressed.*uncompressed \.tar"):
        load_images((tmp_path / "gz.tar").rename(tmp_path / "gz.tar.gz"), "none")


def test_the_end_of_an_archive(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.tar", {f"{seed}.png": encoded(seed) for seed in range(3)}).read_bytes()
    bare = whole.rstrip(b"\0")
    bare += bytes(-len(bare) % 512)
    path = tmp_path / "d.tar"
    for zeros in (512, 1024, 2**20 + 2**9):
        path.write_bytes(bare + bytes(zeros))
        assert len(load_images(path, "none")) == 3
    for zeros in (0, 511):
        path.write_bytes(bare + bytes(zeros))
        with pytest.raises(DataError, match=r"d\.tar is damaged or cut off behind 3 members: .*end-of-archive"):
            load_images(path, "none")
    for after in (whole, bytes(2**21) + b"x", bytes(512) + whole):
        path.write_bytes(bare + bytes(512) + after)
        with pytest.raises(DataError, match=r"d\.tar goes on behind the end-of-archive block that follows 3 members"):
            load_images(path, "none")


def headers(*fields: tuple[str, bytes, int]) -> bytes:
    """Headers of members by name, type and size, which may be below zero, and none of their content."""
    found = b""
    for name, kind, size in fields:
        info = tarfile.TarInfo(name)
        info.type = kind
        block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        block[124:136] = (size % 2**96 | (0xFF if size < 0 else 0x80) << 88).to_bytes(12, "big")
        block[482] = kind == tarfile.GNUTYPE_SPARSE  # its map goes on in a block that is not there
        block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:512]) + 8 * 32)
        found += bytes(block)
    return found


@pytest.mark.usefixtures("deadline")
@pytest.mark.parametrize(
    "content",
    [
        headers(("a.png", tarfile.REGTYPE, -512)) + bytes(1024),
        headers(("a.png", tarfile.REGTYPE, 0), ("b.png", tarfile.REGTYPE, -512)) + bytes(1024),
        headers(("a.png", tarfile.REGTYPE, -1)) + bytes(1024),
        headers(("x", tarfile.XHDTYPE, -512), ("a.png", tarfile.REGTYPE, 0)) + bytes(1024),
        headers(("x", tarfile.GNUTYPE_LONGNAME, -512), ("a.png", tarfile.REGTYPE, 0)) + bytes(1024),
        headers(("x", tarfile.GNUTYPE_LONGNAME, 2**17)) + b"n" * 2**17 + headers(("a.png", tarfile.REGTYPE, 0)),
        headers(("a.png", tarfile.REGTYPE, 0), ("x", tarfile.XHDTYPE, 14)) + b"14 size=-1536\n".ljust(512, b"\0")
        + headers(("a.png", tarfile.REGTYPE, 0)) + bytes(1024),
        headers(("a.png", tarfile.REGTYPE, 2**80)) + bytes(1024),
        headers(("a.png", tarfile.GNUTYPE_SPARSE, 0)),
        headers(*[("x", tarfile.XHDTYPE, 0)] * 2000, ("a.png", tarfile.REGTYPE, 0)) + bytes(1024),
    ],
)  # fmt: skip
def test_hostile_archives(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "d.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"d\.tar (cannot be read|is damaged).*uncompressed \.tar"):
        load_images(tmp_path / "d.tar", "none")


def test_a_member_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "d.tar"
    path.write_bytes(headers(("a.png", tarfile.REGTYPE, 2**34)))
    member = TarMember(path, file_state(path.stat()), 512, 2**34)
    with pytest.raises(DataError, match="its 17179869184 bytes are more than 268435456, the most"):
        member.read()


def test_members_of_one_name(tmp_path: Path) -> None:
    path = tmp_path / "d.tar"
    with tarfile.open(path, "w") as archive:
        for name, content in (("a.txt", b""), ("a.png", encoded(0)), ("./a.png", encoded(1)), ("../b.png", encoded(2))):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    source = load_images(path, "none")
    assert source.names == ["d.tar/a.png:1", "d.tar/a.png:2", "d.tar/../b.png"]
    assert [torch.equal(source[seed], NONE(picture(seed))) for seed in range(3)] == [True] * 3
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_called_as_an_image(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "d.tar", "w") as archive:
        for name in ("x.png/", "y.cls/"):
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE
            archive.addfile(info)
        info = tarfile.TarInfo("x.png/z.png")
        info.size = len(encoded(0))
        archive.addfile(info, io.BytesIO(encoded(0)))
    source = load_images(tmp_path / "d.tar", "none")
    assert source.names == ["d.tar/x.png/z.png"]
    assert source.skipped == {}


def test_labels_are_read_from_the_archive_that_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "d.tar", {f"{n}.{end}": b"7" for n in range(50) for end in ("png", "cls")})
    opened: list[Path] = []
    right = Path.open

    def counted(self: Path, *args: Any, **options: Any) -> Any:
        opened.append(self)
        return right(self, *args, **options)

    monkeypatch.setattr(Path, "open", counted)
    labels = load_images(path, "none").labels
    assert labels is not None
    assert labels.tolist() == [7] * 50
    assert opened == [path]


def test_a_sample_of_two_classes_has_none(tmp_path: Path) -> None:
    path = tmp_path / "d.tar"
    for second, expected in ((b"1", [1]), (b"2", None)):
        with tarfile.open(path, "w") as archive:
            for name, content in (("a.png", encoded(0)), ("a.cls", b"1"), ("a.cls", second)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        labels = load_images(path, "none").labels
        assert (None if labels is None else labels.tolist()) == expected


@pytest.mark.usefixtures("deadline")
def test_what_is_no_archive_of_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"d\.tar holds no image"):
        load_images(write(tmp_path / "d.tar", {"a.txt": b"text"}), "none")
    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.raises(DataError, match=r"pipe\.tar is a named pipe"):
        load_images(tmp_path / "pipe.tar", "none")


def test_images_come_before_archives_of_them(tmp_path: Path) -> None:
    Image.fromarray(picture(0)).save(tmp_path / "a.png")
    write(tmp_path / "b.tar", {"0.png": encoded(0)})
    (tmp_path / "c.TXT").write_text("")
    (tmp_path / "none").write_text("")
    source = load_images(tmp_path, "none")
    assert source.names == ["a.png"]
    assert source.skipped == {".tar": 1, ".txt": 1, "": 1}
