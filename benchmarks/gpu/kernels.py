"""Times every kernel on this GPU: medians of triton.testing.do_bench, maps several times the L2 cache, one table.

Bytes are those that must move: each map that is read or written, once; moments and parameters are left out. Bandwidth
is quoted as a share of the device's own copy of a gigabyte, read and written, measured in the same run. One image is
timed by the clock, many calls in a row: there a call costs what Python and the launch do. Printed last: which backend
is the faster for each kind of map, and each goal with what was measured. Figures are written after each shape of map,
and kinds that no longer fit in `--seconds` are named and left out.
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
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import torch
import triton
from torch import Tensor
from torch._C._autograd import DeviceType
from triton.testing import do_bench

import gaia_fast
from gaia_fast import backends, ops
from gaia_fast.files import write_text

BACKENDS = ("triton", "cuda")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
# (K, H, W); the batch is as large as `OVER_L2` asks for. ResNet's maps at 224x224 and at 32x32.
MAPS = ((64, 112, 112), (256, 56, 56), (64, 32, 32), (256, 8, 8), (2048, 7, 7), (512, 4, 4))
OVER_L2 = 4
WIDTHS = [64] * 7 + [128] * 9 + [256] * 13 + [512] * 7  # ResNet34's 36 layers
AREAS = [1 / 1024] * 7 + [1 / 256] * 9 + [1 / 64] * 13 + [1 / 16] * 7
# The goals: of the copy's bandwidth; times faster than PyTorch operator by operator, and than its compiler.
SHARE, OVER_EAGER, OVER_COMPILED = 0.85, 3.0, 1.2
ROOT = Path(__file__).parents[2]


def milliseconds(run: Callable[[], object]) -> float:
    return float(do_bench(run, warmup=5, rep=30, return_mode="median"))


def microseconds_a_call(run: Callable[[], object], calls: int = 200) -> float:
    """By the clock, of many calls in a row, the best of five: whichever is slower, launching or the kernel."""
    found = []
    for _ in range(6):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            run()
        torch.cuda.synchronize()
        found.append((time.perf_counter() - start) / calls * 1e6)
    return min(found[1:])


def copy_bandwidth() -> float:
    """GB/s of a copy of one gigabyte, counting what is read and what is written."""
    source = torch.randn(2**28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / milliseconds(lambda: target.copy_(source)) / 1e6


def eager_moments(g: Tensor) -> tuple[Tensor, ...]:
    return g.sum((2, 3), dtype=torch.float32), g.abs().sum((2, 3), dtype=torch.float32), (g != 0).sum((2, 3))


def eager_backward(g: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    masked = torch.ops.aten.threshold_backward(g, y, 0)
    return masked, *eager_moments(masked)


MAPS_MOVED = {"channel_moments": 1, "relu_backward_moments": 3, "relu_forward_count": 3}


def runs_on(g: Tensor) -> dict[tuple[str, str], Callable[[], object]]:
    """Of every operation and backend, a call on maps like `g`; and PyTorch's on the same."""
    y = torch.randn_like(g).relu()
    scale = torch.rand(g.shape[1], device="cuda")
    out = torch.empty(3, *g.shape[:2], device="cuda")
    runs: dict[tuple[str, str], Callable[[], object]] = {}
    for name in BACKENDS:
        runs["channel_moments", name] = partial(ops.channel_moments, g, out=out, backend=name)
        runs["relu_backward_moments", name] = partial(ops.relu_backward_moments, g, y, out=out, backend=name)
        runs["relu_forward_count", name] = partial(ops.relu_forward_count, g, scale, scale, y, backend=name)
    runs["channel_moments", "torch"] = lambda: eager_moments(g)
    runs["relu_backward_moments", "torch"] = lambda: eager_backward(g, y)
    return runs


def compiled_on(g: Tensor) -> dict[tuple[str, str], Callable[[], object]]:
    """What PyTorch's compiler makes of its own operators."""
    torch._dynamo.reset()
    y = torch.randn_like(g).relu()
    moments, backward = (torch.compile(each, dynamic=False) for each in (eager_moments, eager_backward))
    return {
        ("channel_moments", "torch.compile"): lambda: moments(g),
        ("relu_backward_moments", "torch.compile"): lambda: backward(g, y),
    }


def maps_like(shape: tuple[int, ...], dtype: torch.dtype, layout: str, images: int) -> Tensor:
    made = torch.randn(images, *shape, device="cuda", dtype=dtype)
    return made.contiguous(memory_format=FORMATS[layout])


def map_rows(
    shape: tuple[int, ...], dtype: torch.dtype, layout: str, copy: float, with_compile: bool
) -> list[dict[str, Any]]:
    """Times the kernels on maps of one kind, and PyTorch on the same: many images, and one."""
    bytes_a_map = dtype.itemsize * shape[0] * shape[1] * shape[2]
    images = -(-OVER_L2 * torch.cuda.get_device_properties(0).L2_cache_size // bytes_a_map)
    kind = {"dtype": str(dtype)[6:], "layout": layout}
    rows = []
    one = maps_like(shape, dtype, layout, 1)
    for (op, name), run in runs_on(one).items():
        row: dict[str, Any] = {"op": op, "backend": name, "shape": [1, *shape]} | kind
        rows.append(row | {"microseconds_a_call": microseconds_a_call(run)})
    g = maps_like(shape, dtype, layout, images)
    for (op, name), run in (runs_on(g) | (compiled_on(g) if with_compile else {})).items():
        spent = milliseconds(run)
        moved = MAPS_MOVED[op] * g.nbytes
        row = {"op": op, "backend": name, "shape": [images, *shape]} | kind
        row |= {"milliseconds": spent, "bytes": moved, "gigabytes_per_second": moved / spent / 1e6}
        rows.append(row | {"share_of_copy": moved / spent / 1e6 / copy})
    return rows


def kernels_launched(run: Callable[[], object]) -> int:
    run()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    return sum(event.count for event in profile.key_averages() if event.device_type == DeviceType.CUDA)


def frobenius_rows() -> list[dict[str, Any]]:
    rows = []
    for images in (1, 128):
        moments = torch.rand(images, sum(WIDTHS), device="cuda")
        output = torch.rand(images, device="cuda") + 1
        for name in ("torch", *BACKENDS):

            def run(name: str = name, moments: Tensor = moments, output: Tensor = output) -> Tensor:
                return ops.frobenius(moments, WIDTHS, AREAS, output, backend=name)

            launched = kernels_launched(run)
            rows.append(
                {"op": "frobenius", "backend": name, "images": images, "milliseconds": milliseconds(run)}
                | {"launches": launched}
            )
    return rows


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
        "triton": triton.__version__,
        "kernels": backends.available()["cuda"].reason,
        "gaia_fast": gaia_fast.__version__,
        "commit": _said(commit) or os.environ.get("COMMIT", ""),
    }


def _said(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout.strip().split("\n")[0]
    except OSError:
        return ""


def by_kind(rows: list[dict[str, Any]], figure: str) -> dict[tuple[str, ...], dict[str, float]]:
    """Returns (op, map, dtype, layout) with `figure` of each backend, of the rows that have it."""
    kinds: dict[tuple[str, ...], dict[str, float]] = {}
    for row in rows:
        if figure in row and "shape" in row:
            key = (row["op"], "x".join(map(str, row["shape"])), row["dtype"], row["layout"])
            kinds.setdefault(key, {})[row["backend"]] = row[figure]
    return kinds


def table(rows: list[dict[str, Any]]) -> str:
    """Returns a line for each kind of map: every backend's share of the copy bandwidth, and PyTorch's time over it."""
    columns = f"{'op':<22} {'map':<20} {'dtype':<9} {'layout':<14}"
    lines = [f"{columns} share of copy: triton  cuda | times slower: torch  compile"]
    shares = by_kind(rows, "share_of_copy")
    for key, spent in by_kind(rows, "milliseconds").items():
        op, shape, dtype, layout = key
        best = min(spent[name] for name in BACKENDS)
        share = "  ".join(f"{shares[key][name]:6.2f}" for name in BACKENDS)
        slower = "  ".join(f"{spent[name] / best:6.2f}" if name in spent else "     -" for name in OTHERS)
        lines.append(f"{op:<22} {shape:<20} {dtype:<9} {layout:<14}              {share} |             {slower}")
    for row in rows:
        if row["op"] == "frobenius":
            what = f"frobenius, 36 layers, N = {row['images']:<4} {row['backend']:<8}"
            lines.append(f"{what} {row['milliseconds'] * 1e3:8.1f} us, launches: {row['launches']}")
    return "\n".join(lines)


OTHERS = ("torch", "torch.compile")


def defaults(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of every op, layout and dtype: the faster backend, for many images and for one, and how much faster it is."""
    found: list[dict[str, Any]] = []
    for figure, size in (("milliseconds", "many images"), ("microseconds_a_call", "one image")):
        groups: dict[tuple[str, ...], list[dict[str, float]]] = {}
        for (op, _, dtype, layout), spent in by_kind(rows, figure).items():
            groups.setdefault((op, layout, dtype), []).append(spent)
        for (op, layout, dtype), kinds in groups.items():
            ratios = [each["triton"] / each["cuda"] for each in kinds]
            mean = geometric_mean(ratios)
            over_torch = [each["torch"] / min(each[b] for b in BACKENDS) for each in kinds if "torch" in each]
            found.append(
                {"op": op, "layout": layout, "dtype": dtype, "size": size, "faster": "cuda" if mean > 1 else "triton"}
                | {"triton_over_cuda": mean, "least": min(ratios), "most": max(ratios)}
                | {"over_torch": min(over_torch, default=None)}
            )
    return found


def goals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each goal: what was measured in the worst case, where, and in how many cases it is missed."""

    def goal(what: str, least: float, cases: dict[str, float]) -> dict[str, Any]:
        worst = min(cases, key=lambda name: cases[name], default=None)
        missed = {name: value for name, value in cases.items() if value < least}
        measured = None if worst is None else cases[worst]
        return {
            "goal": what,
            "at_least": least,
            "measured": measured,
            "where": worst,
            "cases": len(cases),
            "missed": missed,
        }

    spent, shares = by_kind(rows, "milliseconds"), by_kind(rows, "share_of_copy")
    found = []
    for op in ("channel_moments", "relu_backward_moments"):
        cases = {" ".join(key[1:]): max(each[b] for b in BACKENDS) for key, each in shares.items() if key[0] == op}
        found.append(goal(f"{op}: share of the copy's bandwidth", SHARE, cases))
    for other, least in zip(OTHERS, (OVER_EAGER, OVER_COMPILED), strict=True):
        cases = {
            " ".join(key[1:]): each[other] / min(each[b] for b in BACKENDS)
            for key, each in spent.items()
            if key[0] == "relu_backward_moments" and other in each
        }
        found.append(goal(f"relu_backward_moments: times faster than {other}", least, cases))
    launches = {f"{row['backend']}, N = {row['images']}": row["launches"] for row in rows if row["op"] == "frobenius"}
    ours = {name: float(count == 1) for name, count in launches.items() if not name.startswith("torch")}
    found.append(goal("frobenius: in one launch", 1.0, ours))
    return found


def report(rows: list[dict[str, Any]]) -> str:
    """Returns the two tables that decide: the backends beside each other, and the goals."""
    lines = ["", f"default backend{'':<32} size         faster   triton/cuda: mean, least, most   torch/faster, least"]
    for each in defaults(rows):
        over = "       -" if each["over_torch"] is None else f"{each['over_torch']:8.2f}"
        lines.append(
            f"{each['op']:<22} {each['layout']:<14} {each['dtype']:<9} {each['size']:<12} {each['faster']:<8} "
            f"{each['triton_over_cuda']:16.2f} {each['least']:6.2f} {each['most']:6.2f}   {over}"
        )
    lines += ["", "goals"]
    for each in goals(rows):
        if each["measured"] is None:
            lines.append(f"NOT MEASURED  {each['goal']}")
            continue
        verdict = "missed" if each["missed"] else "met"
        lines.append(
            f"{verdict:<7} {each['goal']}: at least {each['at_least']:g}, measured {each['measured']:.2f} at worst "
            f"({each['where']}); missed in {len(each['missed'])} of {each['cases']} cases"
        )
        lines += [f"          {value:.2f} {name}" for name, value in sorted(each["missed"].items(), key=lambda m: m[1])]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="a second place for the figures")
    parser.add_argument("--seconds", type=float, default=540)
    arguments = parser.parse_args()
    begin = time.monotonic()
    for name in BACKENDS:
        if not (here := backends.available()[name]):
            raise SystemExit(f"backend {name} does not run here: {here.reason}")
    copy = copy_bandwidth()
    found = machine(copy)
    folder = ROOT / "benchmarks" / "results" / str(found["device"]).lower().replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    rows = frobenius_rows()
    for shape in MAPS:
        for dtype in DTYPES:
            for layout in FORMATS:
                if time.monotonic() - begin > arguments.seconds - 20:
                    print(f"left out for want of time: {shape}, {dtype}, {layout}", file=sys.stderr)
                    continue
                # torch.compile takes seconds for each kind: one small map and one large one tell.
                with_compile = dtype != torch.float16 and shape in ((256, 56, 56), (256, 8, 8))
                rows += map_rows(shape, dtype, layout, copy, with_compile)
                torch.cuda.empty_cache()
        text = json.dumps(found | {"defaults": defaults(rows), "goals": goals(rows), "rows": rows}, indent=1) + "\n"
        write_text(folder / "kernels.json", text)  # after each map: the time may end here
        if arguments.out:
            write_text(arguments.out, text)
    print(f"{found['device']}, copy {copy:.0f} GB/s, torch {torch.__version__}, triton {triton.__version__}")
    print(table(rows))
    print(report(rows))


if __name__ == "__main__":
    main()
