"""Times every engine on this GPU beside the plain prediction and the authors' way, and writes one table.

Networks: ResNet34 at 32x32 with 1 and 128 images, in bfloat16 and in float32 as PyTorch has it by default, and
torchvision's ResNet-50 at 224x224 with 32, where it is installed. A row has
- its graph: what was recorded of it, replayed, by events, in microseconds. A score's checks of results and weights are
  in it. Images are copied to where it reads them, and for a score checked, in a launch before it (`copy_and_check`),
  and outputs are copied after it: these are in the call alone;
- its call: what a user waits for, by the clock, in microseconds: `score`, or the network's output;
- the launches of the graph, and those of the whole call, as PyTorch's profiler counts kernels, copies and fillings;
- in which form it was recorded, of those that "cudagraph" times to keep the fastest. Processes take turns at that,
  while other rows are made, and tests may run; where there is no time to wait for one, it is said that others chose
  meanwhile;
- what it took to prepare, in seconds, beside all others; the first of a process with what a process does once.
What scores are compared with is the same graph without the score: the model's own forward pass, folded and run by the
same runtime. "Own kernels" is a program on this package's kernels where PyTorch's compiler otherwise fuses its own.

Making takes most of the time, so each group of rows is made in a process of its own, all at once. They are timed case
by case when all are made: medians, the processes of a case in turns, round after round. What fails is named and left
out. With `--go`, timing begins when there is such a file, and may take as many seconds as it says.
"""

import argparse
import json
import os
import platform
import queue
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import gaia_fast
from gaia_fast.files import write_text

from gpu.engine_worker import BACKENDS, EAGER, GAIA_A, GAIA_Z, NOT_INSTALLED, OWN, PLAIN, RUNTIMES, Case
from gpu.goals import Goal, goal, lines_of

Row = dict[str, Any]

CASES = (
    *(Case("resnet34", dtype, images, 32) for dtype in ("bfloat16", "float32") for images in (1, 128)),
    Case("resnet50", "bfloat16", 32, 224),
)
MOST_ROUNDS = 20
# Seconds to time a case, and for the profilers of its processes to count launches, all at once: what is kept for it,
# and the most, as far as other cases do not need it.
TIMING, COUNTING, MOST_COUNTING = 10.0, 5.0, 15.0
MAKING = 45.0  # what a row may take to make
# The goals: GAIA-Z's graph over the same without a score, by images; `score` with one image, in microseconds, and over
# TensorRT's forward pass; times faster than the authors' way, by images.
OVER_PLAIN = {1: 1.05, 128: 1.03}
SCORE, OVER_TENSORRT = 250.0, 1.5
OVER_AUTHORS = {1: 20.0, 128: 6.0}


def groups(case: Case) -> list[str]:
    """What is made of a case, each in a process of its own."""
    found = [PLAIN, GAIA_Z, GAIA_A, EAGER]
    if case.network != "resnet50" and case.dtype == "bfloat16":
        found += [f"{method}{OWN}, {backend}" for method in (GAIA_Z, GAIA_A) for backend in BACKENDS]
    return found


class Process:
    """A worker in a process of its own: see `engine_worker`."""

    def __init__(self, case: Case, group: str, options: list[str]) -> None:
        self.case, self.group = case, group
        self.name = f"{case}, {group}"
        script = str(Path(__file__).with_name("engine_worker.py"))
        command = [sys.executable, script, "--case", json.dumps(astuple(case)), "--group", group, *options]
        # 28 of them, whatever processors there are: none brings threads or processes of its own.
        own = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **own}
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self.made: dict[str, Any] | None = None

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")  # it has ended

    def answer(self, seconds: float) -> dict[str, Any] | None:
        """The next thing it says; None where it says nothing in time, or no more."""
        try:
            line = self._lines.get(timeout=max(seconds, 0.0))
        except queue.Empty:
            return None
        if not line:
            self._lines.put("")
            return None
        found: dict[str, Any] = json.loads(line)
        return found

    def is_made(self) -> bool:
        if self.made is None:
            self.made = self.answer(0.0)
        return self.made is not None

    def tell(self, what: str) -> bool:
        """Asks, and does not wait for the answer; returns whether it can be asked."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(what + "\n")
            self._process.stdin.flush()
        except OSError:
            return False
        return True

    def ask(self, what: str, seconds: float) -> dict[str, Any] | None:
        return self.answer(seconds) if self.tell(what) else None

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def time_case(processes: list[Process], seconds: float, counting: float) -> tuple[list[Row], list[str]]:
    """Returns the rows of processes that are made, timed in turns; and which fell silent.

    Args:
        processes: those of the case.
        seconds: to time them in.
        counting: seconds after that, for them all to count launches.
    """
    begin = time.monotonic()
    spent: dict[tuple[str, str], list[dict[str, float | None]]] = {}
    failed: list[str] = []
    asked = list(processes)

    def left() -> float:
        return seconds - (time.monotonic() - begin)

    def heard(process: Process, what: str, found: dict[str, Any] | None) -> dict[str, Any]:
        if found is None:
            failed.append(f"says nothing, asked for {what!r}: {process.name}")
            asked.remove(process)
        return found or {}

    for _ in range(MOST_ROUNDS):
        for process in list(asked):
            for name, each in heard(process, "round", process.ask("round", max(left(), 5.0))).items():
                spent.setdefault((process.group, name), []).append(each)
        if left() < 0:
            break
    counts: dict[tuple[str, str], dict[str, int | None]] = {}
    until = time.monotonic() + max(counting, 0.5)
    told = {process.name: process.tell("launches") for process in asked}  # nothing is timed: all at once
    for process in list(asked):
        found = process.answer(until - time.monotonic()) if told[process.name] else None
        counts |= {(process.group, name): each for name, each in heard(process, "launches", found).items()}
    rows: list[Row] = []
    for process in processes:
        assert process.made is not None
        for name, took in process.made["seconds"].items():
            if each := spent.get((process.group, name)):
                row: Row = {"case": str(process.case), "group": process.group, "what": name}
                row |= counts.get((process.group, name), {"graph_launches": None, "call_launches": None})
                for figure in ("graph_microseconds", "call_microseconds"):
                    values = [value for one in each if (value := one[figure]) is not None]
                    row[figure] = statistics.median(values) if values else None
                row |= {"rounds": len(each), "prepare_seconds": took, "form": process.made["forms"].get(name)}
                rows.append(row | {"chosen_in_turn": process.made["alone"].get(name)})
    return rows, failed


def by_case(rows: list[Row], figure: str) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.get(figure) is not None:
            found.setdefault(row["case"], {})[row["what"]] = row[figure]
    return found


def ratios(cases: dict[str, dict[str, float]], above: str, below: str) -> dict[str, float]:
    """Of every case that has both rows, the one over the other."""
    return {case: each[above] / each[below] for case, each in cases.items() if above in each and below in each}


def goals(rows: list[Row]) -> list[Goal]:
    graph, call = by_case(rows, "graph_microseconds"), by_case(rows, "call_microseconds")
    fastest = {
        case: {
            method: min(took)
            for method in (GAIA_Z, GAIA_A)
            if (took := [each[name] for runtime in RUNTIMES if (name := f"{method}, {runtime}") in each])
        }
        for case, each in call.items()
    }
    found = []
    for runtime in RUNTIMES:
        over_plain = ratios(graph, f"{GAIA_Z}, {runtime}", f"plain, {runtime}")
        for images, limit in OVER_PLAIN.items():
            what = f"{GAIA_Z}'s graph over the same without a score, {runtime}, ResNet34, B = {images}"
            found.append(goal(what, "<=", limit, _of(over_plain, "resnet34", images)))
    one = {case: each[GAIA_Z] for case, each in fastest.items() if GAIA_Z in each}
    halves = {case: each for case, each in _of(one, "resnet34", 1).items() if "bfloat16" in case}
    found.append(goal("ResNet34, B = 1, bfloat16: microseconds of score", "<=", SCORE, halves))
    passes = {case: call[case]["plain, TensorRT"] for case in halves if "plain, TensorRT" in call[case]}
    over_tensorrt = {case: halves[case] / each for case, each in passes.items()}
    found.append(goal("the same over TensorRT's forward pass", "<=", OVER_TENSORRT, over_tensorrt))
    authors = {
        case: call[case]["GAIA-A, authors' way"] / each[GAIA_A]
        for case, each in fastest.items()
        if GAIA_A in each and "GAIA-A, authors' way" in call[case]
    }
    for images, limit in OVER_AUTHORS.items():
        what = f"GAIA-A, blocks 3 and 4: times faster than the authors' way, B = {images}"
        found.append(goal(what, ">=", limit, _of(authors, "resnet34", images)))
    return found


def _of(cases: dict[str, float], network: str, images: int) -> dict[str, float]:
    return {case: each for case, each in cases.items() if case.startswith(network) and f", {images} x " in case}


def table(rows: list[Row]) -> str:
    """Returns a line a row, case by case; of graphs also how many times as long as the same runtime's plain one."""
    lines = []
    graphs = by_case(rows, "graph_microseconds")
    case = ""
    for row in rows:
        if row["case"] != case:
            case = row["case"]
            lines += ["", f"{case:<45} launches: graph, call  graph, us  of plain   call, us  prepared in"]
        plain = f"plain, {row['what'].rpartition(', ')[2]}"
        if "own kernels" in row["what"]:
            plain = "plain, inductor"
        graph, below = row["graph_microseconds"], graphs.get(case, {}).get(plain)
        of_plain = f"{graph / below:8.2f}x" if graph is not None and below is not None else " " * 8 + "-"
        counts = ("-" if row[each] is None else row[each] for each in ("graph_launches", "call_launches"))
        cells = (
            " ".join(f"{count:>{width}}" for count, width in zip(counts, (15, 5), strict=True)),
            " " * 9 + "-" if graph is None else f"{graph:10.1f}",
            of_plain,
            f"{row['call_microseconds']:10.1f}",
            f"{row['prepare_seconds']:10.1f} s",
        )
        beside = "  chosen beside others" if row["chosen_in_turn"] is False else ""
        lines.append(f"  {row['what']:<43} {' '.join(cells)}{beside}")
    return "\n".join(lines)


def machine(device: str) -> Row:
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "gaia_fast": gaia_fast.__version__,
        "commit": os.environ.get("COMMIT", ""),
    }


def wait_for(go: Path | None, seconds: float, pause: float = 0.2) -> float:
    """Waits until timing may begin; returns for how many seconds it may go on."""
    begin = time.monotonic()
    while go is not None and time.monotonic() - begin < seconds:
        if go.exists() and (said := go.read_text().strip()):
            return float(said)
        time.sleep(pause)
    return seconds - (time.monotonic() - begin)


def kept_for(cases: int) -> float:
    """Seconds for so many cases, of which one may take longest to count."""
    return (TIMING + COUNTING) * cases + (MOST_COUNTING - COUNTING) * (cases > 0)


def allowed(left: float, cases: int) -> tuple[float, float]:
    """To time, and to count, the next of so many cases: its share, and of what the others do not need what it may."""
    share = max(left, 0.0) / cases
    timing = min(TIMING, share * 2 / 3)
    spare = left - timing - (TIMING + COUNTING) * (cases - 1)
    return timing, min(MOST_COUNTING, max(share - timing, spare))


def run(processes: list[Process], seconds: float, keep: Callable[[list[Row], list[str]], None]) -> None:
    """Times, case by case, what is made in time; tells `keep` after each."""
    begin = time.monotonic()
    cases = list(dict.fromkeys(each.case for each in processes))

    def left() -> float:
        return seconds - (time.monotonic() - begin)

    while left() > kept_for(len(cases)):
        if all(each.is_made() or each.has_ended() for each in processes):
            break
        time.sleep(0.2)
    print(f"waited {time.monotonic() - begin:.0f} s until all was made", file=sys.stderr, flush=True)
    rows: list[Row] = []
    failed: list[str] = []
    for index, case in enumerate(cases):
        here = [each for each in processes if each.case == case]
        made = [each for each in here if each.is_made()]
        failed += [f"not made in time, or failed: {each.name}" for each in here if each not in made]
        for each in made:
            assert each.made is not None
            failed += [f"{case}: {what}: {why}" for what, why in each.made["failed"].items()]
        found, silent = time_case(made, *allowed(left(), len(cases) - index)) if made else ([], [])
        rows += found
        failed += silent
        keep(rows, failed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the table, as JSON")
    parser.add_argument("--seconds", type=float, default=540)
    parser.add_argument("--only", nargs="*", default=[], help="cases with one of these in their names; all by default")
    parser.add_argument("--kernels", nargs="*", default=[], help="cases, as in --only, whose kernels are printed")
    parser.add_argument("--go", type=Path, help="a file, without which timing does not begin")
    parser.add_argument("--device", default="cuda", help="to try it without a GPU, where its figures mean nothing")
    parser.add_argument("--runtimes", nargs="+", default=RUNTIMES)
    arguments = parser.parse_args()
    begin = time.monotonic()
    cases = [case for case in CASES if not arguments.only or named(arguments.only, case)]
    # A row that is begun later would not be there in time.
    to_make = max(arguments.seconds - kept_for(len(cases)) - MAKING, MAKING)
    options = ["--device", arguments.device, "--seconds", str(to_make), "--runtimes", *arguments.runtimes]
    folder = TemporaryDirectory(prefix="gaia_fast_engines_")
    options += ["--turns", str(Path(folder.name) / "turns")]
    processes = [Process(case, group, options) for case in cases for group in groups(case)]
    found: tuple[list[Row], list[str]] = [], []

    def keep(rows: list[Row], failed: list[str]) -> None:
        nonlocal found
        found = rows, failed
        record = machine(arguments.device) | {"goals": goals(rows), "failed": failed, "rows": rows}
        if arguments.out is not None:  # after each case: the time may end here
            write_text(arguments.out, json.dumps(record, indent=1) + "\n")

    try:
        run(processes, wait_for(arguments.go, arguments.seconds - (time.monotonic() - begin)), keep)
        for process in processes:
            if named(arguments.kernels, process.case) and process.is_made():
                process.ask("kernels", 10.0)
    finally:
        for process in processes:
            process.end()
        folder.cleanup()
    rows, failed = found
    print(table(rows))
    print("", *failed, "", "goals of the engines", *lines_of(goals(rows)), sep="\n")
    return 0 if rows and all(f": {NOT_INSTALLED}" in each for each in failed) else 1


def named(wanted: list[str], case: Case) -> bool:
    return any(part in str(case) for part in wanted)


if __name__ == "__main__":
    sys.exit(main())
