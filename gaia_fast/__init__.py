"""gaia_fast: out-of-distribution scores for PyTorch image classifiers, from their own attribution gradients (GAIA)."""

from typing import TYPE_CHECKING, Any

from gaia_fast import backends, errors, ops, reference
from gaia_fast._version import __version__
from gaia_fast.compiler.package.metadata import read_metadata
from gaia_fast.detector import GaiaA, GaiaZ
from gaia_fast.errors import GaiaError
from gaia_fast.gaia import Gaia
from gaia_fast.loading import load
from gaia_fast.monitoring import DriftMonitor, DriftReport
from gaia_fast.outputs import GaiaOutput, GaiaScores
from gaia_fast.versions import show_versions

if TYPE_CHECKING:
    from gaia_fast.evaluation.invariants import check_detector

__all__ = [
    "DriftMonitor",
    "DriftReport",
    "Gaia",
    "GaiaA",
    "GaiaError",
    "GaiaOutput",
    "GaiaScores",
    "GaiaZ",
    "__version__",
    "backends",
    "check_detector",
    "errors",
    "load",
    "ops",
    "read_metadata",
    "reference",
    "show_versions",
]


def __getattr__(name: str) -> Any:
    # Evaluation imports scikit-learn, which takes as long as all the rest.
    if name == "check_detector":
        from gaia_fast.evaluation.invariants import check_detector

        return check_detector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
