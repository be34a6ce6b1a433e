"""One group of rows of `engines.py`, made and timed in a process of its own.

It says on its output, a line of JSON each, what was made, and then answers a line: "round" with one measurement of each
row, "launches" with how many kernels each graph and each call starts, "kernels" by printing these on stderr.
"""

import argparse
import contextlib
import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parents[1]))
from gaia_fast import GaiaA, GaiaZ
from gaia_fast.compiler.runtimes import FixedSizes, Runner
from gaia_fast.compiler.runtimes.checked import Checks
from gaia_fast.compiler.runtimes.inductor import Inductor
from gaia_fast.compiler.runtimes.recorded import Recorded
from gaia_fast.models import resnet18, resnet34
from gaia_fast.options import RuntimeOption

from authors import Authors
from gpu.graph_timing import Call, launches, microseconds_by_clock, milliseconds, times_for, wait
from gpu.tensorrt_plain import tensorrt_plain
from own_kernels import on_own_kernels
from plain import plain

EAGER, PLAIN, GAIA_Z, GAIA_A = "eager", "plain", "GAIA-Z", "GAIA-A"
OWN = ", own kernels"
BACKENDS = ("cuda", "triton")
DETECTORS: dict[str, type[GaiaA] | type[GaiaZ]] = {GAIA_Z: GaiaZ, GAIA_A: GaiaA}
RUNTIMES: tuple[RuntimeOption, ...] = ("inductor", "cudagraph")
NOT_INSTALLED = "not installed: "  # why a row is not there that nobody can expect: no failure
# What GAIA-A inspects: blocks 3 and 4 as the paper does on CIFAR, the last as it does on ImageNet.
LATE = {"resnet18": ["layer3", "layer4"], "resnet34": ["layer3", "layer4"], "resnet50": ["layer4"]}


@dataclass(frozen=True)
class Case:
    """A network, in a dtype, and a batch of images."""

    network: str
    dtype: str
    images: int
    side: int

    def __str__(self) -> str:
        return f"{self.network}, {self.dtype}, {self.images} x {self.side}x{self.side}"

    def build(self, device: str) -> tuple[nn.Module, Tensor]:
        torch.manual_seed(0)
        dtype = getattr(torch, self.dtype)
        if self.network == "resnet50":
            import torchvision

            model = torchvision.models.resnet50()
        else:
            model = {"resnet18": resnet18, "resnet34": resnet34}[self.network](num_classes=10)
        x = torch.randn(self.images, 3, self.side, self.side, dtype=dtype, device=device)
        return model.eval().to(device=device, dtype=dtype), x


@dataclass
class Row:
    """What is timed.

    Attributes:
        call: by the clock: what a user calls.
        replay: on the device, by events: the graph that was recorded for it, if any. What a call does around it is not
            in it: images are copied in, and for a score checked, before; outputs are copied after.
        form: in which of several forms that was recorded, where it is said.
        times: how often that is replayed for one measurement; found in the first.
    """

    call: Call
    replay: Call | None = None
    form: str = ""
    times: int = 0

    @classmethod
    def of_runner(cls, runner: Runner, x: Tensor, call: Call | None = None) -> "Row":
        """A compiled program, called alone or as the detector that it is of calls it."""
        call = call or partial(runner, x)
        call()
        recorded: Any = runner.prepare(len(x)) if isinstance(runner, FixedSizes) else runner
        form = str(getattr(recorded, "how", ""))
        recorded = getattr(recorded, "run", recorded)  # of several recordings, the one that was chosen
        if isinstance(recorded, Recorded):
            return cls(call, recorded._graph.replay, form)
        if x.is_cuda:
            raise TypeError(f"{type(recorded).__name__} is no recorded program: there is no graph to time")
        return cls(call)

    def measure(self) -> dict[str, float | None]:
        graph = None
        if self.replay is not None:
            if self.times == 0:
                self.replay()
                wait()
                self.times = times_for(milliseconds(self.replay, 1) / 1e3, 4e-3)
            graph = milliseconds(self.replay, self.times) / self.times * 1e3
        return {"graph_microseconds": graph, "call_microseconds": microseconds_by_clock(self.call)}

    def launches(self) -> dict[str, int | None]:
        """Of the graph alone, and of the whole call; neither without a GPU."""
        graph, call = (
            launches(run) if run is not None and torch.cuda.is_available() else None for run in (self.replay, self.call)
        )
        return {"graph_launches": graph, "call_launches": call}


Makers = dict[str, Callable[[], Row]]


def makers(case: Case, group: str, device: str, runtimes: Iterable[RuntimeOption]) -> Makers:
    """The rows of a group, by name, each to be made by a call."""
    model, x = case.build(device)
    late = LATE[case.network]
    if group == EAGER:
        found: Makers = {"plain, eager": lambda: Row(lambda: _no_grad(model, x))}
        if case.network != "resnet50":  # the authors' way needs a model without in-place ReLUs
            found["GAIA-Z, authors' way"] = lambda: Row(partial(Authors(model, None, x).gaia_z, x))
            found["GAIA-A, authors' way"] = lambda: Row(partial(Authors(model, late, x).gaia_a, x))
        found["GAIA-Z, hooks"] = lambda: Row(partial(GaiaZ(model, engine="hooks").score, x))
        found["GAIA-A, hooks"] = lambda: Row(partial(GaiaA(model, layers=late, engine="hooks").score, x))
        return found
    if group == PLAIN:
        found = {f"plain, {each}": partial(_plain, model, each, x) for each in runtimes}
        if device == "cuda":
            found["plain, TensorRT"] = lambda: Row.of_runner(tensorrt_plain(model, x), x)
        return found
    method, own, backend = group.partition(OWN)
    layers = late if method == GAIA_A else None
    make = DETECTORS[method]
    if own:
        return {group: partial(_own_kernels, make, model, layers, x, backend.removeprefix(", "))}
    return {f"{group}, {each}": partial(_compiled, make, model, layers, each, x) for each in runtimes}


@torch.no_grad()
def _no_grad(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)


def _plain(model: nn.Module, runtime: RuntimeOption, x: Tensor) -> Row:
    return Row.of_runner(plain(model, runtime, x), x)


def _compiled(
    make: type[GaiaA] | type[GaiaZ], model: nn.Module, layers: list[str] | None, runtime: RuntimeOption, x: Tensor
) -> Row:
    detector = make(model, layers=layers, engine="compiled", runtime=runtime).prepare(x)
    prepared = detector.program(x)
    assert prepared is not None
    return Row.of_runner(prepared.runner, x, partial(detector.score, x))


def _own_kernels(
    make: type[GaiaA] | type[GaiaZ], model: nn.Module, layers: list[str] | None, x: Tensor, backend: str
) -> Row:
    """The same program, and the same checks, on this package's kernels where PyTorch's compiler fuses its own."""
    prepared = make(model, layers=layers, engine="compiled", runtime="eager").prepare(x).program(x)
    assert prepared is not None
    graph, count = on_own_kernels(prepared.program.graph, backend)
    assert count, "no ReLU is counted and no gradient summed in this program"
    if x.device.type != "cuda":
        return Row(partial(graph, x))
    checks = Checks(prepared.program.outputs, prepared.program.results, prepared.state)
    return Row.of_runner(Inductor(graph, x, checks), x)


def can_be_made(case: Case, group: str, device: str, runtimes: Iterable[RuntimeOption]) -> Makers:
    """`makers`, or, where the network is not installed, what says so when it is made."""
    try:
        return makers(case, group, device, runtimes)
    except ImportError as error:
        why = str(error)

        def missing() -> Row:
            raise ModuleNotFoundError(why)

        return {group: missing}


class Turns:
    """Turns of processes, one at a time: a lock on a file, which ends with its process, however that ends.

    It waits as long as there is time. Whoever goes ahead then writes so into the file: from there on nobody is known to
    have been the only one.
    """

    def __init__(self, file: Path, left: Callable[[], float], pause: float = 0.05) -> None:
        self._file, self._left, self._pause = file, left, pause

    @contextlib.contextmanager
    def turn(self) -> Iterator[Callable[[], bool]]:
        """Gives what tells whether it has been one at a time so far."""
        with self._file.open("ab") as file:  # no process that is started inherits it
            if not self._is_mine(file.fileno()):
                file.write(b"x")
                file.flush()
            yield lambda: self._file.stat().st_size == 0

    def _is_mine(self, file: int) -> bool:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if self._left() <= 0:
                    return False
                time.sleep(self._pause)


class Worker:
    """Makes rows and answers about them.

    Args:
        makers: makes each row, by name.
        left: for how many seconds more rows may be begun.
        turns: taken for rows that choose among forms by what these take, "cudagraph"; None where nobody else is there.
    """

    def __init__(self, makers: Makers, left: Callable[[], float], turns: Turns | None = None) -> None:
        self.rows: dict[str, Row] = {}
        self.seconds: dict[str, float] = {}
        self.failed: dict[str, str] = {}
        self.alone: dict[str, bool] = {}
        for what, make in makers.items():
            if left() < 0:
                self.failed[what] = "left out for want of time"
                continue
            if turns is None or not what.endswith(", cudagraph"):
                self._make(what, make)
                continue
            with turns.turn() as is_alone:
                self._make(what, make)
                self.alone[what] = is_alone()

    def _make(self, what: str, make: Callable[[], Row]) -> None:
        begin = time.monotonic()
        try:
            row = make()
            row.call()
            wait()
        except Exception as error:
            self._fail(what, error)
        else:
            self.rows[what], self.seconds[what] = row, time.monotonic() - begin

    def _fail(self, what: str, error: Exception) -> None:
        first = (str(error).splitlines() or [""])[0]
        missing = NOT_INSTALLED if isinstance(error, ModuleNotFoundError) else ""
        self.failed[what] = f"{missing}{type(error).__name__}: {first[:300]}"
        print(f"cannot run: {what}: {self.failed[what]}", file=sys.stderr, flush=True)

    def made(self) -> dict[str, Any]:
        forms = {what: row.form for what, row in self.rows.items() if row.form}
        return {"seconds": self.seconds, "failed": self.failed, "forms": forms, "alone": self.alone}

    def each(self, what: Callable[[Row], Any]) -> dict[str, Any]:
        """Asks every row; one that fails is named and asked no more."""
        found = {}
        for name, row in list(self.rows.items()):
            try:
                found[name] = what(row)
            except Exception as error:
                self._fail(name, error)
                del self.rows[name]
        return found

    def answers(self, asked: Iterable[str]) -> Iterator[dict[str, Any]]:
        yield self.made()
        for line in asked:
            if line.strip() == "round":
                yield self.each(Row.measure)
            elif line.strip() == "launches":
                yield self.each(Row.launches)
            else:
                for name, row in self.rows.items():
                    print_kernels(name, row.replay or row.call)
                yield {}


def print_kernels(title: str, run: Call) -> None:
    """What a call consists of on the device, longest first, on stderr."""
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        run()
        wait()
    rows = sorted(found.key_averages(), key=lambda each: -each.device_time_total)
    print(f"{title}: {sum(each.count for each in rows)} launches", file=sys.stderr)
    for each in rows[:40]:
        print(f"  {each.device_time_total:9.1f} us {each.count:4} x {each.key[:150]}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", required=True, help="network, dtype, images and side, as JSON")
    parser.add_argument("--group", required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--runtimes", nargs="+", default=RUNTIMES)
    parser.add_argument("--seconds", type=float, default=540, help="within which what is made must be begun")
    parser.add_argument("--turns", type=Path, help="a file that all processes lock in turn; without it none waits")
    arguments = parser.parse_args()
    begin = time.monotonic()
    out = os.dup(1)
    os.dup2(2, 1)  # whatever else prints
    with os.fdopen(out, "w") as answers:
        case = Case(*json.loads(arguments.case))

        def left() -> float:
            return arguments.seconds - (time.monotonic() - begin)

        found = can_be_made(case, arguments.group, arguments.device, arguments.runtimes)
        worker = Worker(found, left, None if arguments.turns is None else Turns(arguments.turns, left))
        print(f"{case}, {arguments.group}: made in {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
        answer(worker, sys.stdin, answers)


def answer(worker: Worker, asked: Iterable[str], answers: TextIO) -> None:
    for each in worker.answers(asked):
        print(json.dumps(each), file=answers, flush=True)


if __name__ == "__main__":
    main()
