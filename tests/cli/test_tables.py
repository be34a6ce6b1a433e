import csv
import json
import os
from pathlib import Path

import click
import pytest
from pyarrow import parquet

from gaia_fast.batch_scoring.rows import Row
from gaia_fast.cli.tables import table

COLUMNS = {"image": "string", "label": "int64", "score": "float32", "exact": "float64", "is_ood": "bool"}
ROWS: list[Row] = [
    {"image": 'a, "b".png', "label": 3, "score": 0.1, "exact": 0.1 + 0.2, "is_ood": True},
    {"image": "\u00e9\n.png", "label": None, "score": 1e30, "exact": 1e-300, "is_ood": False},
]
ENDINGS = (".csv", ".json", ".parquet")


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_written_is_read(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows{ending}"
    with table(path, "--out", ENDINGS)(COLUMNS) as write:
        write(ROWS[:1])
        assert not path.exists()
        write(ROWS[1:])
    if ending == ".json":
        assert json.loads(path.read_text()) == ROWS
    elif ending == ".parquet":
        found = parquet.read_table(path)
        assert [str(kind) for kind in found.schema.types] == ["string", "int64", "float", "double", "bool"]
        assert found.drop_columns("score").to_pylist() == [
            {key: value for key, value in row.items() if key != "score"} for row in ROWS
        ]
    else:
        with path.open(newline="") as file:
            first, second = csv.DictReader(file)
        assert first["image"] == ROWS[0]["image"]
        assert (second["image"], second["label"], second["is_ood"]) == ("\u00e9\n.png", "", "false")
        assert (first["score"], float(first["exact"])) == ("0.1", 0.1 + 0.2)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("ending", ENDINGS)
def test_no_rows_are_a_table_of_nothing(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows{ending}"
    with table(path, "--out", ENDINGS)(COLUMNS):
        pass
    if ending == ".json":
        assert json.loads(path.read_text()) == []
    elif ending == ".parquet":
        assert parquet.read_table(path).num_rows == 0
    else:
        assert path.read_text() == "image,label,score,exact,is_ood\n"


def test_a_name_that_is_no_unicode_is_written_by_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    with table(path, "--out")({"image": "string"}) as write:
        write([{"image": os.fsdecode(b"\xff.png")}, {"image": None}])
    assert parquet.read_table(path)["image"].to_pylist() == [r"\udcff.png", None]


def test_a_number_that_json_does_not_have_is_not_written(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="not JSON compliant"),
        table(tmp_path / "rows.json", "--out", ENDINGS)({"score": "float64"}) as write,
    ):
        write([{"score": float("nan")}])
    assert list(tmp_path.iterdir()) == []


def test_endings_that_are_not_allowed(tmp_path: Path) -> None:
    with pytest.raises(click.UsageError, match=r"--out .*rows\.json: the name must end in \.csv or \.parquet"):
        table(tmp_path / "rows.json", "--out")
    with pytest.raises(click.UsageError, match=r"must end in \.csv, \.json or \.parquet"):
        table(tmp_path / "rows", "--scores", ENDINGS)
