"""benchmarks/gpu/kernels.py and what it stands on, without a GPU: how calls are recorded, what is made of figures."""

import json
import weakref
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gaia_fast import GaiaZ, ops

from fake_cuda import FakeCuda
from gpu import calls, counters, kernels, launch, smoke, warm
from gpu.goals import goal, lines_of
from gpu.graph_timing import FEW_CALLS, HOT_CALLS, cold, hot, maps_for_cold, microseconds_by_replay

L2 = 60 * 2**20


@pytest.fixture
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """The calls are made on the CPU, in the backends that are there, and a replay takes a millisecond."""
    monkeypatch.setattr(calls, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)  # is put back
    for module in (calls, kernels):
        monkeypatch.setattr(module, "BACKENDS", ("torch", "cpu"))
    return FakeCuda(monkeypatch, milliseconds_a_replay=1.0)


class Result:
    """What a kernel writes."""


def test_a_call_in_the_cache_is_recorded_many_times(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeCuda(monkeypatch)
    kernel = gpu.kernel(0.0042)
    assert hot(kernel, moved=2**20) == pytest.approx(4.2)
    (graph,) = gpu.graphs
    assert graph.recorded == [kernel] * HOT_CALLS
    assert hot(kernel, moved=10**9) == pytest.approx(4.2)
    assert len(gpu.graphs[1].recorded) == FEW_CALLS


def test_calls_out_of_the_cache_go_through_their_maps_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeCuda(monkeypatch)
    maps = [gpu.kernel(each) for each in (0.001, 0.002)]
    assert cold(maps) == pytest.approx(1.5)
    assert gpu.graphs[0].recorded == [*maps, *maps]


def test_results_of_calls_out_of_the_cache_are_kept_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each call would write where the one before has written, which is in the cache."""
    gpu = FakeCuda(monkeypatch)
    made: list[weakref.ref[Result]] = []
    alive: list[int] = []

    def result() -> Result:
        alive.append(sum(each() is not None for each in made))
        found = Result()
        made.append(weakref.ref(found))
        return found

    cold([gpu.kernel(0.001, result) for _ in range(8)])
    assert alive[8:16] == list(range(8))  # while they are recorded, after all were run once
    del alive[:], made[:]
    hot(gpu.kernel(0.001, result), moved=1)
    assert max(alive) == 0


@pytest.mark.parametrize(
    ("moved", "expected"), [(2 * 10**9, 2), (L2, 4), (L2 // 8, 32), (L2 // 64 + 1, 256), (L2 // 64 - 1, None)]
)
def test_maps_together_are_several_times_the_cache(moved: int, expected: int | None) -> None:
    assert maps_for_cold(moved, L2) == expected


def test_short_replays_are_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeCuda(monkeypatch)
    replays = 0

    def replay() -> None:
        nonlocal replays
        replays += 1
        gpu.clock += 0.1

    assert microseconds_by_replay(replay, calls=50) == pytest.approx(2.0)
    assert replays == 1 + 1 + 5 * 20  # once to warm up, once to see how long one takes, then two milliseconds each


def test_the_bytes_that_must_move() -> None:
    kind = calls.MapKind((64, 32, 32), torch.bfloat16, "nchw")
    one = 2 * 64 * 32 * 32
    assert calls.KERNELS["channel_moments"].bytes(kind, 3) == 3 * (one + 3 * 4 * 64)
    assert calls.KERNELS["relu_forward_count, residual"].bytes(kind, 1) == 3 * one + 4 * 64
    kernel = calls.KERNELS["relu_backward_moments"]
    assert kernel.bytes(kind, kernel.images(kind, kernels.MOVED)) == pytest.approx(kernels.MOVED, rel=1e-3)


@pytest.mark.parametrize("name", calls.KERNELS)
def test_the_calls_are_those_of_the_engines(name: str, on_the_cpu: FakeCuda) -> None:
    """They run, on what their layout says, and give what the reference gives."""
    kind = calls.MapKind((6, 5, 3), torch.float32, "channels_last")
    smoke.kernel(lambda backend: calls.KERNELS[name].make(kind.make(2), backend), "cpu")
    call = calls.KERNELS[name].make(kind.make(2), "cpu")
    assert isinstance(call, partial)
    assert call.args[0].is_contiguous(memory_format=torch.channels_last)
    given = len([each for each in call.args if each is not None and each.ndim == 4])
    assert given == calls.KERNELS[name].maps - (name != "channel_moments")  # and one is written
    if name == "relu_backward_moments":  # as hooks call it: no mask, a factor, and columns of a wider buffer
        assert call.args[1] is None
        assert call.args[2].shape == (6,)
        assert not call.keywords["out"].is_contiguous()
    if name.startswith("relu_forward_count"):
        assert call.args[1] is None
        assert call.args[2].shape == (6,)  # the shift


def test_resnet34s_layers_are_those_of_its_program() -> None:
    shapes, layers, windows = calls.resnet34_layers()
    assert len(shapes) == 33
    assert [shapes[each][0] for each in layers] == calls.WIDTHS
    assert [1 / (shapes[each][1] * shapes[each][2]) for each in layers] == calls.AREAS
    assert len(windows) == 3 * 32
    assert [each for each, times in Counter(layers).items() if times == 2] == [8, 16, 28]  # each stage's second ReLU


def timer() -> kernels.Timer:
    return kernels.Timer(copy=4000.0, l2_bytes=L2)


def test_a_row_is_held_to_the_copy_and_to_a_launch() -> None:
    row = timer().row("frobenius", "cuda", "B = 1", 4_000_000, 3.6)
    assert row["over_floor"] == pytest.approx(1.0)  # 2.6 us and 1 us for the bytes
    assert row["share_of_copy"] == pytest.approx(1 / 3.6)


def test_rows_of_every_size(on_the_cpu: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "MOVED", 10**6)
    kind = calls.MapKind((8, 4, 4), torch.float32, "nchw")
    one = timer().of_size("channel_moments", "cpu", kind, 1)
    assert one["microseconds"] == pytest.approx(1000 / HOT_CALLS)
    assert one["microseconds_by_python"] > 0
    assert "microseconds_cold" not in one  # of so small maps too many would be needed
    monkeypatch.setattr(kernels, "maps_for_cold", lambda moved, l2: 4)
    many = timer().of_size("relu_forward_count", "cpu", kind, 32)
    assert many["microseconds_cold"] == pytest.approx(1000 / 4)
    assert "microseconds_by_python" not in many
    large = timer().of_two_gigabytes("relu_backward_moments", "torch", kind)
    assert large["size"] == kernels.TWO_GIGABYTES
    assert large["bytes"] == pytest.approx(10**6, rel=1e-2)
    assert timer().of_pytorch("relu_backward_moments, mask", kind, compiled=False)["backend"] == "torch"
    assert timer().of_frobenius(3, "cpu")["size"] == "B = 3"
    assert kernels.table([one, many, large]).count("\n") == 3


def test_count_and_score_is_timed_where_it_is_there(on_the_cpu: FakeCuda) -> None:
    row = timer().of_count_and_score(1, torch.float32, "torch")
    try:
        import gaia_fast.ops.count_and_score  # noqa: F401
    except ImportError:
        assert row is None
    else:
        assert row is not None
        assert row["bytes"] > 4 * 7 * 64 * 32 * 32


def test_what_is_timed_is_all_and_the_most_wanted_first() -> None:
    lists = kernels.work(timer())
    titles = [title for each in lists for title, _ in each]
    assert len(titles) == len(set(titles))
    sizes = len(calls.KINDS) * len(calls.KERNELS) * len(calls.BACKENDS)
    assert sum(", B = " in each and "x" in each for each in titles) == 3 * sizes
    assert sum(kernels.TWO_GIGABYTES in each and each.endswith(calls.BACKENDS) for each in titles) == sizes
    first = next(index for index, each in enumerate(titles) if " float16" in each)
    assert all(" float16" in each for each in titles[first:])
    assert len(kernels.counts()[0]) == 2 * 2 * len(calls.BACKENDS)
    # The norm in plain PyTorch cannot be recorded into a graph.
    assert {each.split(", ")[-1] for each in titles if each.startswith("frobenius")} == set(calls.BACKENDS)


def test_a_row_that_fails_or_has_no_time_is_named_and_the_rest_goes_on() -> None:
    left = iter([1.0, 1.0, 1.0, 0.0])
    written: list[tuple[int, list[str]]] = []

    def fail() -> None:
        raise RuntimeError("misaligned address")

    lists: list[list[kernels.Work]] = [
        [("one", lambda: {"op": "one"}), ("two", fail)],
        [("three", lambda: None), ("four", lambda: {"op": "four"})],
    ]
    rows: list[kernels.Row] = []

    def keep(rows: list[kernels.Row], failed: list[str]) -> None:
        written.append((len(rows), list(failed)))

    assert kernels.measure(kernels.flat(lists), lambda: next(left), keep, (rows, [])) is None
    assert rows == [{"op": "one"}]
    assert written[0] == (1, ["cannot run: two: RuntimeError: misaligned address"])
    assert written[1][1][1:] == ["left out for want of time: four"]


def test_another_process_goes_on_where_memory_cannot_be_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")

    monkeypatch.setattr(torch.cuda, "empty_cache", refuse)
    lists: list[list[kernels.Work]] = [
        [("one", lambda: {"op": "one"}), ("two", lambda: {"op": "two"})],
        [("three", lambda: {"op": "three"})],
    ]
    rows: list[kernels.Row] = []
    failed: list[str] = []
    kept: list[tuple[int, int]] = []

    def keep(rows: list[kernels.Row], failed: list[str]) -> None:
        kept.append((len(rows), len(failed)))

    assert kernels.measure(kernels.flat(lists), lambda: 1.0, keep, (rows, failed)) == 2
    assert kept == [(2, 1)]
    assert failed[0].startswith("cannot run: to free memory after two: RuntimeError: captures_underway")
    assert kernels.measure(kernels.flat(lists)[2:], lambda: 1.0, keep, (rows, failed)) == 1
    assert [row["op"] for row in rows] == ["one", "two", "three"]


def test_another_process_goes_on_where_one_has_lost_the_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lost = False
    tried: list[str] = []

    def fail() -> None:
        nonlocal lost
        lost = True
        raise RuntimeError("an illegal memory access was encountered")

    def name(title: str) -> dict[str, Any]:
        tried.append(title)
        return {"op": title, "backend": "cuda", "size": "B = 1", "launches": 1}

    class Replaced(Exception):
        """The process, by another."""

    def replace(program: str, command: list[str]) -> None:
        nonlocal lost
        lost = False
        monkeypatch.setattr("sys.argv", command[1:])
        raise Replaced

    for attribute, value in {
        "is_lost": lambda: lost,
        "copy_bandwidth": lambda: 4000.0,
        "machine": lambda copy: {"device": "fake", "triton": "", "copy_gigabytes_per_second": copy},
        "work": lambda timer: [[("one", partial(name, "one")), ("two", fail)], [("three", partial(name, "three"))]],
        "counts": lambda: [[("four", fail), ("five", partial(name, "five"))]],
    }.items():
        monkeypatch.setattr(kernels, attribute, value)
    properties = SimpleNamespace(L2_cache_size=L2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr("os.execv", replace)
    monkeypatch.setattr("sys.argv", ["kernels.py", "--out", str(tmp_path / "found.json"), "--seconds", "60"])
    for _ in range(2):
        with pytest.raises(Replaced):
            kernels.main()
    assert kernels.main() == 1
    assert tried == ["one", "three", "five"]
    found = json.loads((tmp_path / "found.json").read_text())
    assert [row["op"] for row in found["rows"]] == ["one", "three", "five"]
    assert [each.split(":")[1] for each in found["failed"]] == [" two", " four"]


def figures(**of: float) -> list[dict[str, Any]]:
    kind = {"shape": [64, 32, 32], "dtype": "float32", "layout": "nchw"}
    return [
        {"op": "channel_moments", "backend": backend, "size": size, **kind, figure: value}
        for name, value in of.items()
        for backend, size, figure in [name.split("__")]
    ]


def test_the_goals() -> None:
    rows = figures(
        triton__big__share_of_copy=0.84, cuda__big__share_of_copy=0.86, triton__B__over_floor=1.4, cuda__B__over_floor=2
    )
    for row in rows:
        row["size"] = {"big": kernels.TWO_GIGABYTES, "B": "B = 1"}[row["size"]]
    rows.append({"op": "frobenius", "backend": "cuda", "size": "B = 1", "launches": 2})
    found = {each["goal"]: each for each in kernels.goals(rows)}
    share = found["channel_moments, 2 GB: share of the copy's bandwidth"]
    assert (share["measured"], share["missed"], share["where"]) == (0.86, {}, "64x32x32 float32 nchw")
    floor = found[f"channel_moments, networks' sizes: times {kernels.LAUNCH} us and the bytes at the copy's bandwidth"]
    assert (floor["measured"], floor["limit"], floor["missed"]) == (1.4, 1.5, {})
    assert found["frobenius: launches"]["missed"] == {"cuda, B = 1": 2}
    assert found["relu_forward_count, 2 GB: share of the copy's bandwidth"]["measured"] is None


def test_the_faster_backend() -> None:
    rows = figures(triton__B__microseconds=3.0, cuda__B__microseconds=2.0, triton__big__microseconds=9.0)
    rows += figures(triton__B__microseconds_by_python=10.0, cuda__B__microseconds_by_python=20.0)
    small, clock = kernels.defaults(rows)
    assert (small["size"], small["faster"], small["triton_over_cuda"]) == (
        "networks' sizes",
        "cuda",
        pytest.approx(1.5),
    )
    assert (clock["size"], clock["faster"]) == ("one image, by the clock", "triton")
    assert "1.50" in kernels.report(rows)


@pytest.mark.parametrize(("sign", "limit", "met", "worst"), [("<=", 1.5, False, 1.6), (">=", 1.0, True, 1.2)])
def test_a_goal_is_held_to_its_worst_case(sign: str, limit: float, met: bool, worst: float) -> None:
    found = goal("a quotient", sign, limit, {"good": 1.2 if sign == "<=" else 1.6, "bad": worst})
    assert (found["measured"], found["where"], not found["missed"]) == (worst, "bad", met)
    (first, *more) = lines_of([found])
    assert first.startswith("met" if met else "missed")
    assert bool(more) != met


def test_a_goal_that_was_not_measured_is_not_met() -> None:
    (line,) = lines_of([goal("a quotient", "<=", 1, {})])
    assert line.startswith("NOT MEASURED")
    (line, *_) = lines_of([goal("a quotient", "<=", 1, {"no number": float("nan")})])
    assert line.startswith("missed")


def smoked(checks: dict[str, Callable[[], None]]) -> dict[str, str]:
    results: dict[str, str] = {}
    assert smoke.run(checks, results)
    return results


def test_the_smoke_test_goes_on_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        monkeypatch.setattr(smoke, "is_lost", lambda: True)
        raise RuntimeError("an illegal memory access was encountered")

    results: dict[str, str] = {}
    checks = {"one": lambda: None, "two": fail, "three": lambda: None}
    assert not smoke.run(checks, results)
    assert list(results) == ["one", "two"]
    assert smoke.run(checks, results)
    assert results["three"] == "passed"


def test_a_wrong_kernel_does_not_pass_the_smoke_test(on_the_cpu: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "BACKENDS", ("cpu",))
    checks = smoke.checks()
    assert sum("another input" in name for name in checks) == 2
    of_kernels = {name: check for name, check in checks.items() if "another input" not in name and "count" not in name}
    assert smoked(of_kernels) == dict.fromkeys(of_kernels, "passed")
    right = ops.channel_moments

    def wrong(*args: Any, backend: str, **more: Any) -> torch.Tensor:
        return right(*args, backend=backend, **more).add_(backend == "cpu")

    monkeypatch.setattr(ops, "channel_moments", wrong)
    failed = [name for name, said in smoked(of_kernels).items() if said != "passed"]
    assert failed == ["channel_moments, cpu"]


def test_a_program_that_keeps_its_first_input_does_not_pass_the_smoke_test(on_the_cpu: FakeCuda) -> None:
    smoke.program(GaiaZ, "eager")

    class Stale(GaiaZ):
        """Scores what it was prepared for, whatever it is given."""

        def prepare(self, example: torch.Tensor, *args: Any, **more: Any) -> Any:
            self.first = example
            return super().prepare(example, *args, **more)

        def score(self, x: torch.Tensor, *, return_matrix: bool = False) -> Any:
            return super().score(self.first if self.engine == "compiled" else x)

    with pytest.raises(AssertionError, match="not close"):
        smoke.program(Stale, "eager")


def test_shares_of_what_is_compiled_are_all_of_it() -> None:
    named = list(calls.compiled_calls())
    assert len(named) == len(calls.KINDS) * len(calls.KERNELS) + 1 + len(calls.DTYPES)
    shares = [warm.share(calls.compiled_calls(), index, 7) for index in range(7)]
    assert sorted(name for each in shares for name, _ in each) == sorted(name for name, _ in named)


def test_a_kernel_that_does_not_compile_is_named() -> None:
    def fail() -> None:
        raise ValueError("no tile of a single element")

    made: list[str] = []
    failed = warm.run([("one", lambda: fail), ("two", lambda: lambda: made.append("two"))])
    assert failed == {"one": "ValueError: no tile of a single element"}
    assert made == ["two"]


SAID = """==PROF== Connected to process 12 (/usr/bin/python3.12)
launching channel_moments:cuda
==PROF== Profiling "reduce_channels" - 0: 0%....50%....100% - 1 pass
launching relu_backward_moments:cuda
FAILED relu_backward_moments:cuda: BackendError: no
not in this version: count_and_score:cuda
launching frobenius:triton
==PROF== Disconnected from process 12
"ID","Process ID","Process Name","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","12","python3.12","reduce_channels","dram__bytes.sum","Mbyte","16.5"
"0","12","python3.12","reduce_channels","gpu__time_duration.sum","us","1,007.25"
"0","12","python3.12","reduce_channels","launch__registers_per_thread","register/thread","48"
"1","12","python3.12","frobenius_kernel","gpu__time_duration.sum","usecond","5"
"1","12","python3.12","frobenius_kernel","sm__warps_active.avg.pct_of_peak_sustained_active","%","61.5"
"""


def test_the_counters_are_read_and_named_by_their_call() -> None:
    first, norm = counters.rows_of(SAID)
    assert first == {
        "kernel": "reduce_channels",
        "call": "channel_moments:cuda",
        "dram_bytes": 16.5e6,
        "nanoseconds": 1007.25e3,
        "registers": 48.0,
    }
    assert (norm["call"], norm["nanoseconds"], norm["achieved_occupancy_percent"]) == ("frobenius:triton", 5000.0, 61.5)
    assert counters.table_of([first, norm]).count("\n") == 2
    assert counters.rows_of("==ERROR== no counters\n") == []


MORE = '"2","12","python3.12","another_kernel","gpu__time_duration.sum","ns","2,100"\n'


@pytest.mark.parametrize("said", [SAID + MORE, SAID.replace("launching frobenius:triton\n", "")])
def test_kernels_that_are_not_one_for_each_call_are_given_to_none(
    said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = counters.rows_of(said)
    assert {row["call"] for row in rows} == {counters.UNKNOWN}
    monkeypatch.setattr("shutil.which", lambda name: "ncu")
    monkeypatch.setattr(counters, "_run", lambda command, seconds: (said, 0))
    monkeypatch.setattr("sys.argv", ["counters.py"])
    assert counters.main() == 1
    assert f"FAILED: not one kernel for each call: of which calls these {len(rows)}" in capsys.readouterr().out
    monkeypatch.setattr(counters, "_run", lambda command, seconds: (SAID, 0))
    assert counters.main() == 0


def test_the_profiler_is_given_names_and_metrics() -> None:
    command = counters.command("ncu", ["frobenius:cuda"])
    assert command[command.index("--kernel-name") + 1].startswith("regex:")
    assert set(command[command.index("--metrics") + 1].split(",")) == set(counters.METRICS)
    assert command[-2:] == [str(Path(launch.__file__)), "frobenius:cuda"]
    assert command[-1] in launch.named()
    assert command[command.index("--clock-control") + 1] == "none"


def test_without_the_profiler_it_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("sys.argv", ["counters.py", "--out", str(tmp_path / "found.json")])
    assert counters.main() == 0
    assert "no ncu" in capsys.readouterr().out
    assert json.loads((tmp_path / "found.json").read_text())["rows"] == []
