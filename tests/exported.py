"""Exported files, loaded as what they are known to be."""

from pathlib import Path

from gaia_fast import load
from gaia_fast.compiler.package.reading import ExportedDetector, ExportedJointDetector


def load_one(path: str | Path) -> ExportedDetector:
    """A file of one score."""
    found = load(path)
    assert isinstance(found, ExportedDetector)
    return found


def load_several(path: str | Path) -> ExportedJointDetector:
    """A file of several scores."""
    found = load(path)
    assert isinstance(found, ExportedJointDetector)
    return found
