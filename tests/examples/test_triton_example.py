"""examples/triton: the repository that it writes answers, by its model.py."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from triton_config import read_config

RUN = Path(__file__).parents[2] / "examples" / "triton" / "run.py"


def test_digits_are_told_from_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "--models", str(tmp_path / "models")])
    monkeypatch.setattr(sys, "path", list(sys.path))
    runpy.run_path(str(RUN), run_name="__main__")
    shown = capsys.readouterr().out
    assert f"wrote {tmp_path / 'models' / 'digits' / '1' / 'model.onnx'}" in shown
    rows = re.findall(r"^(digit|noise) +(\d) +(\d+\.\d+) +(True|False)", shown, re.MULTILINE)
    assert [row[0] for row in rows] == ["digit"] * 5 + ["noise"] * 5
    assert [row[3] for row in rows if row[0] == "noise"] == ["True"] * 5
    assert sum(row[3] == "True" for row in rows if row[0] == "digit") <= 1
    assert read_config(tmp_path / "models" / "digits" / "config.pbtxt")["max_batch_size"] == 32
