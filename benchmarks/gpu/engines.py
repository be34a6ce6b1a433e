"""Times every engine on this GPU beside the plain prediction and the authors' way, and writes one table.

Networks: ResNet34 at 32x32 with 1, 8, 128 and 512 images, and torchvision's ResNet-50 at 224x224 where it is installed;
float32 as PyTorch has it by default, and bfloat16. Medians of CUDA events, after warming up, rows of one case in turns.
"Its program alone" is what a compiled detector replays, without what it does around it: checks of the model, and the
wait for the answer. Making takes most of the time, so each case is made in a process of its own, all at once; they are
timed one after the other, when all are made. What the goals name comes first, and what no longer fits in `--seconds` is
named and left out. Printed last: each goal with what was measured.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import gaia_fast
from gaia_fast import GaiaA, GaiaZ
from gaia_fast.compiler.preparation import Prepared
from gaia_fast.compiler.runtimes.inductor import Inductor
from gaia_fast.errors import GaiaError
from gaia_fast.files import write_text
from gaia_fast.models import resnet34
from gaia_fast.options import BackendOption, RuntimeOption

sys.path.insert(0, str(Path(__file__).parents[1]))
from plain import plain

from authors import Authors
from own_kernels import on_own_kernels

BACKENDS: tuple[BackendOption, ...] = ("torch", "triton", "cuda")
# Where the compiler's fusion is timed beside this package's kernels inside a program.
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
    wanted: dict[str, Callable[[], Callable[[], object]]] = {
        "plain, eager": lambda: lambda: no_grad(model, x),
        "plain, cudagraph": lambda: bind(plain(model, "cudagraph", x), x),
        "plain, inductor": lambda: bind(plain(model, "inductor", x), x),
    }
    more: dict[str, Callable[[], Callable[[], object]]] = {}

    def authors_way(way: str, layers: list[str] | None) -> Callable[[], object]:
        return bind(getattr(Authors(model, layers, x), way), x)

    def compiled(make: type[GaiaA] | type[GaiaZ], layers: list[str] | None, runtime: RuntimeOption) -> GaiaA | GaiaZ:
        made = make(model, layers=layers, engine="compiled", runtime=runtime)
        made.prepare(x)
        return made

    def score(
        make: type[GaiaA] | type[GaiaZ], layers: list[str] | None, runtime: RuntimeOption, kept: list[GaiaA | GaiaZ]
    ) -> Callable[[], object]:
        kept.append(compiled(make, layers, runtime))
        return bind(kept[0].score, x)

    def program(kept: list[GaiaA | GaiaZ]) -> Prepared:
        prepared = kept[0].program(x)
        assert prepared is not None
        return prepared

    def alone(kept: list[GaiaA | GaiaZ]) -> Callable[[], object]:
        return bind(program(kept).runner, x)

    def alone_on_own_kernels(kept: list[GaiaA | GaiaZ], backend: str) -> Callable[[], object]:
        return bind(Inductor(on_own_kernels(program(kept).program.graph, backend)[0], x), x)

    def hooks(
        make: type[GaiaA] | type[GaiaZ], layers: list[str] | None, backend: BackendOption
    ) -> Callable[[], object]:
        return bind(make(model, layers=layers, engine="hooks", backend=backend).score, x)

    for detector, layers in ((GaiaZ, None), (GaiaA, late)):
        title = detector.__name__.replace("Gaia", "GAIA-")
        if name == "resnet34":  # without in-place ReLUs, as the authors' way needs
            way = "gaia_z" if detector is GaiaZ else "gaia_a"
            wanted[f"{title}, authors' way"] = partial(authors_way, way, layers)
        for runtime in ("inductor", "cudagraph"):
            kept: list[GaiaA | GaiaZ] = []
            wanted[f"{title}, compiled, {runtime}"] = partial(score, detector, layers, runtime, kept)
            wanted[f"{title}, its program alone, {runtime}"] = partial(alone, kept)
        if (name, x.dtype, x.shape[0]) == THOROUGH:
            for backend in BACKENDS[1:]:
                more[f"{title}, its program alone, own kernels, {backend}"] = partial(
                    alone_on_own_kernels, kept, backend
                )
        for backend in BACKENDS:
            wanted[f"{title}, hooks, {backend}"] = partial(hooks, detector, layers, backend)
        wanted[f"{title}, compiled, eager"] = partial(score, detector, layers, "eager", [])
    wanted |= more
    found = {}
    for title, make in wanted.items():
        if left() < 0:
            print(f"left out for want of time: {title}", file=sys.stderr)
            continue
        try:
            found[title] = make()
            found[title]()
        except (GaiaError, RuntimeError, IndexError, AssertionError) as error:
            found.pop(title, None)
            print(f"cannot run: {title}: {type(error).__name__}: {str(error).splitlines()[0]}", file=sys.stderr)
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


def measure(found: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Medians, in milliseconds, of as many rounds as there is time for, 5 to 50."""
    times: dict[str, list[float]] = {title: [] for title in found}
    for _ in range(3):
        begin = time.monotonic()
        for run in found.values():
            run()
        torch.cuda.synchronize()
    rounds = max(5, min(50, int(seconds / (time.monotonic() - begin))))
    for _ in range(rounds):
        for title, run in found.items():
            times[title].append(milliseconds(run))
    return {title: statistics.median(each) for title, each in times.items()}


def goals(rows: list[dict[str, Any]]) -> list[str]:
    """Each goal with what was measured, of every case that it is for: a quotient of two rows."""
    cases: dict[str, dict[str, float]] = {}
    for row in rows:
        cases.setdefault(row["case"], {})[row["what"]] = row["milliseconds"]
    for spent in cases.values():
        spent["plain, fastest"] = min(each for what, each in spent.items() if what.startswith("plain"))
    wanted = [
        ("resnet34", f", {images} x ", "GAIA-A, authors' way", "GAIA-A, compiled, inductor", ">=", limit)
        for images, limit in ((1, 20.0), (128, 6.0))
    ]
    for what in ("compiled, inductor", "its program alone, inductor"):
        wanted.append(("", "", f"GAIA-Z, {what}", "plain, fastest", "<=", 1.1))
        wanted.append(("resnet50", "", f"GAIA-A, {what}", "plain, fastest", "<=", 1.3))
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


def title_of(name: str, dtype: torch.dtype, images: int, side: int) -> str:
    return f"{name}, {str(dtype).removeprefix('torch.')}, {images} x {side}x{side}"


def one_case(index: int, seconds: float, kernels: bool) -> None:
    """In a process of its own: makes a case, waits for a line, times, and prints the medians."""
    begin = time.monotonic()
    name, dtype, images, side = cases()[index]
    out = os.dup(1)
    os.dup2(2, 1)  # whatever else prints
    with os.fdopen(out, "w") as answers:
        model = build(name).to(dtype)
        x = torch.randn(images, 3, side, side, device="cuda", dtype=dtype)
        found = runs(name, model, x, lambda: seconds - (time.monotonic() - begin))
        print(f"{title_of(*cases()[index])}: made in {time.monotonic() - begin:.0f} s", file=sys.stderr)
        print("made", file=answers, flush=True)
        if sys.stdin.readline():
            print(json.dumps(measure(found, 5.0)), file=answers, flush=True)
            if kernels:
                for title, run in found.items():
                    if "inductor" in title and "compiled" not in title:
                        print_kernels(f"{title_of(*cases()[index])}, {title}", run)


def print_kernels(title: str, run: Callable[[], object]) -> None:
    """What a call consists of on the device, longest first, on stderr."""
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        run()
        torch.cuda.synchronize()
    rows = sorted(found.key_averages(), key=lambda each: -each.device_time_total)
    print(f"{title}: {sum(each.count for each in rows)} launches", file=sys.stderr)
    for each in rows[:40]:
        print(f"  {each.device_time_total:9.1f} us {each.count:4} x {each.key[:150]}", file=sys.stderr)


class Case:
    """A case in a process of its own."""

    def __init__(self, index: int, seconds: float, kernels: bool) -> None:
        command = [sys.executable, __file__, "--case", str(index), "--seconds", str(seconds)]
        command += ["--kernels", "all"] if kernels else []
        self.title = title_of(*cases()[index])
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._made = threading.Event()
        self._answer = ""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        if self._process.stdout.readline():
            self._made.set()
            self._answer = self._process.stdout.readline()

    def is_made(self, seconds: float) -> bool:
        return self._made.wait(max(seconds, 0.1))

    def has_failed(self) -> bool:
        return self._process.poll() not in (None, 0)

    def times(self, seconds: float) -> dict[str, float]:
        """Empty where there is none in time."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
            self._process.wait(seconds)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
        deadline = time.monotonic() + 2
        while not self._answer and time.monotonic() < deadline:
            time.sleep(0.05)
        return json.loads(self._answer) if self._answer else {}

    def end(self) -> None:
        self._process.kill()


def named(wanted: list[str], title: str) -> bool:
    return any(part in title for part in wanted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="the table, as JSON")
    parser.add_argument("--seconds", type=float, default=540)
    parser.add_argument("--only", nargs="*", default=[], help="cases with one of these in their names; all by default")
    parser.add_argument("--kernels", nargs="*", default=[], help="cases, as in --only, whose kernels are printed")
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    begin = time.monotonic()
    if arguments.case is not None:
        one_case(arguments.case, arguments.seconds, bool(arguments.kernels))
        return

    def left() -> float:
        return arguments.seconds - (time.monotonic() - begin)

    each = 12.0  # seconds to time a case
    titles = [title_of(*case) for case in cases()]
    chosen = [index for index, title in enumerate(titles) if not arguments.only or named(arguments.only, title)]
    to_make = arguments.seconds - each * len(chosen)
    made = [Case(index, to_make, named(arguments.kernels, titles[index])) for index in chosen]
    while left() > each * len(made) and not all(case.is_made(0.1) or case.has_failed() for case in made):
        time.sleep(0.5)
    print(f"made in {time.monotonic() - begin:.0f} s", file=sys.stderr)
    rows = []
    for index, case in enumerate(made):
        spent = case.times(min(left(), 2 * each)) if case.is_made(left() - each * (len(made) - index)) else {}
        case.end()
        if not spent:
            print(f"left out, failed or for want of time: {case.title}", file=sys.stderr)
            continue
        print(case.title)
        for what, milliseconds in spent.items():
            rows.append({"case": case.title, "what": what, "milliseconds": milliseconds})
            ratio = milliseconds / spent.get("plain, eager", float("nan"))
            print(f"  {what:<56} {milliseconds:9.3f} ms  {ratio:6.2f}x of plain eager")
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
        if arguments.out is not None:  # after each case: the time may end here
            write_text(arguments.out, json.dumps(record, indent=1) + "\n")
    print("\ngoals", *goals(rows), sep="\n")


if __name__ == "__main__":
    main()
