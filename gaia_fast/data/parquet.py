"""Images in Parquet: a column of encoded pictures, read in order from its row groups."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from gaia_fast import extras, files
from gaia_fast.data.presets import Preset
from gaia_fast.data.source import (
    FileState,
    ImageSource,
    StoredPicture,
    check_encoded,
    check_unchanged,
    file_state,
    labels_tensor,
    reason,
)
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
_HELD_BYTES = 64 * 2**20  # of the pictures of one, so that a group of no more can be read in any order
_BUFFER_BYTES = 2**20  # of a column that is read ahead; else all of it that is in the row group


@dataclass(frozen=True, slots=True)
class ParquetCell(StoredPicture):
    """A picture in a column.

    Attributes:
        file: of the table.
        state: of the file when its rows were listed.
        column: such as "image", or "image.bytes" of a struct.
        row_group: which of the file.
        row: which of the row group.
    """

    file: Path
    state: FileState
    column: str
    row_group: int
    row: int

    def read(self) -> bytes:
        try:
            data = (
                _row_group(self.file, self.column, self.row_group, self.state, os.getpid()).cell(self.row).as_buffer()
            )
        finally:  # what had been read or gone wrong before would say nothing of another file
            check_unchanged(self.file, file_state(self.file.stat()), self.state)
        if data is None:
            raise DataError("its cell is empty")
        check_encoded(data.size)
        return bytes(data)

    def place(self) -> str:
        return f"{self.column} {self.row_group} {self.row}"


def from_parquet(folder: Path, names: Sequence[str], preset: Preset, max_pixels: int) -> ImageSource:
    """Images in tables, called by a column `path`, `name` or `__key__`, else by the struct's `path`, behind the file
    where there are several; by file and row where these names do not tell all images apart, or a row has none. With the
    labels of a column `label`, where there is one of integers.

    Raises:
        DataError: a file is damaged, or has no column of pictures; or pyarrow is not installed.
    """
    called: list[str] = []
    by_row: list[str] = []
    pictures: list[StoredPicture] = []
    labels: list[int | None] = []
    for name in names:
        values, cells, classes = _read(folder / name)
        rows = [f"{name}:{row}" for row in range(len(cells))]
        start = f"{name}/" if len(names) > 1 else ""
        called += [row if value is None else f"{start}{value}" for row, value in zip(rows, values, strict=True)]
        by_row += rows
        pictures += cells
        labels += classes
    if not called:
        raise DataError(f"{folder / names[0]} has no rows. {_WANTED}")
    if len(set(called)) < len(called):
        called = by_row
    return ImageSource(called, pictures, preset, labels_tensor(labels), max_pixels)


def _read(path: Path) -> tuple[list[str | None], list[ParquetCell], list[int | None]]:
    """The names, pictures and labels of a file."""
    parquet = extras.load("pyarrow.parquet", "parquet", str(path), DataError)
    try:
        if what := files.kind(path):
            raise DataError(f"{path} is {what}, no file. {_WANTED}")
        state = file_state(path.stat())
        with parquet.ParquetFile(path) as file:
            fields = {field.name: field.type for field in file.schema_arrow}
            if len(fields) < len(file.schema_arrow):
                raise DataError(f"{path} has several columns of one name. {_WANTED}")
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
    cells = [ParquetCell(path, state, column, group, row) for group, size in enumerate(sizes) for row in range(size)]
    return called, cells, labels


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


class _RowGroup:
    """The cells of a column in a row group, read in order and held up to _HELD_BYTES.

    Arrow decompresses whole pages, and the whole dictionary of a column: that much is in memory whatever is held, and
    only then is one picture known to be too large.
    """

    def __init__(self, path: Path, column: str, index: int) -> None:
        self._path = path
        self._column = column
        self._index = index
        self._lock = Lock()  # of the place in the file
        self._restart()

    def cell(self, row: int) -> Any:
        """A cell by its row, a scalar of Arrow's; those that are no longer held are read from the first again."""
        with self._lock:
            if row < self._next and row not in self._held:
                self._restart()
            while row >= self._next:
                self._advance()
            return self._held[row]

    def _restart(self) -> None:
        self._cells = self._read()
        self._error: Exception | None = None
        self._held: dict[int, Any] = {}
        self._held_bytes = 0
        self._next = 0

    def _advance(self) -> None:
        """Reads and holds the next cell; what goes wrong there goes wrong for all behind it, without reading again."""
        if self._error:
            raise DataError(reason(self._error)) from self._error
        try:
            cell = next(self._cells, None)
            if cell is None:
                raise DataError(f"{self._path.name} has fewer rows than it says")
        except Exception as error:
            self._error = error
            raise
        except BaseException:  # Ctrl-C: the file is not at fault
            self._restart()
            raise
        self._held[self._next] = cell
        self._held_bytes += _size(cell)
        self._next += 1
        while self._held_bytes > _HELD_BYTES and len(self._held) > 1:
            self._held_bytes -= _size(self._held.pop(next(iter(self._held))))

    def _read(self) -> Iterator[Any]:
        from pyarrow import Table, parquet

        with parquet.ParquetFile(self._path, buffer_size=_BUFFER_BYTES) as file:
            of = {"row_groups": [self._index], "columns": [self._column]}
            for batch in file.iter_batches(batch_size=1, use_threads=False, **of):
                yield from Table.from_batches([batch]).flatten().column(0)


def _size(cell: Any) -> int:
    data = cell.as_buffer()
    return 0 if data is None else data.size


@lru_cache(_ROW_GROUPS_HELD)
def _row_group(path: Path, column: str, index: int, state: FileState, process: int) -> _RowGroup:
    """A row group of a file in that state, held by that process: one that was forked shares no place in the file."""
    return _RowGroup(path, column, index)
