"""Ways to run a program. Each takes (N, C, H, W) images and returns the program's outputs, in order."""

from gaia_fast.compiled.modes.choice import checks_itself, choose, computes_in, make_runner
from gaia_fast.compiled.modes.runner import Meanwhile, Runner, nothing
from gaia_fast.compiled.modes.sizes import FixedSizes

__all__ = [
    "FixedSizes",
    "Meanwhile",
    "Runner",
    "checks_itself",
    "choose",
    "computes_in",
    "make_runner",
    "nothing",
]
