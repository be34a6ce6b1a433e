"""Times every kernel on this GPU: medians of triton.testing.do_bench, maps several times the L2 cache, one table.

Bytes are those that must move: each map that is read or written, once; moments and parameters are left out. Bandwidth
is quoted as a share of the device's own copy of a gigabyte, read and written, measured in the same run.
"""

import argparse
import json
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path

import torch
import triton
from torch import Tensor
from triton.testing import do_bench

import gaia_fast
from gaia_fast import backends, ops

BACKENDS = ("triton", "cuda")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
# (K, H, W); the batch is as large as `OVER_L2` asks for. ResNet's maps at 224x224 and at 32x32.
MAPS = ((64, 112, 112), (256, 56, 56), (64, 32, 32), (256, 8, 8), (2048, 7, 7), (512, 4, 4))
OVER_L2 = 4
WIDTHS = [64] * 7 + [128] * 9 + [256] * 13 + [512] * 7  # ResNet34's 36 layers
AREAS = [1 / 1024] * 7 + [1 / 256] * 9 + [1 / 64] * 13 + [1 / 16] * 7
ROOT = Path(__file__).parents[2]


def milliseconds(run: Callable[[], object]) -> float:
    return float(do_bench(run, warmup=5, rep=30, return_mode="median"))


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


def map_rows(shape: tuple[int, ...], dtype: torch.dtype, layout: str, copy: float, with_compile: bool) -> list[dict]:
    """Times the kernels on maps of one kind, and PyTorch on the same."""
    bytes_a_map = dtype.itemsize * shape[0] * shape[1] * shape[2]
    images = -(-OVER_L2 * torch.cuda.get_device_properties(0).L2_cache_size // bytes_a_map)
    make = {"device": "cuda", "dtype": dtype}
    g = torch.randn(images, *shape, **make).contiguous(memory_format=FORMATS[layout])
    y = torch.randn_like(g).relu()
    scale = torch.rand(shape[0], device="cuda")
    out = torch.empty(3, images, shape[0], device="cuda")
    runs: dict[tuple[str, str], Callable[[], object]] = {}
    for name in BACKENDS:
        runs["channel_moments", name] = lambda name=name: ops.channel_moments(g, out=out, backend=name)
        runs["relu_backward_moments", name] = lambda name=name: ops.relu_backward_moments(g, y, out=out, backend=name)
        runs["relu_forward_count", name] = lambda name=name: ops.relu_forward_count(g, scale, scale, y, backend=name)
    runs["channel_moments", "torch"] = lambda: eager_moments(g)
    runs["relu_backward_moments", "torch"] = lambda: eager_backward(g, y)
    if with_compile:
        torch._dynamo.reset()
        compiled_moments = torch.compile(eager_moments, dynamic=False)
        compiled_backward = torch.compile(eager_backward, dynamic=False)
        runs["channel_moments", "torch.compile"] = lambda: compiled_moments(g)
        runs["relu_backward_moments", "torch.compile"] = lambda: compiled_backward(g, y)
    maps_moved = {"channel_moments": 1, "relu_backward_moments": 3, "relu_forward_count": 3}
    rows = []
    for (op, name), run in runs.items():
        time = milliseconds(run)
        speed = maps_moved[op] * g.nbytes / time / 1e6
        rows.append(
            {
                "op": op,
                "backend": name,
                "shape": [images, *shape],
                "dtype": str(dtype)[6:],
                "layout": layout,
                "milliseconds": time,
                "bytes": maps_moved[op] * g.nbytes,
                "gigabytes_per_second": speed,
                "share_of_copy": speed / copy,
            }
        )
    return rows


def kernels_launched(run: Callable[[], object]) -> int:
    run()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    return sum(event.count for event in profile.key_averages() if event.device_type == torch.autograd.DeviceType.CUDA)


def frobenius_rows() -> list[dict]:
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
        "commit": _said(commit),
    }


def _said(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout.strip().split("\n")[0]
    except OSError:
        return ""


def table(rows: list[dict]) -> str:
    """Returns a line for each kind of map: every backend's share of the copy bandwidth, and PyTorch's time over it."""
    columns = f"{'op':<22} {'map':<22} {'dtype':<9} {'layout':<14}"
    lines = [f"{columns} share of copy: triton  cuda | times slower: torch  compile"]
    kinds: dict[tuple, dict[str, dict]] = {}
    for row in rows:
        if "shape" in row:
            key = (row["op"], "x".join(map(str, row["shape"])), row["dtype"], row["layout"])
            kinds.setdefault(key, {})[row["backend"]] = row
    for (op, shape, dtype, layout), by in kinds.items():
        best = min(by[name]["milliseconds"] for name in BACKENDS)
        shares = "  ".join(f"{by[name]['share_of_copy']:6.2f}" for name in BACKENDS)
        slower = "  ".join(
            f"{by[name]['milliseconds'] / best:6.2f}" if name in by else "     -" for name in ("torch", "torch.compile")
        )
        lines.append(f"{op:<22} {shape:<22} {dtype:<9} {layout:<14}              {shares} |             {slower}")
    for row in rows:
        if row["op"] == "frobenius":
            what = f"frobenius, 36 layers, N = {row['images']:<4} {row['backend']:<8}"
            lines.append(f"{what} {row['milliseconds'] * 1e3:8.1f} us, launches: {row['launches']}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="a second place for the figures")
    arguments = parser.parse_args()
    for name in BACKENDS:
        if not (here := backends.available()[name]):
            raise SystemExit(f"backend {name} does not run here: {here.reason}")
    copy = copy_bandwidth()
    rows = frobenius_rows()
    for shape in MAPS:
        for layout in FORMATS:
            for dtype in DTYPES:
                # torch.compile takes seconds for each kind: one small map and one large one tell.
                with_compile = dtype == torch.float32 and shape in ((256, 56, 56), (256, 8, 8))
                rows += map_rows(shape, dtype, layout, copy, with_compile)
                torch.cuda.empty_cache()
    found = {**machine(copy), "rows": rows}
    folder = ROOT / "benchmarks" / "results" / str(found["device"]).lower().replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=1) + "\n"
    (folder / "kernels.json").write_text(text)
    if arguments.out:
        arguments.out.write_text(text)
    print(f"{found['device']}, copy {copy:.0f} GB/s, torch {torch.__version__}, triton {triton.__version__}")
    print(table(rows))


if __name__ == "__main__":
    main()
