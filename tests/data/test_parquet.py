"""Images in Parquet: the column that is taken, names and labels, and files that are damaged or hold something else."""

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gaia_fast.data import PRESETS, load_images, parquet
from gaia_fast.data import source as source_module
from gaia_fast.errors import DataError

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")

NONE = PRESETS["none"]


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)


def encoded(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(seed)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, columns: dict[str, Any], row_group_size: int = 3) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


def test_a_column_of_pictures(tmp_path: Path) -> None:
    path = write(tmp_path / "d.parquet", {"image": [encoded(seed) for seed in range(7)], "label": range(3, 10)})
    source = load_images(path, "none")
    assert source.names == [f"d.parquet:{row}" for row in range(7)]
    assert source.labels is not None
    assert source.labels.tolist() == list(range(3, 10))
    assert torch.equal(
        torch.stack([source[index] for index in range(7)]), torch.stack([NONE(picture(s)) for s in range(7)])
    )
    assert source.skipped == {}


@pytest.mark.parametrize(
    "columns",
    [
        {"image": [{"bytes": encoded(1), "path": "a/1.png"}, {"bytes": encoded(2), "path": None}]},
        {"thumbnail": [b"x", b"y"], "png": [encoded(1), encoded(2)], "path": ["a/1.png", None]},
        {"img": [encoded(1), encoded(2)], "__key__": ["a/1.png", None], "label": [1, None]},
        {"jpg": pa.array([encoded(1), encoded(2)], pa.large_binary()), "name": ["a/1.png", None], "label": [-1, 2]},
    ],
    ids=["struct", "by name", "the only one", "large"],
)
def test_what_columns_are_called(tmp_path: Path, columns: dict[str, Any]) -> None:
    source = load_images(write(tmp_path / "d.parquet", columns), "none")
    assert source.names == ["a/1.png", "d.parquet:1"]
    assert source.labels is None
    assert torch.equal(source[0], NONE(picture(1)))
    assert torch.equal(source[1], NONE(picture(2)))


def test_a_folder_of_files(tmp_path: Path) -> None:
    write(tmp_path / "train" / "b.parquet", {"image": [encoded(2)], "label": [1]})
    write(tmp_path / "a.parquet", {"image": [encoded(0), encoded(1)], "label": [0, 1]})
    write(tmp_path / "empty.PARQUET", {"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())})
    (tmp_path / "README.md").write_text("of this data")
    source = load_images(tmp_path, "none")
    assert source.names == ["a.parquet:0", "a.parquet:1", "train/b.parquet:0"]
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1, 1]
    assert torch.equal(source[2], NONE(picture(2)))
    assert source.skipped == {".md": 1}


def test_a_part_is_read_by_itself_in_another_process(tmp_path: Path) -> None:
    path = write(tmp_path / "d.parquet", {"image": [encoded(seed) for seed in range(8)]})
    source = load_images(path, "none")
    part = pickle.loads(pickle.dumps(source.part(2, 7)))
    assert part.names == source.names[2:7]
    assert torch.equal(part[4], NONE(picture(6)))
    assert part.digest() == source.part(2, 7).digest() != source.part(1, 6).digest()
    assert len(pickle.dumps(source.part(2, 4))) < 2 * len(encoded(0)) + 1000


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The row groups that are read, each time from its first row."""
    groups: list[int] = []
    right = pq.ParquetFile.iter_batches

    def iter_batches(self: Any, **options: Any) -> Any:
        groups.extend(options["row_groups"])
        return right(self, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", iter_batches)
    return groups


def test_a_row_group_is_read_once_for_all_its_rows(tmp_path: Path, read: list[int]) -> None:
    path = write(tmp_path / "d.parquet", {"image": [encoded(seed) for seed in range(7)]})
    source = load_images(path, "none")
    assert sum(len(batch.names) for batch in source.batches(2)) == 7
    assert read == [0, 1, 2]
    for index in (6, 4, 3, 5):
        assert torch.equal(source[index], NONE(picture(index)))
    assert read == [0, 1, 2]


def test_a_large_row_group_is_not_held_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: list[int]) -> None:
    monkeypatch.setattr(parquet, "_HELD_BYTES", 2**20)
    monkeypatch.setattr(parquet, "_BUFFER_BYTES", 2**16)
    cells = [encoded(seed) + bytes([seed]) * 2**18 for seed in range(64)]
    path = tmp_path / "d.parquet"
    pq.write_table(pa.table({"image": cells}), path, use_dictionary=False, write_batch_size=1, data_page_size=2**16)
    source = load_images(path, "none")
    before = pa.total_allocated_bytes()
    most = 0
    for index in range(64):
        assert torch.equal(source[index], NONE(picture(index)))
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 4 * 2**20  # of 16 MiB
    assert read == [0]
    for index in (62, 3, 40, 2):
        assert torch.equal(source[index], NONE(picture(index)))
    assert read == [0, 0, 0]


def test_a_file_that_has_changed_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "d.parquet", {"image": [encoded(0), encoded(2)]})
    source = load_images(path, "none")
    digest = source.digest()
    assert torch.equal(source[0], NONE(picture(0)))
    write(path, {"image": [encoded(1), encoded(3)]})
    os.utime(path, ns=(0, 0))
    why = "d.parquet has changed since its images were listed; score them again when it is complete"
    assert list(source.batches(2)) == []
    assert source.unreadable == [("d.parquet:0", why), ("d.parquet:1", why)]
    path.write_text("no table")
    assert list(source.batches(2)) == []
    assert source.unreadable == [("d.parquet:0", why), ("d.parquet:1", why)]
    write(path, {"image": [encoded(1), encoded(3)]})
    assert load_images(path, "none").digest() != digest


def test_names_that_are_no_names_of_images(tmp_path: Path) -> None:
    classes = {"image": [encoded(0), encoded(1), encoded(2)], "name": ["dog", "dog", None]}
    assert load_images(write(tmp_path / "d.parquet", classes), "none").names == [f"d.parquet:{row}" for row in range(3)]
    taken = {"image": [encoded(0), encoded(1)], "name": ["e.parquet:1", None]}
    assert load_images(write(tmp_path / "e.parquet", taken), "none").names == ["e.parquet:0", "e.parquet:1"]


def test_names_in_several_files(tmp_path: Path) -> None:
    for shard in "ab":
        cells = [{"bytes": encoded(seed), "path": f"{seed}.png"} for seed in range(2)]
        write(tmp_path / "s" / f"{shard}.parquet", {"image": cells})
    assert load_images(tmp_path / "s", "none").names == [
        "a.parquet/0.png", "a.parquet/1.png", "b.parquet/0.png", "b.parquet/1.png",
    ]  # fmt: skip
    write(tmp_path / "s" / "c.parquet", {"image": [encoded(0)] * 2, "path": ["x", "x"]})
    assert load_images(tmp_path / "s", "none").names == [f"{shard}.parquet:{row}" for shard in "abc" for row in (0, 1)]


def test_a_cell_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = encoded(1)
    monkeypatch.setattr(source_module, "MAX_ENCODED_BYTES", len(large) + 9)
    cells = [large + bytes(10), large + bytes(9)]
    source = load_images(write(tmp_path / "d.parquet", {"image": cells}), "none")
    assert [batch.names for batch in source.batches(2)] == [["d.parquet:1"]]
    assert source.unreadable[0][1].startswith(f"its {len(large) + 10} bytes are more than {len(large) + 9}, the most")


def test_rows_and_structs_that_are_empty(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    whole = pa.table({"image": [None, {"bytes": None, "path": "b"}, {"bytes": encoded(0), "path": None}]})
    with pq.ParquetWriter(path, whole.schema) as writer:
        for table in (whole[:0], whole, whole[:0]):
            writer.write_table(table)
    source = load_images(path, "none")
    assert [batch.names for batch in source.batches(4)] == [["d.parquet:2"]]
    assert source.unreadable == [("d.parquet:0", "its cell is empty"), ("b", "its cell is empty")]


def test_a_label_that_is_no_class(tmp_path: Path) -> None:
    columns = {"image": [encoded(0), encoded(1)], "label": pa.array([1, 2**63], pa.uint64())}
    assert load_images(write(tmp_path / "d.parquet", columns), "none").labels is None


def test_bad_cells_never_stop_the_others(tmp_path: Path) -> None:
    cells = [encoded(0), None, b"", b"no image", encoded(4)]
    source = load_images(write(tmp_path / "d.parquet", {"image": cells}), "none")
    (batch,) = source.batches(8)
    assert batch.names == ["d.parquet:0", "d.parquet:4"]
    reason = "not a PNG, JPEG, BMP or WEBP image"
    assert source.unreadable == [
        ("d.parquet:1", "its cell is empty"), ("d.parquet:2", reason), ("d.parquet:3", reason),
    ]  # fmt: skip


def test_a_damaged_row_group_is_so_many_unreadable_images(tmp_path: Path) -> None:
    path = write(tmp_path / "d.parquet", {"image": [encoded(seed) for seed in range(6)]})
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 40] = bytes(40)
    path.write_bytes(content)
    source = load_images(path, "none")
    assert [batch.names for batch in source.batches(8)] == [[f"d.parquet:{row}" for row in range(3)]]
    assert [name for name, _ in source.unreadable] == [f"d.parquet:{row}" for row in range(3, 6)]


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"text": ["a"]}, "only the columns text"),
        ({"image": [1]}, "only the columns image"),
        ({"a": [b"x"], "b": [b"y"]}, r"several columns of bytes \(a, b\)"),
        ({"image": pa.array([], pa.binary())}, "has no rows"),
        ({"image": [[b"x"]]}, "only the columns image"),
        ({"sample": [{"image": {"bytes": b"x"}}]}, "only the columns sample"),
    ],
)
def test_other_tables(tmp_path: Path, columns: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=rf"d\.parquet has .*{reason}|{reason}.*encoded pictures"):
        load_images(write(tmp_path / "d.parquet", columns), "none")


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([b"x"]), pa.array([b"y"])], names=["image", "image"])
    pq.write_table(table, tmp_path / "d.parquet")
    with pytest.raises(DataError, match=r"d\.parquet has several columns of one name"):
        load_images(tmp_path / "d.parquet", "none")


@pytest.mark.usefixtures("deadline")
def test_damaged_files_are_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "good.parquet", {"image": [encoded(0)]})
    (tmp_path / "cut.parquet").write_bytes(path.read_bytes()[:-20])
    (tmp_path / "text.parquet").write_text("no table")
    os.mkfifo(tmp_path / "pipe.parquet")
    for name in ("cut", "text"):
        with pytest.raises(
            DataError, match=rf"{name}\.parquet cannot be read as Parquet \(.*\)\. A file of images has"
        ):
            load_images(tmp_path / f"{name}.parquet", "none")
    with pytest.raises(DataError, match=r"pipe\.parquet is a named pipe"):
        load_images(tmp_path / "pipe.parquet", "none")
    with pytest.raises(DataError, match=r"cut\.parquet cannot be read"):
        load_images(tmp_path, "none")


def test_the_limit_of_pixels_holds(tmp_path: Path) -> None:
    source = load_images(write(tmp_path / "d.parquet", {"image": [encoded(0)]}), "none", max_pixels=29)
    assert list(source.batches(1)) == []
    assert "5x6 pixels are more than 29" in source.unreadable[0][1]
