"""A service under load on this machine's own address: latency, throughput, overload, a killed replica, bad requests.

    python benchmarks/service_under_load.py wrn_40_2 --data DATA --results load.json

Starts `gaia-fast serve` with two replicas, and `benchmarks/load.py`, which sends images at random times and compares
every answer with the detector's own. In turn: one request after the other (the single latency); rates that rise until
at two in a row the 99th percentile is above five times that, or an image is answered by 503; twice the highest that was
good, with a replica killed in the middle; half of it, alone and while bad requests are sent. Service and load share the
processors.

WideResNet-40-2 scores CIFAR-10's test images with trained weights; ResNet-50's weights are untrained, from a fixed
seed, and its images ImageNet's, of 224 to 288 pixels. Needs `pip install 'gaia-fast[serve]' locust`.
"""

import argparse
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from conftest import machine
from PIL import Image
from safetensors.torch import save_file

from gaia_fast import GaiaZ
from gaia_fast.data import load_images
from gaia_fast.models import load_weights, wrn_40_2

from served_resnet50 import ServedResNet50

HERE = Path(__file__).parent
REPLICAS = 2


@dataclass(frozen=True)
class Network:
    """What is served, as the command line is told it."""

    preset: str
    images: str
    weights: str = ""
    arch: str = ""


NETWORKS = {
    "wrn_40_2": Network("cifar10", "cifar10_test.npz", "wrn_40_2_cifar10.safetensors", "wrn_40_2"),
    "resnet50": Network("imagenet", "imagenet_sample_jpeg.npz"),
}


def prepare(name: str, data: Path, folder: Path) -> list[str]:
    """Writes images, a calibrated detector, and what it says of each image; returns the model's options."""
    asked = NETWORKS[name]
    torch.manual_seed(0)
    model = (wrn_40_2() if asked.arch else ServedResNet50()).eval()
    weights = folder / "weights.safetensors"
    if asked.weights:
        load_weights(model, data / asked.weights)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, weights)
    source = load_images(data / asked.images, asked.preset).part(0, 300)
    (folder / "images").mkdir()
    for index in range(len(source)):
        picture = source.picture(index)
        image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
        image.save(folder / "images" / f"{index}.png", compress_level=1)
    detector = GaiaZ(model, engine="compiled")
    source = load_images(folder / "images", asked.preset)
    expected, scores = {}, []
    for batch in source.batches(1):
        out = detector.score(batch.images)
        expected[batch.names[0]] = (int(out.logits.argmax(1)), float(out.score))
        scores.append(float(out.score))
    detector.calibrate(scores).save(folder / "detector.gaia")
    (folder / "expected.json").write_text(json.dumps(expected))
    model_options = ["--arch", asked.arch] if asked.arch else ["--model", "served_resnet50:ServedResNet50"]
    return [*model_options, "--weights", str(weights), "--preset", asked.preset]


@contextlib.contextmanager
def served(model: list[str], folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Starts the service; yields its address, and its process."""
    command = [sys.executable, "-m", "gaia_fast", "serve", *model, "--detector", str(folder / "detector.gaia")]
    command += ["--replicas", str(REPLICAS), "--port", "0", "--cache-dir", str(folder / "programs")]
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if "serving at" in line:
                    yield line.split()[-1], psutil.Process(process.pid)
                    break
            else:
                raise SystemExit("the service did not start")
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)


def load(url: str, folder: Path, seconds: float, rate: float | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, str(HERE / "load.py"), url, str(folder / "images"), str(folder / "expected.json")]
    command += ["--seconds", str(seconds), *([] if rate is None else ["--rate", str(rate)])]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def result(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = process.communicate(timeout=300)
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def replicas() -> list[psutil.Process]:
    return [
        each
        for each in psutil.process_iter(["cmdline"])
        if "ServeReplica:gaia_fast" in " ".join(each.info["cmdline"] or [])
    ]


def memory(service: psutil.Process) -> dict[str, float]:
    """MB of each kind of process: of pages that it does not share."""

    def megabytes(processes: list[psutil.Process]) -> float:
        return round(sum(each.memory_full_info().uss for each in processes) / 2**20, 1)

    return {"front": megabytes([service]), "replicas": megabytes(replicas())}


def bad_bodies() -> dict[str, tuple[bytes, str]]:
    """By what is wrong with it, a body and its content type."""
    pixels = io.BytesIO()
    Image.new("RGB", (640, 480)).save(pixels, "JPEG")
    huge = io.BytesIO()
    Image.new("L", (10_000, 10_000)).save(huge, "PNG")
    return {
        "truncated": (pixels.getvalue()[:700], "image/jpeg"),
        "100 megapixels": (huge.getvalue(), "image/png"),
        "wrong type": (b"%PDF-1.7\n" + bytes(2000), "application/pdf"),
        "empty": (b"", "image/png"),
        "10 MB of noise": (np.random.default_rng(0).bytes(10 * 2**20), "application/octet-stream"),
        "form": (b"--x\r\n\r\n--x--", "multipart/form-data; boundary=x"),
    }


def send(url: str, body: bytes, kind: str) -> tuple[int, str]:
    request = urllib.request.Request(f"{url}/score", body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, ""
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())["error"]


def measure(name: str, data: Path, seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = prepare(name, data, folder)
        start = time.perf_counter()
        with served(model, folder) as (url, service):
            found: dict[str, Any] = {"network": name, "seconds_to_start": time.perf_counter() - start}
            result(load(url, folder, 3))
            found["one_by_one"] = result(load(url, folder, seconds))
            single = found["one_by_one"]["p50"]
            rate, found["rates"] = max(1.0, 0.5 / single), []
            while True:
                each = {"rate": rate, **result(load(url, folder, seconds, rate))}
                found["rates"].append(each)
                print(name, json.dumps(each), flush=True)
                each["good"] = each["p99"] <= 5 * single and not each["overloaded"]
                if not any(one["good"] for one in found["rates"][-2:]) and len(found["rates"]) > 1:
                    break
                rate *= 1.15
            best = max((each["rate"] for each in found["rates"] if each["good"]), default=found["rates"][0]["rate"])
            found["best_rate"] = best
            found["alone"] = result(load(url, folder, seconds, best / 2))
            beside, found["bad"] = load(url, folder, seconds, best / 2), {}
            time.sleep(seconds / 4)
            for what, (body, kind) in bad_bodies().items():
                status, reason = send(url, body, kind)
                found["bad"][what] = {"status": status, "reason": reason}
            found["beside_bad"] = result(beside)
            found["memory_before"] = memory(service)
            found["overload"] = result(load(url, folder, 3 * seconds, 2 * best))
            found["memory_after"] = memory(service)
            killing = load(url, folder, 3 * seconds, 2 * best)
            time.sleep(seconds)
            replicas()[0].send_signal(signal.SIGKILL)
            found["overload_and_killed"] = result(killing)
            deadline = time.monotonic() + 60
            while len(replicas()) < REPLICAS and time.monotonic() < deadline:
                time.sleep(0.5)
            found["replicas_afterwards"] = len(replicas())
            found["memory_at_the_end"] = memory(service)
            with urllib.request.urlopen(f"{url}/drift", timeout=10) as response:
                found["drift"] = json.load(response)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", choices=sorted(NETWORKS))
    parser.add_argument("--data", type=Path, required=True, help="Where the images and weights lie.")
    parser.add_argument("--seconds", type=float, default=10, help="Of each rate.")
    parser.add_argument("--results", type=Path)
    asked = parser.parse_args()
    rows = [measure(name, asked.data, asked.seconds) for name in asked.networks]
    found = {"machine": machine(), "replicas": REPLICAS, "rows": rows}
    print(json.dumps(found, indent=1))
    if asked.results:
        asked.results.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
