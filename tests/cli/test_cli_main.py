import importlib.metadata
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import gaia_fast
from gaia_fast import __version__
from gaia_fast.cli import main

# Python puts the working folder on its path: the package must be found there as this process found it.
HERE = Path(gaia_fast.__file__).parents[1]


def test_python_m_in_a_process() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "gaia_fast", "--help"], capture_output=True, text=True, timeout=60, cwd=HERE
    )
    assert found.returncode == 0
    assert "Usage: python -m gaia_fast" in found.stdout
    for command in ("score", "evaluate", "validate", "layers", "demo"):
        assert f"\n  {command} " in found.stdout
    assert "Exit codes: 0 done" in found.stdout
    assert found.stderr == ""


def test_version() -> None:
    assert CliRunner().invoke(main, ["--version"]).output.splitlines()[0] == f"gaia-fast {__version__}"


@pytest.mark.parametrize("command", ["score", "evaluate", "validate", "layers", "demo"])
def test_every_command_has_json_and_help(command: str) -> None:
    found = CliRunner().invoke(main, [command, "--help"])
    assert found.exit_code == 0
    assert "--json FILE" in found.output


def test_unknown_command_is_a_usage_error() -> None:
    assert CliRunner().invoke(main, ["train"]).exit_code == 2


def test_json_in_a_folder_that_does_not_exist(run: Callable[..., Result], digits_npz: Path) -> None:
    found = run("score", digits_npz, "--arch", "digits_resnet", "--json", "no/where.json")
    assert found.exit_code == 2
    assert "the folder no does not exist" in found.stderr


def test_output_that_cannot_be_written_is_one_line(
    run: Callable[..., Result], digits_npz: Path, tmp_path: Path
) -> None:
    (tmp_path / "a_file").write_text("")
    found = run("demo", "--out", tmp_path / "a_file" / "below")
    assert found.exit_code == 1
    assert found.stderr.startswith("Error: ")
    assert found.stderr.count("\n") == 1


def test_the_console_script_is_this_command() -> None:
    scripts = importlib.metadata.entry_points(group="console_scripts", name="gaia-fast")
    if not scripts:
        pytest.skip("the package is not installed here, only importable")
    (script,) = scripts
    assert script.load() is main
