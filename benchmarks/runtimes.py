"""Prediction and score against the prediction alone, in every runtime that a user could have picked.

Run: .venv/bin/python benchmarks/runtimes.py resnet50 --images 1 8 --threads 1 2 --results FILE

Each runner is a process of its own, as it would be for a user: its threads and its memory are nobody else's. One that
is not asked is stopped: with OMP_WAIT_POLICY=ACTIVE its threads would take the processors from the one that is. They
are asked in turn, round after round; in a round each is run once to settle and once, or for 20 ms, timed. Ratios are
medians over the rounds.

onnxruntime and OpenVINO get the file that `torch.onnx.export` writes, in float32.
"""

import argparse
import contextlib
import ctypes
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

NETWORKS: dict[str, tuple[str, int]] = {  # where each is from, and the images' side
    "resnet34": ("gaia_fast/resnet34", 32),
    "wrn_40_2": ("gaia_fast/wrn_40_2", 32),
    "resnet18": ("torchvision/resnet18", 224),
    "resnet50": ("torchvision/resnet50", 224),
    "regnet_y_400mf": ("torchvision/regnet_y_400mf", 224),
    "mobilenet_v2": ("torchvision/mobilenet_v2", 224),
    "efficientnet_lite0": ("timm/tf_efficientnet_lite0", 224),
    "densenet121": ("torchvision/densenet121", 224),
    "bit_s_r101x1": ("gaia_fast/bit_s_r101x1", 480),
}
# What GAIA-A inspects: as the paper does where the network is of the paper, else the last stage.
LAST_STAGE: dict[str, list[str] | None] = {
    "resnet34": ["layer3", "layer4"],
    "wrn_40_2": None,
    "resnet18": ["layer4"],
    "resnet50": ["layer4"],
    "regnet_y_400mf": ["trunk_output.block4"],
    "mobilenet_v2": ["features.16", "features.17", "features.18"],
    "efficientnet_lite0": ["blocks.6", "bn2"],
    "densenet121": ["features.denseblock4", "features.norm5"],
    "bit_s_r101x1": ["body.block4"],
}
PLAIN = ("eager", "inductor", "onnxruntime", "openvino", "native")
SCORES = ("gaia-z", "gaia-a", "gaia-z auto", "gaia-a auto")
PEERS = PLAIN[:-1]  # what a user would have picked instead
LEAST_SECONDS = 0.02


def create(name: str) -> nn.Module:
    library, architecture = NETWORKS[name][0].split("/")
    torch.manual_seed(0)
    if library == "gaia_fast":
        from gaia_fast.models import ARCHITECTURES

        model = ARCHITECTURES[architecture]().eval()
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and not module.weight.any():  # a head begins at zero
                nn.init.normal_(module.weight, std=0.01)
        return model
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    import architectures

    return architectures.create(f"{library}/{architecture}")


def onnx_file(model: nn.Module, x: torch.Tensor, folder: str) -> str:
    path = os.path.join(folder, "model.onnx")
    program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    assert program is not None
    program.save(path)
    return path


def in_onnxruntime(path: str, x: torch.Tensor) -> Callable[[], Any]:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, feed)


def in_openvino(path: str, x: torch.Tensor) -> Callable[[], Any]:
    import openvino

    hints = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = openvino.Core().compile_model(path, "CPU", hints).create_infer_request()
    given = x.numpy()
    return lambda: request.infer({0: given})


def runner(what: str, name: str, images: int) -> Callable[[], Any]:
    """Returns a function without arguments that runs a batch of noise."""
    model, side = create(name), NETWORKS[name][1]
    x = torch.randn(images, 3, side, side)
    if what in SCORES:
        from gaia_fast import GaiaA, GaiaZ

        method, *auto = what.split(" ")
        options: dict[str, Any] = {"engine": "auto"} if auto else {"engine": "compiled", "runtime": "native"}
        det = GaiaZ(model, **options) if method == "gaia-z" else GaiaA(model, layers=LAST_STAGE[name], **options)
        det.prepare(x)
        if auto:
            print(det.plan(x), file=sys.stderr)
        return lambda: det.score(x)
    if what == "eager":
        return torch.no_grad()(lambda: model(x))
    if what == "inductor":
        compiled = torch.compile(model)
        return torch.no_grad()(lambda: compiled(x))
    if what == "native":
        from plain import plain

        run = plain(model, "native", x)
        return lambda: run(x)
    with TemporaryDirectory() as folder:
        path = onnx_file(model, x, folder)
        return in_onnxruntime(path, x) if what == "onnxruntime" else in_openvino(path, x)


def serve(what: str, name: str, images: int, threads: int) -> None:
    """In a process of its own: answers each line on stdin with the milliseconds of a run."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # with its parent: a process that is stopped sees no end of its input
    torch.set_num_threads(threads)
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes elsewhere
    warnings.simplefilter("ignore")
    run = runner(what, name, images)
    for _ in range(3):
        run()
    print("ready", file=channel, flush=True)
    for _ in sys.stdin:
        run()
        calls, start = 0, time.perf_counter()
        while calls == 0 or time.perf_counter() - start < LEAST_SECONDS:
            run()
            calls += 1
        print((time.perf_counter() - start) / calls * 1e3, file=channel, flush=True)


class Served:
    def __init__(self, what: str, name: str, images: int, threads: int) -> None:
        self.what = what
        self.process = subprocess.Popen(
            [sys.executable, __file__, name, "--serve", what, "--images", str(images), "--threads", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if not os.environ.get("SHOW") else None,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )

    def ready(self) -> bool:
        assert self.process.stdout is not None
        if self.process.stdout.readline() == "ready\n":
            self.process.send_signal(signal.SIGSTOP)
            return True
        last = (self.process.stderr.read().strip().splitlines() or [""])[-1] if self.process.stderr else ""
        print(f"  {self.what} does not run: {last[:160]}", file=sys.stderr)
        return False

    def milliseconds(self) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.send_signal(signal.SIGCONT)
        print(file=self.process.stdin, flush=True)
        spent = float(self.process.stdout.readline())
        self.process.send_signal(signal.SIGSTOP)
        return spent

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.process.kill()
        self.process.wait()


def measure(name: str, images: int, threads: int, runners: list[str], rounds: int) -> dict[str, Any]:
    started: list[Served] = []
    served: list[Served] = []
    try:
        for what in runners:  # one after the other: what a detector measures when it is prepared decides what it runs
            started.append(Served(what, name, images, threads))
            if started[-1].ready():
                served.append(started[-1])
        spent: dict[str, list[float]] = {each.what: [] for each in served}
        for _ in range(rounds):
            for each in served:
                spent[each.what].append(each.milliseconds())
    finally:
        for each in started:
            each.close()
    medians = {what: statistics.median(times) for what, times in spent.items()}
    row: dict[str, Any] = {"network": name, "images": images, "threads": threads, "milliseconds": medians, "ratios": {}}
    peers = [what for what in PEERS if what in medians]
    if peers:
        fastest = row["fastest peer"] = min(peers, key=lambda what: medians[what])
        for what in (*SCORES, "native"):
            if what in spent:
                pairs = zip(spent[what], spent[fastest], strict=True)
                row["ratios"][f"{what} / {fastest}"] = statistics.median(one / other for one, other in pairs)
    for what in SCORES:
        if what in spent and "native" in spent:
            pairs = zip(spent[what], spent["native"], strict=True)
            row["ratios"][f"{what} / native"] = statistics.median(one / other for one, other in pairs)
    return row


def print_table(path: Path) -> None:
    """Prints rows of a file of results as Markdown: ratios to the fastest peer, in brackets to native's own pass."""
    print("| network | images, threads | fastest peer, ms | native alone | GAIA-Z | GAIA-A | auto: GAIA-Z, GAIA-A |")
    print("|---|---|---|---|---|---|---|")
    for row in json.loads(path.read_text())["rows"]:
        peer, ratios = row.get("fastest peer"), row["ratios"]

        def ratio(what: str, peer: str = peer, ratios: dict[str, float] = ratios) -> str:
            own = f" ({ratios[f'{what} / native']:.2f})" if f"{what} / native" in ratios else ""
            return f"{ratios[f'{what} / {peer}']:.2f}x{own}" if f"{what} / {peer}" in ratios else ""

        if peer is None:
            continue
        cells = [f"{peer} {row['milliseconds'][peer]:.3g}", *map(ratio, ("native", *SCORES[:2]))]
        auto = ", ".join(filter(None, map(ratio, SCORES[2:])))
        wait = "" if row.get("wait", "PASSIVE") == "PASSIVE" else f", {row['wait']}"
        print(f"| {row['network']} | {row['images']}, {row['threads']}{wait} | {' | '.join(cells)} | {auto} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("networks", nargs="*", default=list[str](), help=f"of {', '.join(NETWORKS)}, or all")
    parser.add_argument("--images", nargs="+", type=int, default=[1])
    parser.add_argument("--threads", nargs="+", type=int, default=[torch.get_num_threads()])
    parser.add_argument("--runners", nargs="+", default=[*PLAIN, *SCORES], choices=[*PLAIN, *SCORES])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--results", metavar="FILE", help="add the rows to this JSON file")
    parser.add_argument("--table", metavar="FILE", type=Path, help="print the rows of such a file, and measure nothing")
    parser.add_argument("--serve", choices=[*PLAIN, *SCORES], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        return serve(given.serve, given.networks[0], given.images[0], given.threads[0])
    if given.table:
        return print_table(given.table)
    from conftest import machine

    names = list(NETWORKS) if "all" in given.networks else given.networks
    if unknown := [name for name in names if name not in NETWORKS]:
        parser.error(f"no such network: {', '.join(unknown)}")
    policy = os.environ.get("OMP_WAIT_POLICY", "")
    for name in names:
        for images in given.images:
            for threads in given.threads:
                row = measure(name, images, threads, given.runners, given.rounds)
                times = "  ".join(f"{what} {spent:.4g}" for what, spent in row["milliseconds"].items())
                ratios = "  ".join(f"{what} {ratio:.2f}" for what, ratio in row["ratios"].items())
                print(f"{name} B={images} threads={threads} {policy}: {times} ms\n    {ratios}", flush=True)
                if given.results:
                    path = Path(given.results)
                    rows = json.loads(path.read_text())["rows"] if path.exists() else []
                    path.write_text(
                        json.dumps({**machine(), "rows": [*rows, {**row, "wait": policy}]}, indent=1) + "\n"
                    )
    return None


if __name__ == "__main__":
    main()
