"""What Nsight Compute counts in each kernel at a network's size: time, bytes of memory, occupancy, registers.

Caches are emptied before each kernel, as ncu does by default, and clocks are left as they are. Where there is no ncu on
the path nothing is measured, and it is said.
"""

import argparse
import csv
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from gaia_fast.files import write_text

METRICS = {
    "gpu__time_duration.sum": "nanoseconds",
    "dram__bytes.sum": "dram_bytes",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "achieved_occupancy_percent",
    "launch__registers_per_thread": "registers",
}
# What this package's kernels are called, in CUDA and in Triton.
KERNEL_NAMES = "regex:reduce_(rows|channels|pieces)|moments|relu_forward|frobenius|count_and_score"
UNKNOWN = "unknown"
_UNITS = {"nsecond": 1.0, "ns": 1.0, "usecond": 1e3, "us": 1e3, "msecond": 1e6, "ms": 1e6}
_UNITS |= {"byte": 1.0, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9}


def command(ncu: str, names: Sequence[str]) -> list[str]:
    """Returns what has ncu profile the kernels that `launch.py` launches."""
    script = str(Path(__file__).with_name("launch.py"))
    options = ["--clock-control", "none", "--profile-from-start", "off", "--kernel-name", KERNEL_NAMES]
    options += ["--target-processes", "application-only", "--csv", "--print-units", "base"]
    return [ncu, *options, "--metrics", ",".join(METRICS), sys.executable, script, *names]


def rows_of(said: str) -> list[dict[str, Any]]:
    """Reads what ncu and `launch.py` printed: a row for each kernel, with the name of the call that launched it.

    ncu prints its table at the end, kernels in the order of their launch, and every call launches one. Where there are
    more or fewer, nothing tells which call a kernel is of: none is named.
    """
    failed = re.findall(r"^FAILED (\S.*?:\w+): ", said, re.MULTILINE)
    wanted = [each for each in re.findall(r"^launching (\S.*:\w+)$", said, re.MULTILINE) if each not in failed]
    lines = said.splitlines()
    begin = next((at for at, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    table = [line for line in lines[begin:] if line.startswith('"')]
    kernels: dict[str, dict[str, Any]] = {}
    for cell in csv.DictReader(io.StringIO("\n".join(table))):
        if not (cell.get("ID") or "").isdigit():
            continue
        row = kernels.setdefault(cell["ID"], {"kernel": cell["Kernel Name"]})
        name = METRICS.get(cell["Metric Name"])
        if name is not None:
            value = cell["Metric Value"].replace(",", "")
            row[name] = float(value) * _UNITS.get(cell["Metric Unit"], 1.0) if value else None
    found = list(kernels.values())
    calls = wanted if len(wanted) == len(found) else [UNKNOWN] * len(found)
    for row, call in zip(found, calls, strict=True):
        row["call"] = call
    return found


def table_of(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'call':<38} {'microseconds':>12} {'MB of memory':>12} {'occupancy, %':>12} {'registers':>9}  kernel"]
    for row in rows:
        cells = (
            (row.get("nanoseconds"), 1e-3, "12.2f"),
            (row.get("dram_bytes"), 1e-6, "12.2f"),
            (row.get("achieved_occupancy_percent"), 1.0, "12.1f"),
            (row.get("registers"), 1.0, "9.0f"),
        )
        shown = " ".join("-".rjust(9) if value is None else f"{value * factor:{form}}" for value, factor, form in cells)
        lines.append(f"{row['call']:<38} {shown}  {row['kernel'][:60]}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="the rows, as JSON")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("names", nargs="*", help="as launch.py takes them")
    arguments = parser.parse_args()
    ncu = shutil.which("ncu")
    if ncu is None:
        print("no ncu on the path: nothing was counted")
        record: dict[str, Any] = {"rows": [], "skipped": "no ncu on the path"}
        status = 0
    else:
        said, status = _run(command(ncu, arguments.names), arguments.seconds)
        rows = rows_of(said)
        record = {"rows": rows}
        print(table_of(rows) if rows else said[-3000:])
        print(*re.findall(r"^(?:FAILED|not in this version).*$", said, re.MULTILINE), sep="\n")
        if any(row["call"] == UNKNOWN for row in rows):
            print(f"FAILED: not one kernel for each call: of which calls these {len(rows)} are is unknown")
            status = status or 1
        status = status or int(not rows)
    if arguments.out is not None:
        write_text(arguments.out, json.dumps(record, indent=1) + "\n")
    return status


def _run(command: list[str], seconds: float) -> tuple[str, int]:
    """What a command prints, and its exit status; 124 where it took too long."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        said = error.stdout or b""
        return said.decode(errors="replace") if isinstance(said, bytes) else said, 124
    return done.stdout, done.returncode


if __name__ == "__main__":
    sys.exit(main())
