"""Which algorithm a convolution gets, measured on the machine it runs on.

The answers are kept in memory, and in a file of the user's cache for each processor, instruction-set level and build of
the kernels, so that a process that comes later computes in the same way, and at once.
"""

import hashlib
import json
import os
import platform
import threading
import time
from functools import lru_cache
from pathlib import Path

import torch

from gaia_fast.backends import kernels
from gaia_fast.errors import GaiaError
from gaia_fast.files import write_text
from gaia_fast.ops.convolution.packing import Algorithm, packed_size, padded
from gaia_fast.ops.convolution.parts import Pair, Part

# What the model of `packing` chooses stands unless another is faster by so much: less is noise.
_FASTER_BY = 1.05
_RUNS = 5
_LEAST_SECONDS = 2e-4  # shorter runs are repeated
# Weights are read from memory in a network; so many bytes of them are gone through.
_WEIGHT_BYTES = 16 << 20
_MOST_COPIES = 8
# Of more operations than these a part of the images tells as much.
_MOST_OPERATIONS = 1e9

_lock = threading.Lock()
_known: dict[str, int] = {}


def measured_algorithm(part: Part, x: torch.Size, out: Pair, model: Algorithm, others: list[Algorithm]) -> Algorithm:
    """Returns the fastest of some algorithms.

    Args:
        part: the convolution.
        x: the shape of the map, (N, C, H, W).
        out: how many positions it makes, axis by axis.
        model: what is used unless another is clearly faster.
        others: what else could be used.
    """
    if not others:
        return model
    window = part.stride, part.padding, part.dilation
    key = json.dumps([list(part.weights.shape), *window, list(x), torch.get_num_threads()])
    with _lock:
        if not _known:
            _known.update(_read())
        if key not in _known:
            seconds = {each: _seconds(part, x, out, each) for each in (model, *others)}
            fastest = min(seconds, key=lambda each: seconds[each])
            _known[key] = int(fastest if seconds[fastest] * _FASTER_BY < seconds[model] else model)
            _write()
        return Algorithm(_known[key])


def _seconds(part: Part, x: torch.Size, out: Pair, algorithm: Algorithm) -> float:
    """What a convolution by an algorithm takes, at best; of numbers that do not matter."""
    outputs, _, height, width = part.weights.shape
    operations = 2.0 * part.weights.weight.numel() * out[0] * out[1]
    images = max(1, min(x[0], int(_MOST_OPERATIONS / operations)))
    packed = packed_size(part.weights, algorithm)
    copies = max(1, min(_MOST_COPIES, -(-_WEIGHT_BYTES // (4 * packed))))
    weights, given = torch.full((copies * packed,), 0.01), torch.full((images * x[1] * x[2] * x[3],), 0.5)
    y = torch.empty(images * padded(outputs) * out[0] * out[1])
    steps = [
        kernels.ConvolutionStep(
            wave=i,
            algorithm=algorithm,
            x=(-1, given.data_ptr(), x[1]),
            shape=(images, *x[1:]),
            packed=(-1, weights.data_ptr() + 4 * i * packed, 0),
            packed_size=packed,
            out=out,
            outputs=padded(outputs),
            kernel=(height, width),
            stride=part.stride,
            padding=part.padding,
            dilation=part.dilation,
            y_size=out,
            begin=(0, 0),
            step=(1, 1),
            epilogue=kernels.Epilogue(y=(-1, y.data_ptr(), padded(outputs)), channels=outputs),
        )
        for i in range(copies)
    ]
    executable, threads, best = kernels.Executable(steps), torch.get_num_threads(), float("inf")
    executable.run([], threads)
    for _ in range(_RUNS):
        runs, start = 0, time.perf_counter()
        while runs == 0 or time.perf_counter() - start < _LEAST_SECONDS:
            executable.run([], threads)
            runs += 1
        best = min(best, (time.perf_counter() - start) / runs)
    return best / (copies * images)


def cache_file() -> Path | None:
    """Where the answers are kept: in $GAIA_FAST_CACHE, else in the user's cache; None where that is to be nowhere."""
    folder = os.environ.get("GAIA_FAST_CACHE")
    if folder == "":
        return None
    base = Path(folder) if folder else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gaia_fast"
    return base / f"algorithms-{_build()}.json"


@lru_cache
def _build() -> str:
    """The processor, and the build of the kernels, in a few letters."""
    of = hashlib.sha256(Path(str(kernels.__file__)).read_bytes())
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    name = next((line for line in lines if line.startswith("model name")), platform.processor() or platform.machine())
    of.update(name.encode())
    of.update(kernels.cpu_level().encode())
    return of.hexdigest()[:16]


def _read() -> dict[str, int]:
    """The answers of earlier processes; none where there is no such file, or nothing sensible in it."""
    path = cache_file()
    try:
        found = {} if path is None else json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    known = {each.value for each in Algorithm}
    return {key: value for key, value in found.items() if value in known} if isinstance(found, dict) else {}


def _write() -> None:
    """Keeps the answers where that is possible: without them they are measured again."""
    path = cache_file()
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({**_read(), **_known}, indent=0, sort_keys=True) + "\n")
    except (OSError, GaiaError):
        return


def forget() -> None:
    """Forgets what was measured in this process; the file stays."""
    with _lock:
        _known.clear()
