"""What every benchmark shares: interleaving with what it is compared to, and the table and JSON at the end.

Each measured call is preceded by one call of its baseline, so that both see the same machine; the ratio quoted is the
median over these pairs. Where both have threads of their own (`settle`), each is called once more before it is timed.
Set OMP_WAIT_POLICY=PASSIVE (`make bench` does): busy-waiting threads stall each other.
"""

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import gaia_fast
from gaia_fast.files import write_text

Measure = Callable[..., None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--results", metavar="FILE", help="write the table as JSON, with machine, versions and commit")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []


ROWS: pytest.StashKey[list[dict[str, Any]]] = pytest.StashKey()


@pytest.fixture
def against(request: pytest.FixtureRequest, benchmark: Any) -> Measure:
    """`against(baseline, run, ...)`: times `run`, each round after one call of `baseline`; records the ratio.

    A ratio below 1 means that `run` is faster. `goal` is the ratio that the project aims at, if it names one.
    """

    def measure(
        baseline: Callable[[], object],
        run: Callable[[], object],
        rounds: int = 15,
        goal: float | None = None,
        settle: bool = False,
    ) -> None:
        before: list[float] = []
        spent: list[float] = []

        def time_baseline() -> None:
            if settle:
                baseline()
            start = time.perf_counter()
            baseline()
            before.append(time.perf_counter() - start)
            if settle:
                run()

        def timed_run() -> None:
            start = time.perf_counter()
            run()
            spent.append(time.perf_counter() - start)

        benchmark.pedantic(timed_run, setup=time_baseline, rounds=rounds, warmup_rounds=2)
        pairs = list(zip(before, spent, strict=True))[-rounds:]
        row = {
            "name": request.node.name,
            "milliseconds": statistics.median(each for _, each in pairs) * 1e3,
            "baseline_milliseconds": statistics.median(each for each, _ in pairs) * 1e3,
            "ratio": statistics.median(run / base for base, run in pairs),
            "goal": goal,
        }
        benchmark.extra_info.update(row)
        request.config.stash[ROWS].append(row)

    return measure


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash[ROWS]
    if not rows:
        return
    terminalreporter.section("ratios to the baseline named in each test, medians of interleaved pairs")
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        goal = "" if row["goal"] is None else f"   goal {row['goal']:.3g}x"
        terminalreporter.write_line(
            f"{row['name']:<{width}}  {row['milliseconds']:9.3f} ms against {row['baseline_milliseconds']:9.3f} ms  "
            f"{row['ratio']:6.3f}x{goal}"
        )
    path = config.getoption("--results")
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_text(Path(path), json.dumps({**machine(), "rows": rows}, indent=1) + "\n")


def machine() -> dict[str, object]:
    """The device, versions and commit that a figure belongs to."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))}
    model = fields.get("model name", platform.machine())
    if "cpu family" in fields:  # generations share a name
        model += f", family {fields['cpu family']}, model {fields['model']}"
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {
        "device": model,
        "threads": torch.get_num_threads(),
        "kernels": gaia_fast.backends.available()["cpu"].reason,
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", ""),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gaia_fast": gaia_fast.__version__,
        "commit": commit,
    }
