"""Images in Parquet: a column of encoded pictures, read a row group at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from gaia_fast import extras, files
from gaia_fast.data.presets import Preset
from gaia_fast.data.source import ImageSource, StoredPicture, reason
from gaia_fast.errors import DataError, GaiaError

ENDINGS = (".parquet",)

_PICTURES = ("image", "images", "jpg", "png", "bytes")  # what columns of pictures are called
_NAMES = ("path", "name", "__key__")
_LABELS = ("label", "labels")
_WANTED = (
    "A file of images has a column of encoded pictures (PNG, JPEG, BMP, WebP), binary or a struct with `bytes`, called "
    f"{', '.join(_PICTURES[:-1])} or {_PICTURES[-1]}, or the only one of that kind."
)
_ROW_GROUPS_HELD = 2  # by a process: a batch may begin in one and end in the next


@dataclass(frozen=True, slots=True)
class ParquetCell(StoredPicture):
    """A picture in a column.

    Attributes:
        file: of the table.
        column: such as "image", or "image.bytes" of a struct.
        row_group: which of the file.
        row: which of the row group.
    """

    file: Path
    column: str
    row_group: int
    row: int

    def read(self) -> bytes:
        state = self.file.stat()
        cells = _column(self.file, self.column, self.row_group, (state.st_size, state.st_mtime_ns))
        data = cells[self.row].as_py()
        if data is None:
            raise DataError("its cell is empty")
        return bytes(data)

    def place(self) -> str:
        return f"{self.column} {self.row_group} {self.row}"


def from_parquet(folder: Path, names: Sequence[str], preset: Preset, max_pixels: int) -> ImageSource:
    """Images in tables, called by a column `path`, `name` or `__key__`, else by the struct's `path`, else by file and
    row; with the labels of a column `label`, where there is one of integers.

    Raises:
        DataError: a file is damaged, or has no column of pictures; or pyarrow is not installed.
    """
    called: list[str] = []
    pictures: list[StoredPicture] = []
    labels: list[int | None] = []
    for name in names:
        found = _read(folder / name, name)
        called += found[0]
        pictures += found[1]
        labels += found[2]
    if not called:
        raise DataError(f"{folder / names[0]} has no rows. {_WANTED}")
    known = [each for each in labels if each is not None and each >= 0]
    tensor = torch.tensor(known) if len(known) == len(labels) else None
    return ImageSource(called, pictures, preset, tensor, max_pixels)


def _read(path: Path, name: str) -> tuple[list[str], list[ParquetCell], list[int | None]]:
    """The names, pictures and labels of a file."""
    parquet = extras.load("pyarrow.parquet", "parquet", str(path), DataError)
    try:
        if what := files.kind(path):
            raise DataError(f"{path} is {what}, no file. {_WANTED}")
        with parquet.ParquetFile(path) as file:
            fields = {field.name: field.type for field in file.schema_arrow}
            column = _picture_column(path, fields)
            sizes = [file.metadata.row_group(index).num_rows for index in range(file.metadata.num_row_groups)]
            count = sum(sizes)
            called = _values(file, _name_column(fields, column), count)
            labels = _values(file, _label_column(fields), count)
    except GaiaError:
        raise
    # Arrow raises classes of its own, and others for what damaged bytes make it trip over.
    except Exception as error:
        raise DataError(f"{path} cannot be read as Parquet ({reason(error)}). {_WANTED}") from error
    names = [f"{name}:{row}" if each is None else str(each) for row, each in enumerate(called)]
    cells = [ParquetCell(path, column, group, row) for group, size in enumerate(sizes) for row in range(size)]
    return names, cells, labels


def _picture_column(path: Path, fields: dict[str, Any]) -> str:
    encoded = {}
    for name, kind in fields.items():
        if _is_binary(kind):
            encoded[name] = name
        elif _field(kind, "bytes", _is_binary):
            encoded[name] = f"{name}.bytes"
    for name in _PICTURES:
        if name in encoded:
            return encoded[name]
    if len(encoded) == 1:
        return next(iter(encoded.values()))
    which = f"several columns of bytes ({', '.join(encoded)})" if encoded else f"only the columns {', '.join(fields)}"
    raise DataError(f"{path} has {which}. {_WANTED}")


def _name_column(fields: dict[str, Any], pictures: str) -> str | None:
    for name in _NAMES:
        if name in fields and _is_text(fields[name]):
            return name
    own = pictures.removesuffix(".bytes")
    return f"{own}.path" if _field(fields[own], "path", _is_text) else None


def _label_column(fields: dict[str, Any]) -> str | None:
    from pyarrow import types

    return next((name for name in _LABELS if name in fields and types.is_integer(fields[name])), None)


def _is_binary(kind: Any) -> bool:
    from pyarrow import types

    return types.is_binary(kind) or types.is_large_binary(kind)


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return types.is_string(kind) or types.is_large_string(kind)


def _field(kind: Any, name: str, is_wanted: Any) -> bool:
    """Whether a type is a struct with such a field."""
    from pyarrow import types

    return types.is_struct(kind) and any(each.name == name and is_wanted(each.type) for each in kind)


def _values(file: Any, column: str | None, count: int) -> list[Any]:
    """What is in a column; None for each row where there is no column."""
    if column is None:
        return [None] * count
    return file.read(columns=[column]).flatten().column(0).to_pylist()


@lru_cache(_ROW_GROUPS_HELD)
def _column(path: Path, column: str, row_group: int, state: tuple[int, int]) -> Any:
    """The cells of a row group; of a file in that state."""
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        return file.read_row_group(row_group, columns=[column]).flatten().column(0)
