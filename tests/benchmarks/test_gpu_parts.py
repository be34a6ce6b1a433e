"""benchmarks/gpu/run.sh and parts.py: what each part may take; one that fails is named, and the rest goes on."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gpu import parts
from gpu.parts import EVERYTHING, LIMIT, RESERVE, SANITIZE, Part, Session, allowance

FIELDS = ("python", "here", "root", "source", "package", "out", "go", "seconds", "processes", "workers")
RUN = Path(parts.__file__).with_name("run.sh")


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.setattr(parts, "ROOT", tmp_path / "root")
    monkeypatch.setattr(parts, "LEAST", 1.0)
    (tmp_path / "out").mkdir()
    return Session(tmp_path / "out", {"source": "."}, limit=60.0)


def kept(session: Session) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((session.out / "results.json").read_text())
    return found


def does(code: str) -> list[str]:
    """The command of a part: Python, with the paths `out` and `go`."""
    return [
        "{python}",
        "-c",
        f"import sys; out, go = sys.argv[1:]\n{code}".replace("{", "{{").replace("}", "}}"),
        "{out}",
        "{go}",
    ]


def writes(said: str, more: str = "pass") -> list[str]:
    """A part that has measured something, and then does more."""
    return does(f"open(out, 'w').write({said!r})\n{more}")


def test_the_parts_fit_into_ten_minutes() -> None:
    assert LIMIT <= 585
    assert sum(part.limit for part in EVERYTHING) + RESERVE <= LIMIT
    assert [part.name for part in EVERYTHING if part.needed] == ["build"]
    assert EVERYTHING[0].limit + EVERYTHING[1].limit <= 190, "the smoke test is what comes first"
    assert EVERYTHING[1].name == "smoke"


def test_every_part_is_begun_as_late_as_its_time_allows() -> None:
    """Whatever the parts before a part take of theirs, it has its own; what they leave is its, too."""
    for index, part in enumerate(EVERYTHING):
        spent = 0.0
        for before in range(index):
            spent += allowance(EVERYTHING, before, spent)  # as long as it could be
        assert allowance(EVERYTHING, index, spent) == pytest.approx(part.limit)
        assert allowance(EVERYTHING, index, 0.0) >= part.limit
    assert allowance(EVERYTHING, len(EVERYTHING) - 1, 0.0) == LIMIT - RESERVE


def test_what_is_begun_early_waits_for_its_turn() -> None:
    names = [part.name for part in EVERYTHING]
    early = [part for part in EVERYTHING if part.begun_at]
    assert [part.name for part in early] == ["engines"]
    for part in early:
        assert names.index(part.begun_at) < names.index(part.name)
        assert "{go}" in part.command


def test_every_part_runs_alone() -> None:
    assert set(parts.COMMANDS) == {part.name for part in EVERYTHING[1:]} | {"everything", "sanitize"}
    assert parts.COMMANDS["sanitize"] is SANITIZE
    for part in (*EVERYTHING, *SANITIZE):
        for word in part.command:
            word.format_map(dict.fromkeys(FIELDS, ""))
        scripts = [word.removeprefix("{here}/") for word in part.command if word.startswith("{here}")]
        assert all((RUN.parent / each).is_file() for each in scripts)
        paths = [word.removeprefix("{root}/") for word in part.command if word.startswith("{root}/")]
        assert all((RUN.parents[2] / each).exists() for each in paths)


def test_a_part_that_fails_is_named_and_the_rest_goes_on(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    session.run(
        [
            Part("first", 1, writes('{"device": "NVIDIA H200", "goals": [1]}')),
            Part("second", 1, writes('{"rows": [2]}', "print('boom'); raise SystemExit(3)")),
            Part("third", 1, ["no-such-program"]),
            Part("fourth", 1, writes('{"goals": [4]}')),
        ]
    )
    assert session.failed == {"second": "exit status 3", "third": "no-such-program is not on the path"}
    found = kept(session)
    assert {*found["parts"]} == {"first", "second", "fourth"}, "what was measured before it failed is kept"
    assert found["goals"] == [1, 4]
    assert found["failed"] == session.failed
    beside = parts.ROOT / "benchmarks/results/nvidia-h200/results.json"
    assert json.loads(beside.read_text()) == found
    assert "boom" in session.log.read_text()
    session._results.clear()  # what the parts here call goals are none
    assert session.finish() == 1
    assert "FAILED: second: exit status 3; third:" in capsys.readouterr().out
    assert not session.work.exists()


@pytest.mark.parametrize("inherited", ["/somewhere/else:/and/there", ""])
def test_where_modules_are_found_is_inherited(
    inherited: str, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", inherited)
    says = does("import json, os; json.dump({'path': os.environ['PYTHONPATH']}, open(out, 'w'))")
    session.run([Part("first", 1, says)])
    own = f"{session.values['package']}:{RUN.parents[1]}"
    assert kept(session)["parts"]["first"]["path"] == (f"{own}:{inherited}" if inherited else own)


def test_figures_are_written_after_each_part(session: Session) -> None:
    look = does(f"print(open({str(session.out / 'results.json')!r}).read())")
    session.run([Part("first", 1, writes('{"rows": [1]}')), Part("second", 1, look, lines=100)])
    assert '"rows"' in session.log.read_text()
    assert session.failed == {}


def test_a_part_that_takes_too_long_ends_with_all_that_it_started(session: Session, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    slow = does(
        "import subprocess, time\n"
        f"open({str(pid)!r}, 'w').write(str(subprocess.Popen(['sleep', '300']).pid))\ntime.sleep(300)"
    )
    session.limit = RESERVE + session.spent() + 22
    session.run([Part("slow", 1, slow), Part("next", 20, writes('{"rows": [1]}'))])
    assert session.failed["slow"].startswith("ended after")
    assert "next" in kept(session)["parts"]
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and _is_running(int(pid.read_text())):
        time.sleep(0.05)
    assert not _is_running(int(pid.read_text()))


def _is_running(process: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_a_part_for_which_no_time_is_left_is_named(session: Session) -> None:
    session.limit = RESERVE
    session.run([Part("late", 5, writes("{}"))])
    assert session.failed["late"].startswith("left out")
    session.failed.clear()
    session.run_where_time_is_left([Part("more", 5, writes("{}"))])
    assert session.failed == {}
    assert "more left out" in session.log.read_text()


def test_a_row_is_a_line() -> None:
    row = {"op": "frobenius", "shape": [1, 2], "microseconds": 2.6000000001, "bytes": 123456789, "nothing": None}
    record = {
        "failed": {},
        "goals": [],
        "seconds": {"build": 31.25},
        "parts": {"kernels": {"rows": [row, row], "l2": 7}},
    }
    text = parts.written(record)
    assert json.loads(text) == {**record, "parts": {"kernels": {"rows": [row | {"microseconds": 2.6}] * 2, "l2": 7}}}
    assert sum("frobenius" in line and "nothing" in line for line in text.splitlines()) == 2


def test_nothing_is_run_without_what_it_needs(session: Session) -> None:
    session.run([Part("build", 1, does("raise SystemExit(1)"), needed=True), Part("next", 1, writes("{}"))])
    assert session.failed == {"build": "exit status 1", "next": "not without build"}


def test_figures_that_are_no_json_are_named(session: Session) -> None:
    session.run([Part("first", 1, writes('{"rows": [')), Part("second", 1, writes('{"rows": [1]}'))])
    assert "no JSON" in session.failed["first"]
    assert {*kept(session)["parts"]} == {"second"}


def test_a_part_is_begun_beside_another_and_goes_on_when_it_is_its_turn(session: Session) -> None:
    begun, ended = str(session.work / "begun"), str(session.work / "ended")
    early = does(
        "import os, time, json\n"
        f"open({begun!r}, 'w')\n"
        "while not (os.path.exists(go) and open(go).read()): time.sleep(0.01)\n"
        f"assert os.path.exists({ended!r})\n"
        "json.dump({'seconds': float(open(go).read())}, open(out, 'w'))"
    )
    beside = does(f"import os, time\nwhile not os.path.exists({begun!r}): time.sleep(0.01)\nopen({ended!r}, 'w')")
    session.run(
        [Part("beside", 1, beside), Part("early", 20, early, begun_at="beside"), Part("last", 10, writes("{}"))]
    )
    assert session.failed == {}
    found = kept(session)["parts"]["early"]
    assert 10 <= found["seconds"] <= 60 - RESERVE - 10 - 5


def run_sh(tmp_path: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The script, with a GPU as far as it asks for one, and a wheel that is not there."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nif [ "$1" = -c ]; then echo 90; else exec {sys.executable} "$@"; fi\n')
    python.chmod(0o755)
    more = {"PYTHON": str(python), "OUT": str(tmp_path / "out"), "WHEEL": str(tmp_path / "none.whl"), **environment}
    return subprocess.run([str(RUN), *arguments], env={**os.environ, **more}, capture_output=True, text=True)


def test_a_build_that_fails_is_named_by_the_script(tmp_path: Path) -> None:
    done = run_sh(tmp_path, "kernels", COMMIT="abc")
    assert done.returncode == 1
    assert "FAILED: build: exit status 1; kernels: not without build" in done.stdout, done.stdout + done.stderr
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert found["commit"] == "abc"
    assert found["failed"] == {"build": "exit status 1", "kernels": "not without build"}
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == ["log.txt", "results.json"]


def test_a_part_that_is_not_there_is_refused(tmp_path: Path) -> None:
    done = run_sh(tmp_path, "kernel")
    assert done.returncode == 2
    assert "no such part: kernel" in done.stderr


def test_the_script_is_well_formed() -> None:
    assert os.access(RUN, os.X_OK)
    assert subprocess.run(["bash", "-n", RUN], capture_output=True).returncode == 0


def test_what_was_run_is_kept_when_tests_are_cut_short(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(
        "import os\ndef test_a(): pass\ndef test_b(): assert 0, 'here'\ndef test_c(): os._exit(1)\ndef test_d(): pass\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "gpu.at_once", "-p", "no:cacheprovider", "--rootdir", "."]
    command += ["-c", "/dev/null", "--tally", "tally.json", "test_some.py"]
    path = f"{RUN.parents[1]}"
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    found = json.loads((tmp_path / "tally.json").read_text())
    assert found == {"state": "still running", "passed": 1, "failed": 1, "failures": ["test_some.py::test_b"]}
    assert "FAILED test_some.py::test_b" in done.stdout
