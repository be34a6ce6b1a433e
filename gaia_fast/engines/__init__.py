"""Ways to measure images. `make_engine` is the only place that knows them all."""

from gaia_fast.compiler.program_cache import ProgramCache
from gaia_fast.engines.auto import AutoEngine
from gaia_fast.engines.base import Engine, EnginePlan, Subject
from gaia_fast.engines.compiled import CompiledEngine, export_program
from gaia_fast.engines.hooks import HooksEngine
from gaia_fast.engines.reference import ReferenceEngine
from gaia_fast.options import EngineName

__all__ = ["Engine", "EnginePlan", "Subject", "export_program", "make_engine"]


def make_engine(
    name: str, subject: Subject, backend: str, runtime: str, on_unprepared: str, cache: ProgramCache | None = None
) -> Engine:
    """Makes an engine.

    Args:
        name: of `gaia_fast.options.EngineName`, or "auto".
        subject: what is measured.
        backend: the kernels of hooks; see `gaia_fast.backends`.
        runtime: how compiled programs run: of `gaia_fast.options.Runtime`, or "auto".
        on_unprepared: of "auto", what is done with images that no program was prepared for.
        cache: where programs are kept, as far as that was said before.
    """
    if name == EngineName.REFERENCE:
        return ReferenceEngine(subject, backend)
    hooks = HooksEngine(subject, backend)
    if name == EngineName.HOOKS:
        return hooks
    compiled = CompiledEngine(subject, runtime, hooks, cache)
    return compiled if name == EngineName.COMPILED else AutoEngine(hooks, compiled, on_unprepared)
