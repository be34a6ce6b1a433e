"""benchmarks/gpu/engines.py and its workers without a GPU: rows, the talk between processes, goals, what is named."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import astuple
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from gaia_fast.compiler.runtimes import FixedSizes
from gaia_fast.compiler.runtimes.cudagraph import Recording
from gaia_fast.compiler.runtimes.recorded import Recorded

from fake_cuda import FakeCuda
from gpu import engine_worker, engines, tensorrt_plain
from gpu.engine_worker import EAGER, GAIA_A, GAIA_Z, OWN, PLAIN, Case, Row, Turns, Worker, answer, can_be_made, makers
from gpu.engines import Process, allowed, goals, groups, kept_for, run, table, time_case, wait_for

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
    gpu = FakeCuda(monkeypatch, milliseconds_a_replay=0.25)
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


def test_the_form_that_was_chosen_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch)

    def make(images: int) -> Recording:
        recorded = Recorded.__new__(Recorded)
        recorded._graph = torch.cuda.CUDAGraph()
        return Recording(recorded, "channels last; slower: 3 of 17 convolutions fused")

    row = Row.of_runner(FixedSizes(make), torch.zeros(3, 1), lambda: None)
    assert row.replay is not None
    worker = Worker({"plain, cudagraph": lambda: row, "plain, eager": lambda: Row(lambda: None)}, lambda: 1.0)
    assert worker.made()["forms"] == {"plain, cudagraph": "channels last; slower: 3 of 17 convolutions fused"}
    assert worker.made()["alone"] == {}  # nobody was asked


def test_launches_of_the_graph_and_of_the_call_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(engine_worker, "launches", lambda run: run())
    assert Row(lambda: 74, lambda: 72).launches() == {"graph_launches": 72, "call_launches": 74}
    assert Row(lambda: 74).launches() == {"graph_launches": None, "call_launches": 74}


# Takes the lock, says so, and keeps it until it is killed.
HOLDS = """import sys, time
from pathlib import Path
from gpu.engine_worker import Turns
with Turns(Path(sys.argv[1]), lambda: 1.0).turn() as is_alone:
    print(is_alone(), flush=True)
    time.sleep(100)
"""


def test_turns_are_taken_one_at_a_time_and_end_with_their_process(tmp_path: Path) -> None:
    file = tmp_path / "turns"
    # pytest alone puts benchmarks/ on the path: a process of its own is to find it, too.
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", HOLDS, str(file)]
    with subprocess.Popen(command, env=paths, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "True\n"
            asked, taken = threading.Event(), threading.Event()
            found: list[bool] = []

            def left() -> float:
                asked.set()
                return 1.0

            def wait() -> None:
                with Turns(file, left, pause=0.01).turn() as is_alone:
                    taken.set()
                    found.append(is_alone())

            waiting = threading.Thread(target=wait)
            waiting.start()
            assert asked.wait(60)
            assert not taken.wait(0.2)
            holder.kill()
            assert taken.wait(60)
            waiting.join()
        finally:
            holder.kill()
    assert found == [True]


def test_without_time_to_wait_it_is_said_that_others_were_there(tmp_path: Path) -> None:
    """By whoever goes ahead, and by who has the turn meanwhile; each row that cannot be made lets the others go on."""
    file = tmp_path / "turns"
    with Turns(file, lambda: 1.0).turn() as is_alone:
        assert is_alone()
        with Turns(file, lambda: -1.0).turn() as other_is_alone:
            assert not other_is_alone()
        assert not is_alone()
    failing = Failing()
    of_rows = {"refused, cudagraph": failing.refuse, "made, cudagraph": lambda: Row(lambda: None)}
    assert Worker(of_rows, lambda: 1.0, Turns(tmp_path / "others", lambda: 1.0)).alone == dict.fromkeys(of_rows, True)


def test_turns_are_for_what_chooses_by_time_alone(tmp_path: Path) -> None:
    taken: list[str] = []

    class Seen(Turns):
        def turn(self) -> Any:
            taken.append("turn")
            return super().turn()

    names = ["plain, inductor", "plain, cudagraph", "GAIA-Z, own kernels, cuda", "GAIA-Z, hooks"]
    found = {name: partial(Row, partial(taken.append, name)) for name in names}
    worker = Worker({**found}, lambda: 1.0, Seen(tmp_path / "turns", lambda: 1.0))
    assert taken == [names[0], "turn", *names[1:]]
    assert worker.alone == {"plain, cudagraph": True}


def test_a_network_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    worker = Worker(can_be_made(engines.CASES[-1], PLAIN, "cpu", engine_worker.RUNTIMES), lambda: 1.0)
    assert worker.rows == {}
    assert list(worker.failed) == [PLAIN]
    assert worker.failed[PLAIN].startswith("not installed: ModuleNotFoundError: ")
    assert "torchvision" in worker.failed[PLAIN]


def test_a_worker_answers_from_its_own_process(tmp_path: Path) -> None:
    options = ["--device", "cpu", "--runtimes", "eager", "--seconds", "100", "--turns", str(tmp_path / "turns")]
    process = Process(SMALL, PLAIN, options)
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
        assert (row["graph_launches"], row["call_launches"], row["form"], row["chosen_in_turn"]) == (None,) * 4
    finally:
        process.end()
    assert process.has_ended()
    assert process.ask("round", 1.0) is None


class FakeProcess(Process):
    """A fake worker; of many rounds one is far off."""

    def __init__(self, case: Case, group: str, made: dict[str, Any] | None, silent_from: int = 1000) -> None:
        self.case, self.group, self.name, self.made = case, group, f"{case}, {group}", made
        self.asked: list[str] = []
        self.silent_from = silent_from
        self.waited: list[float] = []

    def tell(self, what: str) -> bool:
        self.asked.append(what)
        return True

    def answer(self, seconds: float) -> dict[str, Any] | None:
        self.waited.append(seconds)
        if len(self.asked) > self.silent_from:
            return None
        assert self.made is not None
        if self.asked[-1] == "launches":
            return {name: {"graph_launches": 71, "call_launches": 73} for name in self.made["seconds"]}
        spent = 900.0 if len(self.asked) == 1 else 100.0 + len(self.asked) % 2
        return {name: {"graph_microseconds": spent, "call_microseconds": 2 * spent} for name in self.made["seconds"]}

    def is_made(self) -> bool:
        return self.made is not None

    def has_ended(self) -> bool:
        return True

    def end(self) -> None: ...


def made(*names: str, **failed: str) -> dict[str, Any]:
    of_a = {"forms": {"a": "channels last"}, "alone": {"a": False}}
    return {"seconds": dict.fromkeys(names, 3.0), "failed": failed, **of_a}


def test_a_case_is_timed_in_turns_and_one_that_falls_silent_is_named() -> None:
    one, other = FakeProcess(SMALL, PLAIN, made("a", "b")), FakeProcess(SMALL, GAIA_Z, made("c"), silent_from=3)
    rows, failed = time_case([one, other], 60.0, 1.0)
    assert one.asked == ["round"] * engines.MOST_ROUNDS + ["launches"]
    assert failed == [f"says nothing, asked for 'round': {other.name}"]
    a, b, c = rows
    assert (a["graph_microseconds"], a["call_microseconds"]) == (100.5, 201)  # medians: the first is far off
    assert (a["graph_launches"], a["call_launches"]) == (71, 73)
    assert (a["rounds"], a["prepare_seconds"]) == (engines.MOST_ROUNDS, 3.0)
    assert (a["form"], a["chosen_in_turn"]) == ("channels last", False)
    assert (c["rounds"], c["graph_launches"], c["call_launches"]) == (3, None, None)
    assert (b["what"], b["form"], b["chosen_in_turn"]) == ("b", None, None)
    assert "chosen beside others" in table(rows).splitlines()[2]
    assert table(rows).count("chosen beside others") == 1


def test_launches_are_counted_by_all_processes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """All are asked before the first is heard, and all have the same deadline."""
    order: list[str] = []
    clock = 0.0

    class Slow(FakeProcess):
        def tell(self, what: str) -> bool:
            order.append(f"ask {self.group}")
            return super().tell(what) and self.group != EAGER  # which has ended

        def answer(self, seconds: float) -> dict[str, Any] | None:
            nonlocal clock
            order.append(f"hear {self.group}")
            if self.asked[-1] == "launches":
                clock += 4
            return super().answer(seconds)

    monkeypatch.setattr(engines, "MOST_ROUNDS", 1)
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    processes = [Slow(SMALL, group, made(group)) for group in (PLAIN, GAIA_Z, GAIA_A)]
    rows, failed = time_case([*processes], 60.0, 15.0)
    assert order[6:] == [f"{does} {each.group}" for does in ("ask", "hear") for each in processes]
    assert [each.waited[-1] for each in processes] == [15.0, 11.0, 7.0]
    assert failed == []
    assert [row["call_launches"] for row in rows] == [73] * 3
    gone = Slow(SMALL, EAGER, made("e"))
    gone.ask = lambda what, seconds: {}  # type: ignore[method-assign]
    assert time_case([gone], 60.0, 15.0)[1] == [f"says nothing, asked for 'launches': {gone.name}"]


def test_the_time_of_cases_is_shared() -> None:
    for seconds in (kept_for(5), 300.0, 60.0, 5.0, 0.0):
        for slow in ({0}, {1}, {4}, {*range(5)}):  # cases that take all the time they may to count
            left = seconds
            for index in range(5):
                timing, counting = allowed(left, 5 - index)
                assert 0 <= timing <= engines.TIMING
                assert 0 <= counting <= engines.MOST_COUNTING
                if seconds >= kept_for(5):
                    assert timing == engines.TIMING
                    assert counting >= (engines.MOST_COUNTING if index <= min(slow) else engines.COUNTING)
                left -= timing + (counting if index in slow else min(counting, engines.COUNTING))
                assert left >= -1e-9


def test_cases_that_are_not_made_are_named_and_figures_kept_after_each() -> None:
    later = Case("resnet18", "float32", 4, 8)
    kept: list[tuple[int, list[str]]] = []
    processes: list[Process] = [
        FakeProcess(SMALL, PLAIN, None),
        FakeProcess(SMALL, GAIA_Z, made("c", d="out of memory")),
    ]
    processes += [FakeProcess(later, PLAIN, made("a"))]
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
    return {"case": case, "group": "", "what": what, "prepare_seconds": 1.0, "chosen_in_turn": None} | {
        "graph_launches": 3,
        "call_launches": 5,
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
        "5",
        "104.0",
        "1.04x",
        "204.0",
        "1.0",
        "s",
    ]
    assert next(line for line in lines if "GAIA-Z, cudagraph" in line).split()[5] == "-"


def test_without_tensorrt_its_row_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    model, x = SMALL.build("cpu")
    worker = Worker({"plain, TensorRT": lambda: Row.of_runner(tensorrt_plain.tensorrt_plain(model, x), x)}, lambda: 1.0)
    why = worker.failed["plain, TensorRT"]
    assert why == "not installed: ModuleNotFoundError: neither torch_tensorrt nor tensorrt is installed"


def test_the_table_is_written_as_json(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        engines, "Process", lambda case, group, options: FakeProcess(case, group, made(f"{group}, inductor"))
    )
    monkeypatch.setattr(
        sys, "argv", ["engines.py", "--device", "cpu", "--only", "1 x", "--out", str(tmp_path / "o.json")]
    )
    assert engines.main() == 0
    found = json.loads((tmp_path / "o.json").read_text())
    assert {each["case"] for each in found["rows"]} == {str(case) for case in engines.CASES if case.images == 1}
    assert found["goals"][0]["measured"] == 1.0
    assert found["device"] == "cpu"


@pytest.mark.parametrize(("why", "status"), [("not installed: no tensorrt", 0), ("RuntimeError: boom", 1)])
def test_a_row_that_failed_is_told_by_the_exit_status(why: str, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "Process", lambda case, group, options: FakeProcess(case, group, made("a", b=why)))
    monkeypatch.setattr(sys, "argv", ["engines.py", "--device", "cpu", "--only", "float32, 1 x"])
    assert engines.main() == status
