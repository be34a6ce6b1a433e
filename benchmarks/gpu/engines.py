"""Times every engine on this GPU beside the plain prediction and the authors' way, and writes one table.

Networks: ResNet34 at 32x32 with 1, 8, 128 and 512 images, and torchvision's ResNet-50 at 224x224 where it is installed;
float32 as PyTorch has it by default, and bfloat16. Medians of CUDA events, after warming up, rows of one case in turns.
"Its program alone" is what a compiled detector runs, without what it does around it: checks, which wait for the device.
Compiling takes most of the time: what the goals name comes first, and what no longer fits in `--seconds` is named and
left out. Printed last: each goal with what was measured.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import gaia_fast
from gaia_fast import GaiaA, GaiaZ
from gaia_fast.compiled.modes.cudagraph import CudaGraph
from gaia_fast.errors import GaiaError
from gaia_fast.files import write_text
from gaia_fast.models import resnet34

sys.path.insert(0, str(Path(__file__).parents[1]))
from plain import plain

from authors import Authors
from own_kernels import on_own_kernels

BACKENDS = ("torch", "triton", "cuda")
# Where the compiler's fusion is timed beside this package's kernels inside a program, and CUDA graphs beside none.
THOROUGH = ("resnet34", torch.bfloat16, 128)


def cases() -> list[tuple[str, torch.dtype, int, int]]:
    """(network, dtype, images, side); what the goals name comes first."""
    both = (torch.bfloat16, torch.float32)
    found = [("resnet34", dtype, images, 32) for images in (1, 128) for dtype in both]
    found += [("resnet50", dtype, 64, 224) for dtype in both]
    return found + [("resnet34", dtype, images, 32) for images in (8, 512) for dtype in both]


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "resnet34":
        return resnet34(num_classes=10).eval().cuda()
    import torchvision

    return torchvision.models.resnet50().eval().cuda()


def runs(name: str, model: nn.Module, x: Tensor, left: Callable[[], float]) -> dict[str, Callable[[], object]]:
    """What is timed, by name; what cannot be made is named on stderr."""
    late = ["layer4"] if name == "resnet50" else ["layer3", "layer4"]
    thorough = (name, x.dtype, x.shape[0]) == THOROUGH
    wanted: dict[str, Callable[[], Callable[[], object]]] = {
        "plain, eager": lambda: lambda: no_grad(model, x),
        "plain, CUDA graph": lambda: bind(plain(model, "cudagraph", x), x),
    }
    more = {"plain, torch.compile": lambda: bind(plain(model, "inductor", x), x)} if thorough else {}
    for detector, layers in ((GaiaZ, None), (GaiaA, late)):
        title = detector.__name__.replace("Gaia", "GAIA-")
        if name == "resnet34":  # without in-place ReLUs, as the authors' way needs
            way = "gaia_z" if detector is GaiaZ else "gaia_a"
            wanted[f"{title}, authors' way"] = lambda way=way, layers=layers: bind(
                getattr(Authors(model, layers, x), way), x
            )

        def compiled(mode: str, make: type[GaiaZ] = detector, layers: list[str] | None = layers) -> GaiaZ:
            return make(model, layers=layers, engine="compiled", mode=mode).prepare(x)

        kept: list[GaiaZ] = []

        def graphed(compiled: Callable = compiled, kept: list[GaiaZ] = kept) -> Callable[[], object]:
            kept.append(compiled("cudagraph"))
            return bind(kept[0].score, x)

        wanted[f"{title}, compiled, cudagraph"] = graphed
        wanted[f"{title}, its program alone"] = lambda kept=kept: bind(kept[0]._compiled.find(x).runner, x)
        for backend in BACKENDS:
            wanted[f"{title}, hooks, {backend}"] = lambda make=detector, layers=layers, backend=backend: bind(
                make(model, layers=layers, engine="hooks", backend=backend).score, x
            )
        more[f"{title}, compiled, eager"] = lambda compiled=compiled: bind(compiled("eager").score, x)
        if thorough:
            more[f"{title}, compiled, inductor"] = lambda compiled=compiled: bind(compiled("inductor").score, x)
            for backend in BACKENDS[1:]:
                more[f"{title}, its program alone, own kernels, {backend}"] = lambda kept=kept, backend=backend: bind(
                    CudaGraph(on_own_kernels(kept[0]._compiled.find(x).program.graph, backend)[0], x), x
                )
    wanted |= more
    found = {}
    for title, make in wanted.items():
        if left() < 30:
            print(f"left out for want of time: {title}", file=sys.stderr)
            continue
        try:
            found[title] = make()
            found[title]()
        except (GaiaError, RuntimeError, IndexError) as error:
            found.pop(title, None)
            print(f"cannot run: {title}: {str(error).splitlines()[0]}", file=sys.stderr)
    return found


def bind(run: Callable[[Tensor], object], x: Tensor) -> Callable[[], object]:
    return lambda: run(x)


@torch.no_grad()
def no_grad(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)


def milliseconds(run: Callable[[], object]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def measure(found: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    times: dict[str, list[float]] = {title: [] for title in found}
    for _ in range(3):
        for run in found.values():
            run()
    torch.cuda.synchronize()
    for _ in range(rounds):
        for title, run in found.items():
            times[title].append(milliseconds(run))
    return {title: statistics.median(each) for title, each in times.items()}


def goals(rows: list[dict]) -> list[str]:
    """Each goal with what was measured, of every case that it is for: a quotient of two rows."""
    cases: dict[str, dict[str, float]] = {}
    for row in rows:
        cases.setdefault(row["case"], {})[row["what"]] = row["milliseconds"]
    wanted = [
        ("resnet34", f", {images} x ", "GAIA-A, authors' way", "GAIA-A, compiled, cudagraph", ">=", limit)
        for images, limit in ((1, 20.0), (128, 6.0))
    ]
    for what in ("compiled, cudagraph", "its program alone"):
        wanted.append(("", "", f"GAIA-Z, {what}", "plain, CUDA graph", "<=", 1.1))
        wanted.append(("resnet50", "", f"GAIA-A, {what}", "plain, CUDA graph", "<=", 1.3))
    lines = []
    for network, images, above, below, sign, limit in wanted:
        for case, spent in cases.items():
            if not case.startswith(network) or images not in case or above not in spent or below not in spent:
                continue
            ratio = spent[above] / spent[below]
            met = ratio >= limit if sign == ">=" else ratio <= limit
            lines.append(f"{'met' if met else 'missed':<7} {ratio:6.2f} {sign} {limit:<5g} {above} / {below}: {case}")
        if not any(above in spent and below in spent and case.startswith(network) for case, spent in cases.items()):
            lines.append(f"NOT MEASURED   {sign} {limit:<5g} {above} / {below}: {network}{images}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=540)
    arguments = parser.parse_args()
    begin = time.monotonic()

    def left() -> float:
        return arguments.seconds - (time.monotonic() - begin)

    rows = []
    for name, dtype, images, side in cases():
        title = f"{name}, {str(dtype).removeprefix('torch.')}, {images} x {side}x{side}"
        if left() < 60:
            print(f"left out for want of time: {title}", file=sys.stderr)
            continue
        try:
            model = build(name).to(dtype)
        except ImportError as error:
            print(f"left out: {title}: {error}", file=sys.stderr)
            continue
        x = torch.randn(images, 3, side, side, device="cuda", dtype=dtype)
        times = measure(runs(name, model, x, left), 50 if images == 1 else 15)
        print(title)
        for what, spent in times.items():
            rows.append({"case": title, "what": what, "milliseconds": spent})
            print(f"  {what:<48} {spent:9.3f} ms  {spent / times['plain, eager']:6.2f}x of plain eager")
        record = {
            "device": torch.cuda.get_device_name(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "gaia_fast": gaia_fast.__version__,
            "commit": os.environ.get("COMMIT", ""),
            "goals": goals(rows),
            "rows": rows,
        }
        write_text(arguments.out, json.dumps(record, indent=1) + "\n")  # after each case: the time may end here
    print("\ngoals", *goals(rows), sep="\n")


if __name__ == "__main__":
    main()
