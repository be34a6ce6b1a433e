"""gaia_fast: out-of-distribution scores from attribution gradients (GAIA), at the lowest latency possible."""

from gaia_fast import backends, ops, reference
from gaia_fast._version import __version__
from gaia_fast.detector import GaiaA, GaiaOutput, GaiaZ
from gaia_fast.errors import GaiaError

__all__ = ["GaiaA", "GaiaError", "GaiaOutput", "GaiaZ", "__version__", "backends", "ops", "reference"]
