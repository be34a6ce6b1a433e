"""What a process waits for before its first compiled score: the first one, and one that finds its program kept.

    python benchmarks/start_up.py wrn_40_2 resnet50 --images 4 --results benchmarks/results/start-up-cpu.json

Each is a process of its own: it makes the network, calibrates it (the first) or loads the detector that was saved (the
second), prepares it with `cache_dir`, and scores. Timings of algorithms and runtimes are kept in a folder of their own,
empty at first and not shared between the two, so that all that the second knows comes from `cache_dir`. Weights are
untrained, from a fixed seed. The scores of the two are compared bit for bit.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from conftest import machine
from runtimes import create

import gaia_fast
from gaia_fast import GaiaZ

SIDES = {"wrn_40_2": 32, "resnet50": 224}


def child(name: str, images: int, folder: Path) -> dict[str, Any]:
    """One process; the first where nothing is saved yet."""
    torch.manual_seed(0)
    model = create(name)
    x = torch.rand(2 * images, 3, SIDES[name], SIDES[name])
    saved = folder / "detector.gaia"
    first = not saved.exists()
    detector = GaiaZ(model, engine="compiled") if first else gaia_fast.load(saved, model)
    assert isinstance(detector, GaiaZ)
    start = time.perf_counter()
    detector.prepare(x[:images], cache_dir=folder / "programs")
    seconds = time.perf_counter() - start
    if first:
        detector.calibrate(x)
        detector.save(saved)
    scores = detector.predict(x)
    runtime = detector.plan(x).runtime
    return {
        "seconds": seconds,
        "runtime": runtime.name if runtime else "",
        "threshold": detector.threshold,
        "scores": scores.tolist(),
        "bytes": sum(each.stat().st_size for each in (folder / "programs").iterdir()),
    }


def run(name: str, images: int, folder: Path, turn: int) -> dict[str, Any]:
    asked = [sys.executable, __file__, name, "--images", str(images), "--child", str(folder)]
    environment = {**os.environ, "GAIA_FAST_CACHE": str(folder / f"timings-{turn}")}
    done = subprocess.run(asked, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(SIDES))
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        print(json.dumps(child(asked.networks[0], asked.images, asked.child)))
        return
    rows = []
    for name in asked.networks:
        with tempfile.TemporaryDirectory() as folder:
            first, second = (run(name, asked.images, Path(folder), turn) for turn in range(2))
        same = first["scores"] == second["scores"] and first["threshold"] == second["threshold"]
        row = {
            "network": name,
            "images": asked.images,
            "runtime": second["runtime"],
            "first_s": first["seconds"],
            "kept_s": second["seconds"],
            "same_bits": same,
            "megabytes": second["bytes"] / 1e6,
        }
        rows.append(row)
        print(json.dumps(row), flush=True)
    if asked.results:
        asked.results.write_text(json.dumps({**machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
