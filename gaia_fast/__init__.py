"""gaia_fast: out-of-distribution scores for PyTorch image classifiers, from their own attribution gradients (GAIA)."""

from gaia_fast import backends, errors, ops, reference
from gaia_fast._version import __version__
from gaia_fast.detector import GaiaA, GaiaOutput, GaiaZ
from gaia_fast.errors import GaiaError

__all__ = ["GaiaA", "GaiaError", "GaiaOutput", "GaiaZ", "__version__", "backends", "errors", "ops", "reference"]
