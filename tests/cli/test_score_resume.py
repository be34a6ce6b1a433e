"""Rows that are safe when a run ends early, and runs that go on where it was."""

import csv
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from torch import Tensor

from gaia_fast import GaiaOutput, GaiaZ, files
from gaia_fast.cli.resuming import _ended_by_sigterm
from gaia_fast.data.digits import held_out_pictures

from command_line import CHUNK, SLOW, parts_in, start, wait_for_parts

DIGITS = ("--arch", "digits_resnet", "--preset", "digits", "--batch-size", "5")
PARTS = Path("rows.csv.partial")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of ten images: 40 make four."""
    monkeypatch.setattr("gaia_fast.batch_scoring.chunks.IMAGES_IN_A_CHUNK", 10)


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Makes the batch of that number fail; None for none."""
    right = GaiaZ.score

    def fail(batch: int | None) -> None:
        seen: list[int] = []

        def score(self: GaiaZ, x: Tensor, **options: Any) -> GaiaOutput:
            seen.append(len(x))
            if len(seen) == batch:
                raise OSError("the power went")
            return right(self, x, **options)

        monkeypatch.setattr(GaiaZ, "score", score)

    return fail


@pytest.fixture
def whole(run: Callable[..., Result], digits_npz: Path) -> Callable[..., bytes]:
    """The file that a run writes which nothing interrupts."""

    def whole(*options: object, name: str = "rows.csv", source: Path = digits_npz) -> bytes:
        assert run("score", source, *DIGITS, "--out", f"whole-{name}", *options).exit_code in (0, 3)
        return Path(f"whole-{name}").read_bytes()

    return whole


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
def test_a_run_goes_on_where_it_was(
    run: Callable[..., Result],
    digits_npz: Path,
    fails: Callable[[int | None], None],
    whole: Callable[..., bytes],
    name: str,
) -> None:
    expected = whole(name=name)
    Path(name).write_text("earlier")
    fails(6)  # of five images each: two parts are done
    broken = run("score", digits_npz, *DIGITS, "--out", name)
    assert broken.exit_code == 1
    safe = f"the rows of 20 of 40 images are safe in {Path.cwd() / name}.partial; --resume goes on"
    assert broken.stderr.splitlines()[-2:] == [safe, "Error: the power went"]
    assert Path(name).read_text() == "earlier"
    assert parts_in(Path(f"{name}.partial")) == ["000000000-000000010.json", "000000010-000000020.json"]

    fails(5)  # so that no more than the missing can be scored
    found = run("score", digits_npz, *DIGITS, "--out", name, "--resume", "--json", "out.json")
    assert found.exit_code == 0, found.stderr
    assert f"resuming: the rows of 20 of 40 images are in {Path.cwd() / name}.partial" in found.stderr
    assert "gaia-z: 40 images scored" in found.stderr
    assert Path(name).read_bytes() == expected
    assert not Path(f"{name}.partial").exists()
    record = json.loads(Path("out.json").read_text())
    assert [each["image"] for each in record["images"]] == [str(index) for index in range(40)]


def test_without_resume_the_parts_are_replaced(
    run: Callable[..., Result], digits_npz: Path, fails: Callable[[int | None], None], whole: Callable[..., bytes]
) -> None:
    expected = whole()
    fails(4)
    run("score", digits_npz, *DIGITS, "--out", "rows.csv")
    part = PARTS / "000000000-000000010.json"
    part.write_text(part.read_text().replace('"score": ', '"score": 1'))
    fails(None)
    found = run("score", digits_npz, *DIGITS, "--out", "rows.csv")
    assert found.exit_code == 0
    assert (
        "what an earlier run has left is replaced; --resume goes on with what the same command has left" in found.stderr
    )
    assert Path("rows.csv").read_bytes() == expected


def test_what_no_run_could_go_on_with_is_not_promised(
    run: Callable[..., Result], digits_npz: Path, fails: Callable[[int | None], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model has tensors whose bytes cannot be read."""
    monkeypatch.setattr("gaia_fast.cli.score.model_identity", lambda model: (None, ""))
    fails(4)
    found = run("score", digits_npz, *DIGITS, "--out", "rows.csv")
    assert found.stderr.splitlines()[-1] == "Error: the power went"
    assert "--resume" not in found.stderr
    assert not PARTS.exists()


def test_nothing_to_resume(run: Callable[..., Result], digits_npz: Path, whole: Callable[..., bytes]) -> None:
    found = run("score", digits_npz, *DIGITS, "--out", "rows.csv", "--resume")
    assert found.exit_code == 0
    assert "nothing to resume: there is no " in found.stderr
    assert Path("rows.csv").read_bytes() == whole()


def test_what_is_done_is_put_together_only(
    run: Callable[..., Result], digits_npz: Path, monkeypatch: pytest.MonkeyPatch, whole: Callable[..., bytes]
) -> None:
    """The disk was full when the table was written."""
    expected = whole()

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("gaia_fast.batch_scoring.parts.PartsFolder.read", full)
        found = run("score", digits_npz, *DIGITS, "--out", "rows.csv")
    assert "40 of 40 images are safe" in found.stderr
    monkeypatch.setattr(GaiaZ, "score", full)
    assert run("score", digits_npz, *DIGITS, "--out", "rows.csv", "--resume").exit_code == 0
    assert Path("rows.csv").read_bytes() == expected


def test_parts_stay_until_all_is_written(
    run: Callable[..., Result], digits_npz: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("gaia_fast.cli.output.write_json", full)
        found = run("score", digits_npz, *DIGITS, "--out", "rows.csv", "--json", "out.json")
    assert found.exit_code == 1
    assert "40 of 40 images are safe" in found.stderr
    monkeypatch.setattr(GaiaZ, "score", full)
    assert run("score", digits_npz, *DIGITS, "--out", "rows.csv", "--json", "out.json", "--resume").exit_code == 0
    assert json.loads(Path("out.json").read_text())["count"] == 40
    assert not PARTS.exists()


def test_a_signal_that_no_python_code_handled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then there is no handler that could be put back."""
    put: list[object] = []
    monkeypatch.setattr(signal, "signal", lambda number, handler: put.append(handler))
    with _ended_by_sigterm():
        pass
    assert put[1:] == [signal.SIG_DFL]


def test_unreadable_images_are_named_by_the_run_that_goes_on(
    run: Callable[..., Result],
    damaged_folder: Path,
    fails: Callable[[int | None], None],
    whole: Callable[..., bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gaia_fast.batch_scoring.chunks.IMAGES_IN_A_CHUNK", 5)
    (damaged_folder / "notes.txt").write_text("none")
    expected = whole(source=damaged_folder)
    fails(2)
    assert "5 of 8 images are safe" in run("score", damaged_folder, *DIGITS, "--out", "rows.csv").stderr
    fails(None)
    found = run("score", damaged_folder, *DIGITS, "--out", "rows.csv", "--resume", "--json", "out.json")
    assert found.exit_code == 3
    assert "unreadable: a/broken.png: " in found.stderr
    assert "unreadable: zero.jpg: " in found.stderr
    assert "skipped: 1 .txt" in found.stderr
    assert Path("rows.csv").read_bytes() == expected
    record = json.loads(Path("out.json").read_text())
    assert [each["image"] for each in record["unreadable"]] == ["a/broken.png", "zero.jpg"]
    assert record["skipped"] == {".txt": 1}


def test_thresholds_are_those_of_the_run_that_began(
    run: Callable[..., Result],
    digits_npz: Path,
    damaged_folder: Path,
    fails: Callable[[int | None], None],
    whole: Callable[..., bytes],
) -> None:
    calibrating = ("--calibrate-on", damaged_folder)
    expected = whole(*calibrating)
    fails(5)  # two of the calibration, then one part
    assert "10 of 40" in run("score", digits_npz, *DIGITS, "--out", "rows.csv", *calibrating).stderr
    fails(7)  # none to calibrate again
    found = run("score", digits_npz, *DIGITS, "--out", "rows.csv", *calibrating, "--resume", "--json", "out.json")
    assert found.exit_code == 3
    assert f"unreadable: {damaged_folder}: a/broken.png" in found.stderr
    assert Path("rows.csv").read_bytes() == expected
    assert json.loads(Path("out.json").read_text())["calibration"]["images"] == 6


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        (("--batch-size", "2"), "--batch-size is 2, and was 5"),
        (("--method", "gaia-a"), '--method is ["gaia-a"], and was ["gaia-z"]'),
        (("--layers", "layer3"), '--layers is {"gaia-z": ["layer3"]}, and was not given'),
        (("--threshold", "3"), '--threshold is {"gaia-z": 3.0}, and was not given'),
        (("--mean", "0,0,0"), "--preset is "),
        (("--engine", "reference"), '--engine is "reference", and was "auto"'),
    ],
    ids=str,
)
def test_other_options_are_refused(
    run: Callable[..., Result],
    digits_npz: Path,
    fails: Callable[[int | None], None],
    options: tuple[str, ...],
    difference: str,
) -> None:
    fails(4)
    run("score", digits_npz, *DIGITS, "--out", "rows.csv")
    before = parts_in(PARTS)
    found = run("score", digits_npz, *DIGITS, *options, "--out", "rows.csv", "--resume")
    assert found.exit_code == 1
    assert f"holds the rows of another run: {difference}" in found.stderr
    assert "leave --resume out" in found.stderr
    assert parts_in(PARTS) == before


def test_other_images_models_and_versions_are_refused(
    run: Callable[..., Result], digits_npz: Path, digits_folder: Path, fails: Callable[[int | None], None]
) -> None:
    fails(4)
    own = ("--preset", "digits", "--batch-size", "5", "--out", "rows.csv")
    Path("two_networks.py").write_text(
        "from gaia_fast.models import digits_resnet\n\n\ndef make():\n    return digits_resnet(pretrained=True)\n\n\n"
        "def other():\n    model = make()\n    model.linear.bias.data += 1\n    return model\n"
    )
    run("score", digits_npz, "--model", "two_networks:make", *own)

    def refused(*arguments: object) -> str:
        found = run("score", *arguments, *own, "--resume")
        assert found.exit_code == 1
        return found.stderr.splitlines()[-1].split("another run: ")[1]

    assert refused(digits_npz, "--model", "two_networks:other").startswith(
        "the model is another one: tensor 'linear.bias' is float32 (10,) "
    )
    assert refused(digits_folder, "--model", "two_networks:make").startswith("there are 6 images, and were 40")
    pictures = np.load(digits_npz)["x"]
    np.savez(digits_npz, x=255 - pictures)
    assert refused(digits_npz, "--model", "two_networks:make").startswith("IMAGES changed")
    np.savez(digits_npz, x=pictures)
    manifest = PARTS / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"torch": "', '"torch": "1'))
    assert refused(digits_npz, "--model", "two_networks:make").startswith("torch is ")
    manifest.write_text("{")
    found = run("score", digits_npz, "--model", "two_networks:make", *own, "--resume")
    assert "manifest.json cannot be read" in found.stderr


def test_a_damaged_part_is_named(
    run: Callable[..., Result], digits_npz: Path, fails: Callable[[int | None], None]
) -> None:
    fails(4)
    run("score", digits_npz, *DIGITS, "--out", "rows.csv")
    part = PARTS / "000000000-000000010.json"
    rows = json.loads(part.read_text())
    for damaged in ("{", json.dumps({**rows, "rows": rows["rows"][1:]})):
        part.write_text(damaged)
        fails(None)
        found = run("score", digits_npz, *DIGITS, "--out", "rows.csv", "--resume")
        assert found.exit_code == 1
        assert part.name in found.stderr.splitlines()[-1]
        assert not Path("rows.csv").exists()
    part.unlink()
    assert run("score", digits_npz, *DIGITS, "--out", "rows.csv", "--resume").exit_code == 0


def test_a_folder_of_somebody_elses_is_left_alone(run: Callable[..., Result], digits_npz: Path) -> None:
    PARTS.mkdir()
    (PARTS / "thesis.tex").write_text("years")
    found = run("score", digits_npz, *DIGITS, "--out", "rows.csv")
    assert found.exit_code == 1
    assert "holds no parts of a table; move it away" in found.stderr
    assert (PARTS / "thesis.tex").read_text() == "years"


def test_wrong_usage_of_resume(run: Callable[..., Result], digits_npz: Path) -> None:
    found = run("score", digits_npz, *DIGITS, "--resume")
    assert (found.exit_code, "it needs --out" in found.stderr) == (2, True)
    os.mkfifo("pipe.csv")
    found = run("score", digits_npz, *DIGITS, "--resume", "--out", "pipe.csv")
    assert (found.exit_code, "is a pipe or a device" in found.stderr) == (1, True)


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Ten chunks of digits, one of them short, and a network that takes a second and more for them."""
    pictures = np.repeat(held_out_pictures()[0][: 10 * CHUNK - 3, ..., None], 3, axis=3)
    np.savez(tmp_path / "many.npz", x=pictures)
    (tmp_path / "slow.py").write_text(SLOW)
    return tmp_path / "many.npz"


SLOWLY = ("--model", "slow:make", "--preset", "digits", "--batch-size", CHUNK // 2, "--engine", "hooks")


@pytest.mark.parametrize(
    ("ended_by", "code"),
    [(signal.SIGINT, 1), (signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_a_process_that_is_ended(
    run: Callable[..., Result],
    many: Path,
    ended_by: signal.Signals,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = many.parent
    parts = folder / "rows.csv.partial"
    monkeypatch.setattr("gaia_fast.batch_scoring.chunks.IMAGES_IN_A_CHUNK", CHUNK)
    asked = ("--arch", "digits_resnet", *SLOWLY[2:])
    assert run("score", many, *asked, "--out", folder / "whole.csv").exit_code == 0
    process = start("score", many, *SLOWLY, "--out", "rows.csv", cwd=folder)
    wait_for_parts(parts, 2, process)
    process.send_signal(ended_by)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    done = parts_in(parts)
    assert 2 <= len(done) < 10
    assert not (folder / "rows.csv").exists()
    if ended_by != signal.SIGKILL:
        assert f"the rows of {len(done) * CHUNK} of 157 images are safe in {parts}; --resume goes on" in said
    times = {name: (parts / name).stat().st_mtime_ns for name in done}

    process = start("score", many, *SLOWLY, "--out", "rows.csv", "--resume", cwd=folder)
    wait_for_parts(parts, len(done) + 1, process)
    assert {name: (parts / name).stat().st_mtime_ns for name in done} == times  # none is scored again
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert f"resuming: the rows of {len(done) * CHUNK} of 157 images" in said
    assert (folder / "rows.csv").read_bytes() == (folder / "whole.csv").read_bytes()
    with open(folder / "rows.csv") as file:
        assert [row["image"] for row in csv.DictReader(file)] == [str(index) for index in range(157)]
    assert not parts.exists()


def test_two_runs_at_once_into_one_file(run: Callable[..., Result], digits_npz: Path) -> None:
    PARTS.mkdir()
    with files.held(PARTS / "lock", "held already"):
        for options in ((), ("--resume",)):
            found = run("score", digits_npz, *DIGITS, "--out", "rows.csv", *options)
            assert found.exit_code == 1
            assert "Error: another run is writing rows.csv: wait for its end" in found.stderr
    assert run("score", digits_npz, *DIGITS, "--out", "rows.csv").exit_code == 0
