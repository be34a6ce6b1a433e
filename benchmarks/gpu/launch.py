"""Launches kernels by name, at the sizes that networks have: for profilers, which are given what to look at.

    ncu --profile-from-start off --kernel-name regex:moments benchmarks/gpu/launch.py channel_moments:cuda

Each is launched once before, unseen, so that nothing of what is profiled compiles or loads; then the profiler is
switched on for one call, whose name is printed.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from gpu import calls
from gpu.graph_timing import Call

IMAGES = 128
KIND = calls.MapKind((64, 32, 32), torch.bfloat16, "channels_last")


def named() -> dict[str, Callable[[], Call | None]]:
    """Calls by operation and backend, most wanted first."""
    found: dict[str, Callable[[], Call | None]] = {}
    for name, backend in product((*calls.KERNELS, "frobenius", "count_and_score"), reversed(calls.BACKENDS)):
        found[f"{name}:{backend}"] = partial(_made, name, backend)
    return found


def _made(name: str, backend: str) -> Call | None:
    if name == "frobenius":
        return calls.frobenius(IMAGES, backend)[0]
    if name == "count_and_score":
        found = calls.count_and_score(IMAGES, KIND.dtype, backend)
        return None if found is None else found[0]
    return calls.KERNELS[name].make(KIND.make(IMAGES), backend)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(named())}; all by default")
    wanted: list[str] = parser.parse_args().names or [*named()]
    if unknown := [name for name in wanted if name not in named()]:
        parser.error(f"no such kernel: {', '.join(unknown)}")
    failed = False
    for name in wanted:
        try:
            call = named()[name]()
            if call is None:
                print(f"not in this version: {name}", flush=True)
                continue
            call()
            torch.cuda.synchronize()
            print(f"launching {name}", flush=True)
            torch.cuda.profiler.start()
            call()
            torch.cuda.synchronize()
            torch.cuda.profiler.stop()
        except Exception as error:
            failed = True
            print(f"FAILED {name}: {type(error).__name__}: {str(error)[:300]}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
