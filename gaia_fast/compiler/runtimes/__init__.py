"""Ways to run a program. Each takes (N, C, H, W) images and returns the program's outputs, in order."""

from gaia_fast.compiler.runtimes.autotuning import version
from gaia_fast.compiler.runtimes.choice import (
    check_forced,
    checks_memory,
    checks_results,
    choose,
    computes_in,
    conversion,
    instead_of,
    make_runner,
    rivals,
)
from gaia_fast.compiler.runtimes.fixed_sizes import FixedSizes
from gaia_fast.compiler.runtimes.native import Native
from gaia_fast.compiler.runtimes.runner import Guard, Runner, no_guard

__all__ = [
    "FixedSizes",
    "Guard",
    "Native",
    "Runner",
    "check_forced",
    "checks_memory",
    "checks_results",
    "choose",
    "computes_in",
    "conversion",
    "instead_of",
    "make_runner",
    "no_guard",
    "rivals",
    "version",
]
