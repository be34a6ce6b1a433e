"""What stops a forward pass: operations and bytes of its convolutions by class, and what the processor does at most.

Run: .venv/bin/python benchmarks/bounds.py resnet50 mobilenet_v2 --images 1 --threads 2

Peaks are measured in the same run: products of large matrices (PyTorch's), and a copy larger than all caches. A class
is bound by max(operations / peak, bytes / bandwidth), weights read once and maps read and written once; a network by
the sum. Operations are those of direct convolutions: Winograd's minimal filtering needs fewer, so that the rate may
exceed the peak. Beside it stand native's own pass, and GAIA-Z's.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from runtimes import NETWORKS, create

from gaia_fast import GaiaZ
from gaia_fast.compiler.frontend.capture import capture
from gaia_fast.compiler.ir.rewriting import CONVOLUTIONS
from gaia_fast.compiler.pipeline import CAPTURED, run_passes

from plain import plain


def least(run: Callable[[], Any], repeats: int = 7) -> float:
    """The least seconds of some runs."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def peaks() -> tuple[float, float]:
    """Operations and bytes a second."""
    a, b = torch.randn(1536, 1536), torch.randn(1536, 1536)
    source = torch.ones(1 << 26)
    target = torch.empty_like(source)
    return 2 * 1536**3 / least(lambda: a @ b), 8 * source.numel() / least(lambda: target.copy_(source))


def kind(weight: torch.Size, groups: int) -> str:
    if groups > 1:
        return "depthwise" if weight[1] == 1 else "grouped"
    return f"{weight[2]}x{weight[3]}"


def classes(name: str, x: torch.Tensor) -> dict[str, list[float]]:
    """For each class of convolutions its number, operations and bytes."""
    captured = capture(create(name), x, [], None)
    run_passes(CAPTURED, captured.graph)
    found: dict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
    images = x.shape[0]
    for node in captured.graph.graph.nodes:
        if node.target not in CONVOLUTIONS:
            continue
        weight, out, given = (each.meta["val"].shape for each in (node.args[1], node, node.args[0]))
        groups = node.args[-1] if isinstance(node.args[-1], int) else 1
        area, read = int(out[2]) * int(out[3]), int(given[1]) * int(given[2]) * int(given[3])
        row = found[kind(weight, groups)]
        row[0] += 1
        row[1] += 2.0 * weight.numel() * area * images
        row[2] += 4.0 * (weight.numel() + images * (read + int(out[1]) * area))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("networks", nargs="+", choices=NETWORKS)
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rate, bandwidth = peaks()
    print(f"{given.threads} threads: {rate / 1e9:.0f} GFLOP/s, {bandwidth / 1e9:.0f} GB/s; {given.images} images\n")
    print("| network | class: number, GFLOP, MB, bound ms | bound, ms | native, ms | GFLOP/s | GAIA-Z, ms |")
    print("|---|---|---|---|---|---|")
    for name in given.networks:
        x = torch.randn(given.images, 3, NETWORKS[name][1], NETWORKS[name][1])
        bound, operations, cells = 0.0, 0.0, []
        for each, (count, flops, size) in sorted(classes(name, x).items(), key=lambda item: -item[1][1]):
            seconds = max(flops / rate, size / bandwidth)
            bound, operations = bound + seconds, operations + flops
            cells.append(f"{each}: {count:.0f}, {flops / 1e9:.2f}, {size / 1e6:.0f}, {seconds * 1e3:.2f}")
        run = plain(create(name), "native", x)
        detector = GaiaZ(create(name), engine="compiled", runtime="native").prepare(x)
        with torch.no_grad():
            spent = least(lambda run=run, x=x: run(x), 15)  # type: ignore[misc]
        score = least(lambda detector=detector, x=x: detector.score(x), 15)  # type: ignore[misc]
        row = f"{bound * 1e3:.1f} | {spent * 1e3:.1f} | {operations / spent / 1e9:.0f} | {score * 1e3:.1f}"
        print(f"| {name} | {'; '.join(cells)} | {row} |", flush=True)


if __name__ == "__main__":
    main()
