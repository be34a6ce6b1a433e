"""Times every kernel on this GPU by the replay of CUDA graphs, and writes one table.

Bytes are those that must move: each map that is read or written, and each moment that is written, once. Bandwidth is
quoted as a share of the device's own copy, read and written, measured in the same way and run, each call on other
memory. At two gigabytes a call no map is found in the cache; at the sizes that networks have (1, 32 and 128 images) the
goals are for maps that the kernel before has left there, and what a call takes on maps that it has not is beside it.
One image is timed by the clock, too: there an eager call costs what Python and the launch do. Printed last: which
backend is the faster, and each goal with what was measured. Figures are written after each kind of map; what fails or
no longer fits in `--seconds` is named and left out.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from statistics import geometric_mean
from tempfile import mkdtemp
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
import gaia_fast
from gaia_fast import backends
from gaia_fast.files import write_text

from gpu import calls
from gpu.calls import BACKENDS, KERNELS, KINDS, MapKind
from gpu.goals import goal, lines_of
from gpu.graph_timing import Call, cold, hot, is_lost, launches, maps_for_cold, wait

Row = dict[str, Any]

MOVED = 2 * 10**9
TWO_GIGABYTES = "2 GB"
# The goals: of the copy's bandwidth at two gigabytes; at a network's sizes, times what a launch and the bytes take;
# times faster than PyTorch operator by operator, and than its compiler.
SHARE, OVER_FLOOR, OVER_EAGER, OVER_COMPILED = 0.85, 1.5, 3.0, 1.2
LAUNCH = 2.6  # microseconds from one launch in a graph to the next, of kernels that do nothing
OTHERS = ("torch", "torch.compile")
IN_PYTORCH = ("channel_moments", "relu_backward_moments, mask")
# On which maps PyTorch does the same, and on which what its compiler makes of that, which takes seconds each.
EAGER_MAPS, COMPILED_MAPS = ((64, 32, 32), (256, 8, 8), (256, 56, 56)), ((256, 8, 8),)
ROOT = Path(__file__).parents[2]


def copy_bandwidth() -> float:
    """GB/s of copies that move two gigabytes each, counting what is read and what is written."""
    pairs = [[torch.randn(MOVED // 8, device=calls.DEVICE) for _ in range(2)] for _ in range(3)]
    return MOVED / cold([partial(target.copy_, source) for source, target in pairs]) / 1e3


def microseconds_by_python(run: Call, repeats: int = 100) -> float:
    """By the clock, of many calls in a row, the best of five: whichever is slower, launching or the kernel."""
    found = []
    for _ in range(6):
        wait()
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        wait()
        found.append((time.perf_counter() - start) / repeats * 1e6)
    return min(found[1:])


def eager_moments(g: Tensor) -> tuple[Tensor, ...]:
    return g.sum((2, 3), dtype=torch.float32), g.abs().sum((2, 3), dtype=torch.float32), (g != 0).sum((2, 3))


def eager_backward(g: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    masked = torch.ops.aten.threshold_backward(g, y, 0)
    return masked, *eager_moments(masked)


class Timer:
    """Makes rows: one for each call, with what it took beside what it must move."""

    def __init__(self, copy: float, l2_bytes: int) -> None:
        self.copy, self.l2_bytes = copy, l2_bytes

    def row(self, name: str, backend: str, size: str, moved: int, spent: float, **more: Any) -> Row:
        row: Row = {"op": name, "backend": backend, "size": size, **more, "microseconds": spent, "bytes": moved}
        floor = LAUNCH + moved / self.copy / 1e3
        return row | {"share_of_copy": moved / spent / 1e3 / self.copy, "over_floor": spent / floor}

    def of_size(self, name: str, backend: str, kind: MapKind, images: int) -> Row:
        """At a network's size: on what lies in the cache, and on what does not."""
        kernel = KERNELS[name]
        moved = kernel.bytes(kind, images)
        call = kernel.make(kind.make(images), backend)
        more: Row = {}
        if images == 1:
            more["microseconds_by_python"] = microseconds_by_python(call)
        if (maps := maps_for_cold(moved, self.l2_bytes)) is not None:
            more["microseconds_cold"] = cold([kernel.make(kind.make(images), backend) for _ in range(maps)])
        size = f"B = {images}"
        return self.row(name, backend, size, moved, hot(call, moved), images=images, **_of(kind), **more)

    def of_two_gigabytes(self, name: str, backend: str, kind: MapKind) -> Row:
        kernel = KERNELS[name]
        images = kernel.images(kind, MOVED)
        spent = cold([kernel.make(kind.make(images), backend) for _ in range(2)])
        return self.row(name, backend, TWO_GIGABYTES, kernel.bytes(kind, images), spent, images=images, **_of(kind))

    def of_pytorch(self, name: str, kind: MapKind, compiled: bool) -> Row:
        """The same in PyTorch's own operators, at two gigabytes."""
        kernel = KERNELS[name]
        images = kernel.images(kind, MOVED)
        run: Callable[..., object] = eager_backward if "mask" in name else eager_moments
        if compiled:
            torch._dynamo.reset()
            run = torch.compile(run, dynamic=False)
        maps = [kind.make(images) for _ in range(1 + ("mask" in name))]
        backend = OTHERS[compiled]
        spent = cold([partial(run, *maps)] * 2)
        return self.row(name, backend, TWO_GIGABYTES, kernel.bytes(kind, images), spent, images=images, **_of(kind))

    def of_frobenius(self, images: int, backend: str) -> Row:
        call, moved = calls.frobenius(images, backend)
        return self.row("frobenius", backend, f"B = {images}", moved, hot(call, moved), images=images)

    def of_count_and_score(self, images: int, dtype: torch.dtype, backend: str) -> Row | None:
        found = calls.count_and_score(images, dtype, backend)
        if found is None:
            return None
        call, moved = found
        more = {"images": images, "dtype": _name(dtype), "layout": "channels_last"}
        return self.row("count_and_score", backend, f"B = {images}", moved, hot(call, moved), **more)


def launches_of(name: str, images: int, backend: str) -> Row | None:
    """How many kernels the operations on all layers start: one."""
    if name == "frobenius":
        call: Call | None = calls.frobenius(images, backend)[0]
    else:
        found = calls.count_and_score(images, torch.bfloat16, backend)
        call = found[0] if found else None
    if call is None:
        return None
    return {"op": name, "backend": backend, "size": f"B = {images}", "launches": launches(call)}


def _of(kind: MapKind) -> Row:
    return {"shape": [*kind.shape], "dtype": _name(kind.dtype), "layout": kind.layout}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


Work = tuple[str, Callable[[], Row | None]]


def work(timer: Timer) -> list[list[Work]]:
    """What is timed, by name, what matters most first; figures are written after each list."""
    norms: list[Work] = []
    # Not in plain PyTorch: it copies widths and areas to the device, which no graph can record.
    for images, backend in product(calls.IMAGES, BACKENDS):
        norms.append((f"frobenius, B = {images}, {backend}", partial(timer.of_frobenius, images, backend)))
    for images, dtype, backend in product(calls.IMAGES, calls.DTYPES[:2], BACKENDS):
        title = f"count_and_score, B = {images}, {_name(dtype)}, {backend}"
        norms.append((title, partial(timer.of_count_and_score, images, dtype, backend)))
    lists = [norms]
    halves = [kind for kind in KINDS if kind.dtype == torch.float16]  # which fewer use: they come last
    kinds = [kind for kind in KINDS if kind not in halves]
    lists += [_two_gigabytes(timer, kind) for kind in kinds]
    lists += [_sizes(timer, kind) for kind in kinds]
    lists += [[_pytorch(timer, IN_PYTORCH[-1], kind, True)] for kind in kinds if kind.shape in COMPILED_MAPS]
    lists += [_two_gigabytes(timer, kind) for kind in halves]
    return lists + [_sizes(timer, kind) for kind in halves]


def counts() -> list[list[Work]]:
    """How many kernels are launched: last, since what a profiler has looked at may take longer from then on."""
    named = product(("frobenius", "count_and_score"), (1, 128), BACKENDS)
    return [[(f"launches of {name}, B = {n}, {on}", partial(launches_of, name, n, on)) for name, n, on in named]]


def _two_gigabytes(timer: Timer, kind: MapKind) -> list[Work]:
    found: list[Work] = []
    for name, backend in product(KERNELS, BACKENDS):
        title = f"{name}, {TWO_GIGABYTES}, {kind}, {backend}"
        found.append((title, partial(timer.of_two_gigabytes, name, backend, kind)))
    return [
        *found,
        *(_pytorch(timer, name, kind, False) for name in ("channel_moments", "relu_backward_moments, mask")),
    ]


def _sizes(timer: Timer, kind: MapKind) -> list[Work]:
    found: list[Work] = []
    for images, name, backend in product(calls.IMAGES, KERNELS, BACKENDS):
        title = f"{name}, B = {images}, {kind}, {backend}"
        found.append((title, partial(timer.of_size, name, backend, kind, images)))
    return found


def _pytorch(timer: Timer, name: str, kind: MapKind, compiled: bool) -> Work:
    title = f"{name}, {TWO_GIGABYTES}, {kind}, {OTHERS[compiled]}"
    return title, partial(timer.of_pytorch, name, kind, compiled)


def machine(copy: float) -> dict[str, object]:
    properties = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    commit = ["git", "rev-parse", "--short", "HEAD"]
    return {
        "device": properties.name,
        "driver": _said(query),
        "copy_gigabytes_per_second": copy,
        "l2_bytes": properties.L2_cache_size,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": _triton_version(),
        "kernels": backends.available()["cuda"].reason,
        "gaia_fast": gaia_fast.__version__,
        "commit": _said(commit) or os.environ.get("COMMIT", ""),
    }


def _triton_version() -> str:
    import triton

    return triton.__version__


def _said(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout.strip().split("\n")[0]
    except OSError:
        return ""


Key = tuple[str, ...]


def by_kind(rows: list[Row], figure: str) -> dict[Key, dict[str, float]]:
    """Returns (op, size, map, dtype, layout) with `figure` of each backend, of the rows that have it."""
    kinds: dict[Key, dict[str, float]] = {}
    for row in rows:
        if figure in row:
            shape = "x".join(map(str, row.get("shape", ())))
            key = (row["op"], row["size"], shape, row.get("dtype", ""), row.get("layout", ""))
            kinds.setdefault(key, {})[row["backend"]] = row[figure]
    return kinds


def best(spent: dict[str, float], of: Callable[..., float] = min) -> float | None:
    """Of this package's backends."""
    ours = [spent[name] for name in BACKENDS if name in spent]
    return of(ours) if ours else None


def table(rows: list[Row]) -> str:
    """Returns a line for each kind of map: what every backend takes, as a share of the copy or of the least time."""
    lines = [
        f"{'op':<29} {'size':<8} {'map':<11} {'dtype':<9} {'layout':<14} {'microseconds':>17} {'of copy':>13} "
        f"{'over floor':>11} {'cold, us':>17}  ({', '.join(BACKENDS)})"
    ]
    spent, shares = by_kind(rows, "microseconds"), by_kind(rows, "share_of_copy")
    floors, uncached = by_kind(rows, "over_floor"), by_kind(rows, "microseconds_cold")
    for key, each in spent.items():
        op, size, shape, dtype, layout = key
        cells = " ".join(
            _cells(figures.get(key, {}), width)
            for figures, width in ((spent, "8.1f"), (shares, "6.2f"), (floors, "5.2f"), (uncached, "8.1f"))
        )
        slower = "".join(
            f"  {other} {each[other] / fastest:.2f}x" for other in OTHERS if other in each and (fastest := best(each))
        )
        lines.append(f"{op:<29} {size:<8} {shape:<11} {dtype:<9} {layout:<14} {cells}{slower}")
    for row in rows:
        if "launches" in row:
            lines.append(f"{row['op']}, {row['size']}, {row['backend']}: launches: {row['launches']}")
    return "\n".join(lines)


def _cells(figures: dict[str, float], width: str) -> str:
    absent = "-".rjust(int(width.split(".")[0]))
    return " ".join(f"{figures[name]:{width}}" if name in figures else absent for name in BACKENDS)


def defaults(rows: list[Row]) -> list[Row]:
    """Of every op, layout and dtype: the faster backend, and how much faster it is."""
    found: list[Row] = []
    one, other = BACKENDS
    for figure, on in (("microseconds", ""), ("microseconds_by_python", ", by the clock")):
        groups: dict[tuple[str, ...], list[float]] = {}
        for (op, size, shape, dtype, layout), spent in by_kind(rows, figure).items():
            if shape and one in spent and other in spent:
                timed = (TWO_GIGABYTES if size == TWO_GIGABYTES else "one image" if on else "networks' sizes") + on
                groups.setdefault((op, layout, dtype, timed), []).append(spent[one] / spent[other])
        for (op, layout, dtype, timed), ratios in groups.items():
            mean = geometric_mean(ratios)
            found.append(
                {"op": op, "layout": layout, "dtype": dtype, "size": timed, "faster": other if mean > 1 else one}
                | {"triton_over_cuda": mean, "least": min(ratios), "most": max(ratios)}
            )
    return found


def goals(rows: list[Row]) -> list[Row]:
    """Each goal, of the faster of this package's backends."""
    spent, shares, floors = (by_kind(rows, each) for each in ("microseconds", "share_of_copy", "over_floor"))
    found = []
    for op in KERNELS:
        cases = {
            " ".join(key[2:]): value
            for key, each in shares.items()
            if key[:2] == (op, TWO_GIGABYTES) and (value := best(each, max))
        }
        found.append(goal(f"{op}, {TWO_GIGABYTES}: share of the copy's bandwidth", ">=", SHARE, cases))
    for op in (*KERNELS, "frobenius", "count_and_score"):
        cases = {
            " ".join(filter(None, key[1:])): value
            for key, each in floors.items()
            if key[0] == op and key[1] != TWO_GIGABYTES and (value := best(each))
        }
        what = f"{op}, networks' sizes: times {LAUNCH} us and the bytes at the copy's bandwidth"
        found.append(goal(what, "<=", OVER_FLOOR, cases))
    for other, least in zip(OTHERS, (OVER_EAGER, OVER_COMPILED), strict=True):
        cases = {
            " ".join(key[2:]): each[other] / fastest
            for key, each in spent.items()
            if key[0] == "relu_backward_moments, mask" and other in each and (fastest := best(each))
        }
        found.append(goal(f"relu_backward_moments, mask: times faster than {other}", ">=", least, cases))
    for op in ("frobenius", "count_and_score"):
        ours = {
            f"{row['backend']}, {row['size']}": float(row["launches"])
            for row in rows
            if row["op"] == op and "launches" in row
        }
        found.append(goal(f"{op}: launches", "<=", 1, ours))
    return found


def report(rows: list[Row]) -> str:
    """Returns the two tables that decide: the backends beside each other, and the goals."""
    one, other = BACKENDS
    lines = ["", f"default backend{'':<42} timed                    faster   {one}/{other}: mean, least, most"]
    for each in defaults(rows):
        lines.append(
            f"{each['op']:<29} {each['layout']:<14} {each['dtype']:<12} {each['size']:<24} {each['faster']:<8} "
            f"{each['triton_over_cuda']:16.2f} {each['least']:6.2f} {each['most']:6.2f}"
        )
    return "\n".join([*lines, "", "goals of the kernels", *lines_of(goals(rows))])


Keep = Callable[[list[Row], list[str]], None]


def measure(
    named: list[tuple[Work, bool]], left: Callable[[], float], keep: Keep, found: tuple[list[Row], list[str]]
) -> int | None:
    """Adds rows to those found, as long as there is time; `keep` hears of them wherever that is asked.

    What fails or is left out is named. Returns how many were tried if this process can do no more on the device: it has
    lost it, or cannot free its memory, as where a recording has ended in an error.
    """
    rows, failed = found
    for index, ((title, run), last) in enumerate(named):
        if left() <= 0:
            failed.append(f"left out for want of time: {title}")
        else:
            try:
                row = run()
                rows += [] if row is None else [row]
            except Exception as error:
                failed.append(f"cannot run: {title}: {type(error).__name__}: {str(error)[:300]}")
                print(failed[-1], file=sys.stderr, flush=True)
                if is_lost():
                    keep(rows, failed)
                    return index + 1
        if last:
            stuck = False
            try:
                torch.cuda.empty_cache()
            except Exception as error:
                stuck = True
                why = f"{type(error).__name__}: {str(error)[:300]}"
                failed.append(f"cannot run: to free memory after {title}: {why}")
                print(failed[-1], file=sys.stderr, flush=True)
            keep(rows, failed)
            if stuck:
                return index + 1
    return None


def flat(lists: list[list[Work]]) -> list[tuple[Work, bool]]:
    """All work, each with whether it ends its list."""
    return [(work, index == len(each) - 1) for each in lists for index, work in enumerate(each)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="the figures, as JSON")
    parser.add_argument("--seconds", type=float, default=540)
    parser.add_argument("--after", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    begin = time.monotonic()
    for name in BACKENDS:
        if not (found := backends.available()[name]):
            print(f"backend {name} does not run here: {found.reason}", file=sys.stderr)
    out: Path = arguments.out or Path(mkdtemp()) / "kernels.json"
    before: Row = json.loads(out.read_text()) if arguments.after else {"rows": [], "failed": []}
    rows, failed = before["rows"], before["failed"]
    copy: float = before["copy_gigabytes_per_second"] if arguments.after else copy_bandwidth()
    here = machine(copy)
    print(f"{here['device']}, copy {copy:.0f} GB/s, torch {torch.__version__}, triton {here['triton']}", flush=True)

    def keep(rows: list[Row], failed: list[str]) -> None:
        record = here | {"defaults": defaults(rows), "goals": goals(rows), "failed": failed, "rows": rows}
        write_text(out, json.dumps(record, indent=1) + "\n")

    def left() -> float:
        return arguments.seconds - (time.monotonic() - begin)

    timer = Timer(copy, int(torch.cuda.get_device_properties(0).L2_cache_size))
    timed, counted = flat(work(timer)), flat(counts())
    tried = measure(timed[arguments.after :], lambda: left() - 15, keep, (rows, failed))
    if tried is None:
        tried = measure(counted[max(arguments.after - len(timed), 0) :], lambda: left() - 5, keep, (rows, failed))
        arguments.after = max(arguments.after, len(timed))
    if tried is not None:
        print("this process can do no more on the device: another goes on", file=sys.stderr, flush=True)
        more = ["--out", str(out), "--seconds", f"{left():.1f}", "--after", str(arguments.after + tried)]
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, __file__, *more])
    if left_out := sum(each.startswith("left out") for each in failed):
        print(f"left out for want of time: {left_out} rows, named in the JSON", file=sys.stderr)
    print(table(rows))
    print(report(rows))
    return int(any(each.startswith("cannot run") for each in failed))


if __name__ == "__main__":
    sys.exit(main())
