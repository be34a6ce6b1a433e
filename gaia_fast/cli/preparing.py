"""Whether images are scored by a compiled program, where the command line is left to choose."""

import warnings
from pathlib import Path

from gaia_fast.batch_scoring.chunks import Prepared
from gaia_fast.cli.output import note
from gaia_fast.data import ImageSource
from gaia_fast.data.presets import Preset
from gaia_fast.errors import UnpreparedWarning
from gaia_fast.evaluation.image_sets import Detectors, each_of, model_input
from gaia_fast.options import AUTO, EngineName, Tune

# To prepare WideResNet-40-2 or ResNet-50 takes as long as hooks do for some hundreds of their images.
WORTH_COMPILING = 1000


def prepare_for(
    detectors: Detectors,
    engine: str,
    source: ImageSource,
    preset: Preset,
    images: int,
    batch_size: int,
    cache_dir: Path | None = None,
) -> Prepared | None:
    """Compiles for batches of a source where engine is "auto", and says on stderr which engine it is then, and why.

    Where programs are kept, a compiled engine that was asked for is prepared, too, so that what goes on later scores by
    the same program.

    Args:
        detectors: that score it.
        engine: as asked for.
        source: the images that are scored first.
        preset: that prepares them.
        images: how many are scored in all.
        batch_size: how many together.
        cache_dir: where programs are kept, and looked for.

    Returns:
        What was prepared for, and how, if at all.
    """
    if engine == EngineName.COMPILED and cache_dir is not None and preset.input_size is not None:
        return _prepare(detectors, source, batch_size, Tune.default(), cache_dir)
    if engine != AUTO:
        return None
    warnings.simplefilter("ignore", UnpreparedWarning)  # said here, in the command line's own terms
    if images < WORTH_COMPILING or preset.input_size is None:
        why = f"{images} images are too few to compile for" if preset.input_size else "the images' sizes may differ"
        note(f"engine hooks: {why}; --engine compiled does it all the same")
        return None
    prepared = _prepare(detectors, source, batch_size, Tune.MODEL, cache_dir)
    for detector in each_of(detectors):
        engine_plan = detector.plan(prepared.example).engine
        note(f"engine {engine_plan.name}: {engine_plan.why}")
    return prepared


def _prepare(
    detectors: Detectors, source: ImageSource, batch_size: int, tune: Tune, cache_dir: Path | None
) -> Prepared:
    every = each_of(detectors)
    example = model_input(every[0].model, source.first(batch_size).images)
    for detector in every:
        detector.prepare(example, tune, cache_dir)
    return Prepared(example, tune)
