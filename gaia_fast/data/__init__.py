"""Images in, batches out: folders, archives and the presets that prepare them."""

from gaia_fast.data.images import Batch, ImageSource, load_images
from gaia_fast.data.presets import PRESETS, Preset

__all__ = ["PRESETS", "Batch", "ImageSource", "Preset", "load_images"]
