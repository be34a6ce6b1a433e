"""Images in, batches out: folders, archives and the presets that prepare them."""

from gaia_fast.data.images import MAX_PIXELS, Batch, ImageSource, load_images
from gaia_fast.data.presets import PRESETS, Preset

__all__ = ["MAX_PIXELS", "PRESETS", "Batch", "ImageSource", "Preset", "load_images"]
