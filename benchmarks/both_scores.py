"""What a second score costs: both of GAIA's from one program, against each by itself, and the prediction alone.

    python benchmarks/both_scores.py wrn_40_2 resnet50 --images 1 8 --results benchmarks/results/both-scores-cpu.json

Compiled, runtime "native"; the prediction alone is the program that gives nothing but the maximum softmax besides.
Weights are untrained. Each round runs every program once; medians of the rounds.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from conftest import machine
from runtimes import create

from gaia_fast import Gaia
from gaia_fast.options import ScoreOption

SIDES = {"wrn_40_2": 32, "resnet50": 224}
SCORES: dict[str, tuple[ScoreOption, ...]] = {
    "prediction": ("msp",),
    "gaia-z": ("gaia-z",),
    "gaia-a": ("gaia-a",),
    "both": ("gaia-z", "gaia-a"),
    "all five": ("gaia-z", "gaia-a", "msp", "energy", "max_logit"),
}
LAST = {"wrn_40_2": ["block3", "bn1"], "resnet50": ["layer4"]}  # GAIA-A reads the last stage, as elsewhere


def measure(name: str, images: int, rounds: int) -> dict[str, float]:
    """Milliseconds of each program."""
    model = create(name)
    torch.manual_seed(0)
    x = torch.rand(images, 3, SIDES[name], SIDES[name])
    detectors = {}
    for what, scores in SCORES.items():
        layers = {"gaia-a": LAST[name]} if "gaia-a" in scores else None
        detectors[what] = Gaia(model, scores=scores, layers=layers, engine="compiled", runtime="native").prepare(x)
    spent: dict[str, list[float]] = {what: [] for what in detectors}
    for _ in range(rounds):
        for what, detector in detectors.items():
            start = time.perf_counter()
            detector.score(x)
            spent[what].append(time.perf_counter() - start)
    return {what: 1000 * statistics.median(each[rounds // 5 :]) for what, each in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(SIDES))
    parser.add_argument("--images", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--results", type=Path)
    asked = parser.parse_args()
    found = []
    for name in asked.networks:
        for images in asked.images:
            spent = measure(name, images, asked.rounds)
            found.append({"network": name, "images": images, "milliseconds": spent})
            print(name, images, {what: round(each, 2) for what, each in spent.items()}, flush=True)
    if asked.results:
        asked.results.write_text(json.dumps({**machine(), "rows": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
