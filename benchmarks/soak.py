"""A hundred thousand calls: memory and hooks must be where they were. Run: .venv/bin/python benchmarks/soak.py

On a network of one convolution and one norm, 8x8 images, one thread: what may grow is the engine's own.
"""

import argparse
import gc
import resource
import time

import torch
from torch import nn

from gaia_fast import GaiaA, GaiaZ


def resident_kilobytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() // 1024


def hooks(model: nn.Module) -> int:
    return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in model.modules())


def main(calls: int) -> None:
    torch.set_num_threads(1)
    conv = nn.Conv2d(3, 8, 3, padding=1)
    model = nn.Sequential(
        conv, nn.BatchNorm2d(8), nn.ReLU(True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    ).eval()
    x = torch.randn(1, 3, 8, 8)
    detectors = [GaiaZ(model), GaiaA(model)]
    for _ in range(2000):
        for detector in detectors:
            detector(x)
    gc.collect()
    memory, objects, start = resident_kilobytes(), len(gc.get_objects()), time.perf_counter()
    for _ in range(calls // len(detectors)):
        for detector in detectors:
            detector(x)
    seconds = time.perf_counter() - start
    grown = resident_kilobytes() - memory
    gc.collect()
    print(
        f"{calls} calls in {seconds:.0f} s ({seconds / calls * 1e6:.0f} us each): resident memory {grown:+d} kB, "
        f"objects {len(gc.get_objects()) - objects:+d}, hooks left {hooks(model)}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=100_000)
    main(parser.parse_args().calls)
