"""The C++ kernels stay inside their arguments to the byte: every array ends, or begins, at memory nobody may touch.

A buffer of NaN around a tensor shows reads that reach a result; this shows those whose lanes are thrown away as well.
In a process of its own, because what it looks for is a crash.
"""

import subprocess
import sys
from pathlib import Path

import pytest

import gaia_fast
from gaia_fast import backends

from cases import INSTRUMENTED, INTERPRETED

if INSTRUMENTED or INTERPRETED:
    pytest.skip("guard pages are for the kernels that users have", allow_module_level=True)

CHILD = r"""
import ctypes, itertools, mmap, sys
from gaia_fast import _kernels as kernels

libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
PAGE, NONE = mmap.PAGESIZE, 0

class Arena:
    # Some pages between two that may not be touched.
    def __init__(self, pages):
        self.map = mmap.mmap(-1, (pages + 2) * PAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        self.first, self.end = start + PAGE, start + (pages + 1) * PAGE
        for guard in (start, self.end):
            assert libc.mprotect(guard, PAGE, NONE) == 0, ctypes.get_errno()

    def at(self, size, high):
        return self.end - size if high else self.first

g, y, grad_in, scale, out_arena = [Arena(4) for _ in range(5)]
ORDERS = {"rows": (0, 1, 2, 3), "channels": (0, 2, 3, 1), "strided": (0, 1, 3, 2)}
SHAPES = [(1, 1, 1, 1), (1, 3, 1, 5), (2, 17, 3, 3), (1, 37, 1, 1), (1, 15, 4, 4), (1, 65, 2, 3), (1, 1, 67, 3),
          (1, 2, 9, 31), (1, 130, 1, 2)]

def strides(shape, order):
    result, step = [0] * 4, 1
    for dim in reversed(order):
        result[dim], step = step, step * shape[dim]
    return tuple(result), step

for level, shape, order, (dtype, width), high in itertools.product(
    kernels.cpu_levels(), SHAPES, ORDERS, ((0, 4), (1, 2), (2, 2)), (False, True)
):
    print(level, shape, order, dtype, "high" if high else "low", flush=True)
    kernels.set_cpu_level(level)
    steps, numel = strides(shape, ORDERS[order])
    maps = [each.at(numel * width, high) for each in (g, y, grad_in)]
    n, k = shape[:2]
    moments = n * k * 4
    out = out_arena.at(3 * moments, high)
    kernels.channel_moments(maps[0], dtype, shape, steps, out, n * k, k, 1)
    for mask, factors in itertools.product((0, maps[1]), (0, scale.at(k * 4, high))):
        kernels.relu_backward_moments(
            maps[0], mask, factors, maps[2], dtype, shape, steps, steps, steps, out, n * k, k, 1
        )

for columns, high in itertools.product((0, 1, 3, 4, 5, 8, 13), (False, True)):
    print("frobenius", columns, high, flush=True)
    rows, output, score = g.at(2 * columns * 4, high), y.at(8, high), out_arena.at(8, high)
    kernels.frobenius(rows, 2, columns, [0], [columns], [1.0], output, 2.0, score)

if sys.argv[1:] == ["overrun"]:
    kernels.channel_moments(g.at(8, True), 0, (1, 1, 1, 3), (3, 3, 3, 1), out_arena.at(12, True), 1, 1, 1)
print("done", flush=True)
"""

# Python puts the working folder on its path: the package must be found there as this process found it.
HERE = Path(gaia_fast.__file__).parents[1]


def run_child(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, timeout=60, cwd=HERE
    )


pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mprotect by ctypes is written for Linux"),
    pytest.mark.skipif(not backends.available()["cpu"], reason="the C++ kernels are not available"),
]


def test_nothing_outside_the_arguments_is_touched() -> None:
    child = run_child()
    assert child.stdout.endswith("done\n"), f"died with {child.returncode} in {child.stdout.splitlines()[-1:]}"


def test_the_guards_hold() -> None:
    child = run_child("overrun")  # asks for three values where there are two
    assert child.returncode < 0
    assert "frobenius" in child.stdout.splitlines()[-1]
