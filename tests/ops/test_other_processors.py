"""The C++ kernels on processors that Python does not run on here: cross-compiled, and emulated."""

import shutil
import subprocess
from pathlib import Path

import pytest

from cases import INSTRUMENTED, INTERPRETED

ROOT = Path(__file__).parents[2]
SOURCES = (
    *(f"csrc/cpu/{each}.cpp" for each in ("level", "caches", "active_everywhere", "frobenius", "result_checks")),
    "tests/csrc/kernels_check.cpp",
)
# The emulator has no libraries for Arm.
PROCESSORS = {"this one": ("g++", ""), "Arm": ("aarch64-linux-gnu-g++ -static", "qemu-aarch64")}


if INTERPRETED or INSTRUMENTED:
    pytest.skip("the process with the kernels that users have compiles them for others", allow_module_level=True)


@pytest.mark.parametrize("processor", PROCESSORS)
def test_kernels(processor: str, tmp_path: Path) -> None:
    compiler, emulator = PROCESSORS[processor]
    absent = [each.split()[0] for each in (compiler, emulator) if each and shutil.which(each.split()[0]) is None]
    if absent:
        pytest.skip(f"{' and '.join(absent)} not installed")
    program = str(tmp_path / "check")
    # What CMakeLists.txt has, but for -O3, which takes longer to compile.
    flags = "-std=gnu++17 -O1 -Wall -Wextra -Werror -Wno-psabi -ffp-contract=off -fopenmp -DGAIA_LEVEL=baseline"
    subprocess.run([*compiler.split(), *flags.split(), "-Icsrc", *SOURCES, "-o", program], cwd=ROOT, check=True)
    ran = subprocess.run([*emulator.split(), program], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout == "baseline: 0 wrong\n"
