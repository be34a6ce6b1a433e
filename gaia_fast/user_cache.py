"""Where what can be computed again is kept for the processes that come later."""

import os
from pathlib import Path


def folder() -> Path | None:
    """$GAIA_FAST_CACHE, else the package's folder in the user's cache; None for nowhere."""
    asked = os.environ.get("GAIA_FAST_CACHE")
    if asked is not None:
        return Path(asked) if asked else None
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gaia_fast"
    except RuntimeError:  # a user without a home
        return None
