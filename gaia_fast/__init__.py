"""gaia_fast: out-of-distribution scores for PyTorch image classifiers, from their own attribution gradients (GAIA)."""

from gaia_fast import backends, errors, ops, reference
from gaia_fast._version import __version__
from gaia_fast.compiler.package.metadata import read_metadata
from gaia_fast.detector import GaiaA, GaiaZ
from gaia_fast.errors import GaiaError
from gaia_fast.gaia import Gaia
from gaia_fast.loading import load
from gaia_fast.outputs import GaiaOutput, GaiaScores
from gaia_fast.versions import show_versions

__all__ = [
    "Gaia",
    "GaiaA",
    "GaiaError",
    "GaiaOutput",
    "GaiaScores",
    "GaiaZ",
    "__version__",
    "backends",
    "errors",
    "load",
    "ops",
    "read_metadata",
    "reference",
    "show_versions",
]
