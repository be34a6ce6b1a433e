"""Images in, batches out: folders, archives, tables, the presets that prepare them, and stand-ins for OOD images."""

from gaia_fast.data.images import load_images
from gaia_fast.data.presets import PRESETS, Preset
from gaia_fast.data.source import MAX_PIXELS, Batch, ImageSource
from gaia_fast.data.surrogates import SurrogateSource, surrogate_sources

__all__ = [
    "MAX_PIXELS",
    "PRESETS",
    "Batch",
    "ImageSource",
    "Preset",
    "SurrogateSource",
    "load_images",
    "surrogate_sources",
]
