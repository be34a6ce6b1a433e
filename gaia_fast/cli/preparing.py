"""Whether images are scored by a compiled program, where the command line is left to choose."""

import warnings

from gaia_fast.cli.output import note
from gaia_fast.data import ImageSource
from gaia_fast.data.presets import Preset
from gaia_fast.errors import UnpreparedWarning
from gaia_fast.evaluation.image_sets import Detectors, model_input
from gaia_fast.gaia import Gaia
from gaia_fast.options import AUTO

# To prepare WideResNet-40-2 or ResNet-50 takes as long as hooks do for some hundreds of their images.
WORTH_COMPILING = 1000


def prepare_for(
    detectors: Detectors, engine: str, source: ImageSource, preset: Preset, images: int, batch_size: int
) -> None:
    """Compiles for batches of a source where engine is "auto", and says on stderr which engine it is then, and why.

    Args:
        detectors: that score it.
        engine: as asked for.
        source: the images that are scored first.
        preset: that prepares them.
        images: how many are scored in all.
        batch_size: how many together.
    """
    if engine != AUTO:
        return
    warnings.simplefilter("ignore", UnpreparedWarning)  # said here, in the command line's own terms
    if images < WORTH_COMPILING or preset.input_size is None:
        why = f"{images} images are too few to compile for" if preset.input_size else "the images' sizes may differ"
        note(f"engine hooks: {why}; --engine compiled does it all the same")
        return
    every = [detectors] if isinstance(detectors, Gaia) else list(detectors.values())
    example = model_input(every[0].model, source.first(batch_size).images)
    for detector in every:
        engine_plan = detector.prepare(example, tune="model").plan(example).engine
        note(f"engine {engine_plan.name}: {engine_plan.why}")
