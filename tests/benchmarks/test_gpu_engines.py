"""benchmarks/gpu/engines.py and its workers without a GPU: rows, the talk between processes, goals, what is named."""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import astuple
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from gaia_fast.compiler.runtimes import FixedSizes
from gaia_fast.compiler.runtimes.recorded import Recorded

from gpu import engine_worker, engines, tensorrt_plain
from gpu.engine_worker import EAGER, GAIA_A, GAIA_Z, OWN, PLAIN, Case, Row, Worker, answer, makers
from gpu.engines import Process, goals, groups, run, table, time_case, wait_for
from played_gpu import PlayedGpu

SMALL = Case("resnet18", "float32", 2, 8)


@pytest.mark.parametrize("group", [EAGER, PLAIN, GAIA_Z, GAIA_A, f"{GAIA_Z}{OWN}, torch", f"{GAIA_A}{OWN}, torch"])
def test_every_row_is_made(group: str) -> None:
    """On the CPU, where nothing is recorded."""
    worker = Worker(makers(SMALL, group, "cpu", ["eager"]), lambda: 1.0)
    expected = {
        EAGER: ["plain, eager", "GAIA-Z, authors' way", "GAIA-A, authors' way", "GAIA-Z, hooks", "GAIA-A, hooks"],
        PLAIN: ["plain, eager"],
        GAIA_Z: ["GAIA-Z, eager"],
        GAIA_A: ["GAIA-A, eager"],
        f"{GAIA_Z}{OWN}, torch": ["GAIA-Z, own kernels, torch"],
        f"{GAIA_A}{OWN}, torch": ["GAIA-A, own kernels, torch"],
    }
    assert worker.failed == {}
    assert list(worker.rows) == list(worker.seconds) == expected[group]
    assert worker.each(lambda row: row.replay) == dict.fromkeys(expected[group])


def test_what_is_made_on_a_gpu() -> None:
    """By name; what fails there is named when it is made."""
    case = engines.CASES[0]
    assert str(case) == "resnet34, bfloat16, 1 x 32x32"
    plain = makers(Case(*astuple(SMALL)), PLAIN, "cpu", engine_worker.RUNTIMES)
    assert list(plain) == ["plain, inductor", "plain, cudagraph"]
    assert {(each.images, each.dtype) for each in engines.CASES if each.network == "resnet34"} == {
        (images, dtype) for images in (1, 128) for dtype in ("bfloat16", "float32")
    }
    assert [str(each) for each in engines.CASES if each.network == "resnet50"] == ["resnet50, bfloat16, 32 x 224x224"]
    assert groups(case)[:4] == [PLAIN, GAIA_Z, GAIA_A, EAGER]
    assert groups(case)[4:] == [
        f"{each}{OWN}, {backend}" for each in ("GAIA-Z", "GAIA-A") for backend in ("cuda", "triton")
    ]
    assert groups(engines.CASES[-1]) == [PLAIN, GAIA_Z, GAIA_A, EAGER]


def test_a_recorded_graph_is_replayed_and_the_call_timed_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = PlayedGpu(monkeypatch, milliseconds_a_replay=0.25)
    asked: list[int] = []

    def make(images: int) -> Recorded:
        asked.append(images)
        recorded = Recorded.__new__(Recorded)  # as one that was recorded
        recorded._graph = torch.cuda.CUDAGraph()
        return recorded

    calls: list[int] = []
    row = Row.of_runner(FixedSizes(make), torch.zeros(3, 1), lambda: calls.append(1))
    found = row.measure()
    assert asked == [3]
    assert found["graph_microseconds"] == pytest.approx(250)
    assert row.times == 16  # four milliseconds
    assert found["call_microseconds"] is not None
    assert len(calls) > 2
    assert gpu.clock == pytest.approx(0.25 * (1 + 1 + 16))
    assert Row.of_runner(lambda x, guard=None: (x,), torch.zeros(1)).replay is None
    with FakeTensorMode():
        on_a_gpu = torch.empty(1, device="cuda")
    with pytest.raises(TypeError, match="no graph to time"):  # never another figure under its name
        Row.of_runner(lambda x, guard=None: (x,), on_a_gpu)


class Failing:
    """Rows of which some cannot be made, or fail later."""

    def __init__(self) -> None:
        self.calls = 0

    def makers(self) -> engine_worker.Makers:
        return {"made": lambda: Row(lambda: None), "refused": self.refuse, "later": lambda: Row(self.fail_later)}

    def refuse(self) -> Row:
        raise RuntimeError("out of memory\nmore")

    def fail_later(self) -> None:
        self.calls += 1
        if self.calls > 1:
            raise ValueError("misaligned address")


def test_a_row_that_fails_is_named_and_the_others_are_timed(capsys: pytest.CaptureFixture[str]) -> None:
    worker = Worker(Failing().makers(), lambda: 1.0)
    answers = StringIO()
    answer(worker, ["round\n", "launches\n", "round\n"], answers)
    made, *found = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert list(made["seconds"]) == ["made", "later"]
    assert made["failed"]["refused"] == "RuntimeError: out of memory"
    assert [list(each) for each in found] == [["made"]] * 3
    assert worker.failed["later"] == "ValueError: misaligned address"
    assert "cannot run: refused" in capsys.readouterr().err


def test_rows_for_which_there_is_no_time_are_named() -> None:
    left = iter([1.0, -1.0, -1.0])
    worker = Worker(Failing().makers(), lambda: next(left))
    assert worker.failed == dict.fromkeys(["refused", "later"], "left out for want of time")


def test_a_worker_answers_from_its_own_process() -> None:
    process = Process(SMALL, PLAIN, ["--device", "cpu", "--runtimes", "eager", "--seconds", "100"])
    try:
        process.made = process.answer(120)
        assert process.made is not None
        assert list(process.made["seconds"]) == ["plain, eager"]
        rows, failed = time_case([process], 0.2, 10.0)
        assert failed == []
        (row,) = rows
        assert (row["case"], row["group"], row["what"]) == (str(SMALL), PLAIN, "plain, eager")
        assert row["call_microseconds"] > 0
        assert row["graph_microseconds"] is None
        assert row["prepare_seconds"] > 0
    finally:
        process.end()
    assert process.has_ended()
    assert process.ask("round", 1.0) is None


class Played(Process):
    """A worker that is played; of many rounds one is far off."""

    def __init__(self, case: Case, group: str, made: dict[str, Any] | None, silent_from: int = 1000) -> None:
        self.case, self.group, self.name, self.made = case, group, f"{case}, {group}", made
        self.asked: list[str] = []
        self.silent_from = silent_from

    def ask(self, what: str, seconds: float) -> dict[str, Any] | None:
        self.asked.append(what)
        if len(self.asked) > self.silent_from:
            return None
        assert self.made is not None
        if what == "launches":
            return dict.fromkeys(self.made["seconds"], 71)
        spent = 900.0 if len(self.asked) == 1 else 100.0 + len(self.asked) % 2
        return {name: {"graph_microseconds": spent, "call_microseconds": 2 * spent} for name in self.made["seconds"]}

    def is_made(self) -> bool:
        return self.made is not None

    def has_ended(self) -> bool:
        return True

    def end(self) -> None: ...


def made(*names: str, **failed: str) -> dict[str, Any]:
    return {"seconds": dict.fromkeys(names, 3.0), "failed": failed}


def test_a_case_is_timed_in_turns_and_one_that_falls_silent_is_named() -> None:
    one, other = Played(SMALL, PLAIN, made("a", "b")), Played(SMALL, GAIA_Z, made("c"), silent_from=3)
    rows, failed = time_case([one, other], 60.0, 1.0)
    assert one.asked == ["round"] * engines.MOST_ROUNDS + ["launches"]
    assert failed == [f"says nothing, asked for 'round': {other.name}"]
    a, b, c = rows
    assert (a["graph_microseconds"], a["call_microseconds"]) == (100.5, 201)  # medians: the first is far off
    assert (a["launches"], a["rounds"], a["prepare_seconds"]) == (71, engines.MOST_ROUNDS, 3.0)
    assert (c["rounds"], c["launches"]) == (3, None)
    assert b["what"] == "b"


def test_cases_that_are_not_made_are_named_and_figures_kept_after_each() -> None:
    later = Case("resnet18", "float32", 4, 8)
    kept: list[tuple[int, list[str]]] = []
    processes: list[Process] = [Played(SMALL, PLAIN, None), Played(SMALL, GAIA_Z, made("c", d="out of memory"))]
    processes += [Played(later, PLAIN, made("a"))]
    run(processes, 10.0, lambda rows, failed: kept.append((len(rows), list(failed))))
    assert [count for count, _ in kept] == [1, 2]
    assert kept[0][1] == [f"not made in time, or failed: {SMALL}, plain", f"{SMALL}: d: out of memory"]


def test_timing_begins_when_it_is_told_to(tmp_path: Path) -> None:
    go = tmp_path / "go"
    assert wait_for(None, 7.0) == pytest.approx(7.0, abs=0.5)
    begin = time.monotonic()
    assert wait_for(go, 0.3, pause=0.01) < 0.1
    assert time.monotonic() - begin >= 0.3
    go.write_text("42.5")
    assert wait_for(go, 100.0) == 42.5


def row(case: str, what: str, graph: float | None, call: float) -> dict[str, Any]:
    return {"case": case, "group": "", "what": what, "launches": 3, "prepare_seconds": 1.0} | {
        "graph_microseconds": graph,
        "call_microseconds": call,
    }


def rows_of(case: str, z: float, a: float, authors: float, tensorrt: float | None = None) -> Iterator[dict[str, Any]]:
    yield row(case, "plain, inductor", 100.0, 140.0)
    yield row(case, "GAIA-Z, inductor", z, z + 100)
    yield row(case, "GAIA-Z, cudagraph", 2 * z, 2 * z + 100)
    yield row(case, "GAIA-A, inductor", a, a + 100)
    yield row(case, "GAIA-A, authors' way", None, authors)
    if tensorrt is not None:
        yield row(case, "plain, TensorRT", 90.0, tensorrt)


def test_the_goals_and_what_they_divide_by() -> None:
    one, many = "resnet34, bfloat16, 1 x 32x32", "resnet34, float32, 128 x 32x32"
    rows = [*rows_of(one, 104.0, 150.0, 5000.0, 136.0), *rows_of(many, 104.0, 150.0, 1400.0)]
    rows += rows_of("resnet50, bfloat16, 32 x 224x224", 500.0, 1.0, 1.0)  # which no goal is for
    found = {each["goal"]: (each["measured"], each["limit"], sorted(each["missed"])) for each in goals(rows)}
    over = "GAIA-Z's graph over the same without a score"
    assert found[f"{over}, inductor, ResNet34, B = 1"] == (pytest.approx(1.04), 1.05, [])
    assert found[f"{over}, inductor, ResNet34, B = 128"] == (pytest.approx(1.04), 1.03, [many])
    assert found[f"{over}, cudagraph, ResNet34, B = 1"][0] is None  # never another runtime's
    assert found["ResNet34, B = 1, bfloat16: microseconds of score"] == (204.0, 250.0, [])
    assert found["the same over TensorRT's forward pass"] == (pytest.approx(1.5), 1.5, [])
    times = "GAIA-A, blocks 3 and 4: times faster than the authors' way"
    assert found[f"{times}, B = 1"] == (pytest.approx(20.0), 20.0, [])
    assert found[f"{times}, B = 128"] == (pytest.approx(5.6), 6.0, [many])
    assert len(found) == 8
    lines = table(rows).splitlines()
    assert next(line for line in lines if "GAIA-Z, inductor" in line).split()[2:] == [
        "3",
        "104.0",
        "1.04x",
        "204.0",
        "1.0",
        "s",
    ]
    assert next(line for line in lines if "GAIA-Z, cudagraph" in line).split()[4] == "-"


def test_without_tensorrt_its_row_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    model, x = SMALL.build("cpu")
    worker = Worker({"plain, TensorRT": lambda: Row.of_runner(tensorrt_plain.tensorrt_plain(model, x), x)}, lambda: 1.0)
    assert "neither torch_tensorrt nor tensorrt" in worker.failed["plain, TensorRT"]


def test_the_table_is_written_as_json(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        engines, "Process", lambda case, group, options: Played(case, group, made(f"{group}, inductor"))
    )
    monkeypatch.setattr(
        sys, "argv", ["engines.py", "--device", "cpu", "--only", "1 x", "--out", str(tmp_path / "o.json")]
    )
    assert engines.main() == 0
    found = json.loads((tmp_path / "o.json").read_text())
    assert {each["case"] for each in found["rows"]} == {str(case) for case in engines.CASES if case.images == 1}
    assert found["goals"][0]["measured"] == 1.0
    assert found["device"] == "cpu"


@pytest.mark.parametrize(("why", "status"), [("ModuleNotFoundError: no tensorrt", 0), ("RuntimeError: boom", 1)])
def test_a_row_that_failed_is_told_by_the_exit_status(why: str, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "Process", lambda case, group, options: Played(case, group, made("a", b=why)))
    monkeypatch.setattr(sys, "argv", ["engines.py", "--device", "cpu", "--only", "float32, 1 x"])
    assert engines.main() == status
