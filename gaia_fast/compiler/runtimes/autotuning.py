"""Which runtime a program gets, measured on the machine it runs on.

The answers are kept: see `gaia_fast.timing_cache`.
"""

import importlib.metadata
import json
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gaia_fast.backends import Choice
from gaia_fast.compiler.runtimes.runner import Runner
from gaia_fast.timing_cache import TimingCache

_ROUNDS = 5
_LEAST_SECONDS = 0.01  # shorter runs are repeated
_MOST_SECONDS = 2.0  # after so long a round is the last
# What is so much slower at first is not timed again.
_HOPELESS = 1.5
# The first of several stands unless another is faster by so much: less is noise.
_FASTER_BY = 1.05


def _is_seconds(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(each, float) for each in value.values())


ANSWERS = TimingCache("runtimes", _is_seconds)


def key(digest: str, x: Tensor, runtimes: list[str], dynamic: bool) -> str:
    """Returns what decides how long a program takes in some runtimes, but for the machine and the weights' values.

    Args:
        digest: of the program.
        x: images.
        runtimes: their names.
        dynamic: whether it takes any number of images.
    """
    versions = {name: version(name) for name in ("torch", "gaia-fast", *runtimes)}
    threads = torch.get_num_threads(), os.environ.get("OMP_WAIT_POLICY", "")
    return json.dumps([digest, list(x.shape), dynamic, threads, versions])


def seconds(runs: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Returns what each of some functions takes, the least of a few runs; they are run in turn."""
    best: dict[str, float] = {}
    begin = time.perf_counter()
    for _ in range(_ROUNDS):
        for name, run in runs.items():
            if best.get(name, 0.0) > _HOPELESS * min(best.values(), default=0.0):
                continue
            run()  # brings the caches back
            calls, start = 0, time.perf_counter()
            while calls == 0 or time.perf_counter() - start < _LEAST_SECONDS:
                run()
                calls += 1
            best[name] = min(best.get(name, float("inf")), (time.perf_counter() - start) / calls)
        if time.perf_counter() - begin > _MOST_SECONDS:
            break
    return best


def time_runners(runners: Mapping[str, Runner], x: Tensor) -> dict[str, float]:
    """Returns the seconds that runners take for images `x`."""
    return seconds({name: lambda each=runner: each(x) for name, runner in runners.items()})  # type: ignore[misc]


def fastest(spent: Mapping[str, float]) -> str:
    """Returns the first of some runs, in their order, or one that is clearly faster."""
    first, best = next(iter(spent)), min(spent, key=lambda name: spent[name])
    return best if spent[best] * _FASTER_BY < spent[first] else first


def choice(spent: Mapping[str, float], x: Tensor) -> Choice:
    """Returns the fastest runtime, and what was measured."""
    images = f"{x.shape[0]} image{'s' if x.shape[0] > 1 else ''}"
    return Choice(fastest(spent), f"fastest measured here for {images}: {described(spent)}")


def described(spent: Mapping[str, float]) -> str:
    """Returns what was measured, fastest first."""
    return ", ".join(f"{name} {spent[name] * 1e3:.3g} ms" for name in sorted(spent, key=lambda name: spent[name]))


def version(package: str) -> str:
    """Returns which release of a package is installed; empty for none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
