"""Has Triton compile every kernel that is timed, in as many processes at once as there are processors.

Each takes a share of the calls; what they compile lies in Triton's cache, where later processes find it. A call that
fails is named, and the others go on.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from gaia_fast.files import write_text

from gpu.calls import compiled_calls
from gpu.graph_timing import Call

Named = tuple[str, Callable[[], Call]]


def share(calls: Iterable[Named], index: int, processes: int) -> list[Named]:
    """Every `processes`-th call, from `index` on: neighbours take equally long."""
    return list(islice(calls, index, None, processes))


def run(calls: Iterable[Named]) -> dict[str, str]:
    """Makes each call once; returns why those that failed did."""
    failed = {}
    for name, make in calls:
        try:
            make()()
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {str(error)[:300]}"
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="what was compiled in what time, and what failed, as JSON")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--processes", type=int, default=min(16, os.cpu_count() or 1))
    parser.add_argument("--share", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.share is not None:
        failed = run(share(compiled_calls(), arguments.share, arguments.processes))
        torch.cuda.synchronize()
        print(json.dumps(failed))
        return 0
    begin = time.monotonic()
    command = [sys.executable, __file__, "--processes", str(arguments.processes), "--share"]
    started = [
        subprocess.Popen([*command, str(index)], stdout=subprocess.PIPE, text=True)
        for index in range(arguments.processes)
    ]
    failed = {}
    for index, process in enumerate(started):
        try:
            said, _ = process.communicate(timeout=max(arguments.seconds - (time.monotonic() - begin), 0.1))
            failed |= json.loads(said)
        except (subprocess.TimeoutExpired, ValueError) as error:
            process.kill()
            failed[f"share {index}"] = f"{type(error).__name__}, exit status {process.poll()}"
    spent = time.monotonic() - begin
    calls = sum(1 for _ in compiled_calls())
    print(f"{calls} calls in {arguments.processes} processes: {spent:.0f} s")
    print(*(f"FAILED {name}: {why}" for name, why in failed.items()), sep="\n")
    if arguments.out is not None:
        write_text(arguments.out, json.dumps({"calls": calls, "seconds": spent, "failed": failed}, indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
