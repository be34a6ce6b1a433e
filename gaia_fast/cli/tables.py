"""Tables of rows in files: CSV as rows come, Parquet (the extra `parquet`) and JSON; whole, or not there."""

import contextlib
import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from gaia_fast import extras, files
from gaia_fast.batch_scoring.rows import Row
from gaia_fast.errors import ArgumentError
from gaia_fast.files import replacing

Columns = Mapping[str, str]  # the type of each by its name, as Parquet has it: see `_TEXTS`
Write = Callable[[list[Row]], None]
Table = Callable[[Columns], contextlib.AbstractContextManager[Write]]

_ROWS_AT_ONCE = 65536  # rows of a Parquet row group: a compressed column of few rows wastes space

_TEXTS: dict[str, Callable[[Any], str]] = {
    "string": str,
    "int64": str,
    # Digits that tell any two numbers apart.
    "float32": lambda value: f"{value:.9g}",
    "float64": lambda value: f"{value:.17g}",
    "bool": lambda value: str(value).lower(),
}


def table(out: Path | None, option: str, endings: Sequence[str] = (".csv", ".parquet")) -> Table:
    """What writes a table to a file, by the ending of its name, once its columns are known; CSV to stdout without one.

    The file takes its name when the context that is given ends, and not if an exception ends it. A value may be None:
    it is left empty, or null.

    Args:
        out: the file.
        option: that named it, for messages.
        endings: those allowed, of .csv, .parquet and .json.

    Raises:
        click.UsageError: another ending. ArgumentError: Parquet is asked for, and pyarrow is not installed.
    """
    ending = ".csv" if out is None else out.suffix.lower()
    if ending not in endings:
        raise click.UsageError(f"{option} {out}: the name must end in {', '.join(endings[:-1])} or {endings[-1]}")
    if out is None or ending == ".csv":
        return lambda columns: _csv(out, columns)
    if ending == ".json":
        return lambda columns: _json(out, columns)
    if reason := extras.missing("parquet"):
        raise ArgumentError(f"{option} {out}: {reason}, or write a .csv")
    return lambda columns: _parquet(out, columns)


@contextlib.contextmanager
def _csv(out: Path | None, columns: Columns) -> Iterator[Write]:
    with _text_file(out) as file:
        writer = csv.writer(file, lineterminator="\n")
        begun = False

        def write(rows: list[Row]) -> None:
            nonlocal begun
            if not begun:  # not before there is something: a run that fails leaves no table of nothing
                writer.writerow(columns)
                begun = True
            for row in rows:
                writer.writerow(["" if row[k] is None else _TEXTS[kind](row[k]) for k, kind in columns.items()])
            file.flush()

        yield write
        write([])


@contextlib.contextmanager
def _text_file(out: Path | None) -> Iterator[Any]:
    if out is None:
        yield sys.stdout
        return
    # A name that is no valid Unicode goes out as the bytes that it came in as.
    with (
        replacing(out) as written,
        written.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        yield file


@contextlib.contextmanager
def _parquet(out: Path, columns: Columns) -> Iterator[Write]:
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in columns.items()])
    waiting: list[Row] = []
    with replacing(out) as written, parquet.ParquetWriter(written, schema) as writer:

        def flush() -> None:
            if waiting:
                valid = [{name: _valid(value) for name, value in row.items()} for row in waiting]
                writer.write_table(pa.Table.from_pylist(valid, schema))
                waiting.clear()

        def write(rows: list[Row]) -> None:
            waiting.extend(rows)
            if len(waiting) >= _ROWS_AT_ONCE:
                flush()

        yield write
        flush()


def _valid(value: Any) -> Any:
    """A value as it is, but a name that is no valid Unicode by its bytes, as \\udcff: Parquet takes UTF-8 alone."""
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


@contextlib.contextmanager
def _json(out: Path, columns: Columns) -> Iterator[Write]:
    rows: list[Row] = []
    yield rows.extend
    lines = [json.dumps({name: row[name] for name in columns}, allow_nan=False) for row in rows]
    files.write_text(out, "[" + ",".join(f"\n {line}" for line in lines) + "\n]\n")
