"""Hooks until a program was prepared, the compiled engine from then on where it is faster; no slow path unsaid."""

import os
import sys
import warnings
from functools import partial
from pathlib import Path

from torch import Tensor

from gaia_fast.backends import Choice
from gaia_fast.compiler.preparation import Prepared
from gaia_fast.compiler.program_cache import ProgramCache
from gaia_fast.compiler.runtimes import autotuning
from gaia_fast.engines.base import EnginePlan
from gaia_fast.engines.compiled import CompiledEngine, Key, Refusal, key
from gaia_fast.engines.hooks import HooksEngine
from gaia_fast.errors import BackendError, LayerError, ModelError, UnpreparedError, UnpreparedWarning
from gaia_fast.inspection.head import MOST_SIZES
from gaia_fast.measurement import Measurement
from gaia_fast.options import AUTO, EngineName, Tune, Unprepared
from gaia_fast.recent import Recent

_PACKAGE = f"{Path(__file__).parents[1]}{os.sep}"


class AutoEngine:
    """See `gaia_fast.engines.base.Engine`. Where the model cannot be compiled, the plan says why, and hooks go on; so
    they do for as many images as were prepared where they are faster than the program.

    Args:
        hooks, compiled: the engines.
        on_unprepared: what is done with images that no program was prepared for; of `gaia_fast.options.Unprepared`.
    """

    def __init__(self, hooks: HooksEngine, compiled: CompiledEngine, on_unprepared: str) -> None:
        self._hooks, self._compiled, self._on_unprepared = hooks, compiled, on_unprepared
        self._refusals: Recent[Key, Refusal] = Recent(MOST_SIZES)
        self._slower: Recent[tuple[Key, int], str] = Recent(MOST_SIZES)  # programs, and by how much
        self._warned: Recent[Key, bool] = Recent(MOST_SIZES)

    def plan(self, x: Tensor) -> EnginePlan:
        found = self.program(x)
        if found is not None:
            return self._compiled.plan_of(x, found, "prepared for such images")
        plan = self._hooks.plan(x)
        why = self._refusal(x) or self._slower.get((key(x), x.shape[0]))
        return EnginePlan(
            Choice("hooks", why or "takes any eager model; prepare(...) compiles it, for speed"), plan.backend
        )

    def prepare(self, x: Tensor, tune: str | None = None, cache: ProgramCache | None = None) -> None:
        self._slower.pop((key(x), x.shape[0]))
        self._warned.pop(key(x))
        try:
            self._compiled.prepare(x, tune, cache)
        except (ModelError, LayerError, BackendError) as error:
            forced = isinstance(error, BackendError) and self._compiled.runtime != AUTO
            if self._on_unprepared == Unprepared.ERROR or forced:
                raise
            self._refusals.put(key(x), self._compiled.refused(x, f"not compiled: {error}"))
            _warn(f"the model cannot be compiled, and is scored by hooks, which is slower: {error}")
            return
        self._refusals.pop(key(x))
        if (self._compiled.tune or Tune.default()) == Tune.MEASURE and x.device.type == "cpu":
            self._compare(x)

    def _compare(self, x: Tensor) -> None:
        """Keeps hooks for as many images as `x` has where they are faster than the program."""
        compiled, hooks = EngineName.COMPILED.value, EngineName.HOOKS.value
        prepared = self._compiled.program(x)
        if prepared is None:  # another thread has changed the model meanwhile
            return

        def measure() -> dict[str, float]:
            # With the program in hand: to score may prepare another, and who prepares waits for who measures.
            program = partial(self._compiled.measure, x, prepared, guarded=True)
            return autotuning.seconds({compiled: program, hooks: lambda: self._hooks.score(x)})

        rivals = [f"{compiled}, {prepared.runtime.name}", hooks]
        try:
            name = autotuning.key(prepared.program.digest, x, rivals, prepared.dynamic)
            spent = autotuning.ANSWERS.get(name, measure)
        except Exception:  # hooks may need more memory than the program; what is wrong with the images, `score` says
            return
        if autotuning.fastest({each: spent[each] for each in (compiled, hooks)}) == hooks:
            why = f"faster than the program here: {autotuning.described(spent)}"
            self._slower.put((key(x), x.shape[0]), why)

    def program(self, x: Tensor) -> Prepared | None:
        return None if self._slower.get((key(x), x.shape[0])) else self._compiled.program(x)

    def score_prepared(self, x: Tensor) -> Measurement | None:
        return None if self._slower.get((key(x), x.shape[0])) else self._compiled.score_prepared(x)

    def score(self, x: Tensor) -> Measurement:
        if self.program(x) is None and not self._slower.get((key(x), x.shape[0])):
            self._unprepared(x)
        engine = self._hooks if self.program(x) is None else self._compiled
        return engine.score(x)

    def _refusal(self, x: Tensor) -> str:
        """Why the model could not be compiled for images like `x`, as far as that still holds; else empty."""
        found = self._refusals.get(key(x))
        return found.reason if found is not None and found.holds(x) else ""

    def _unprepared(self, x: Tensor) -> None:
        """Does what was asked for with images that no program was prepared for."""
        if self._refusal(x) and self._on_unprepared != Unprepared.ERROR:
            return  # it was said when it was tried
        images = f"images of {tuple(x.shape[1:])} {x.dtype}".replace("torch.", "")
        if self._on_unprepared == Unprepared.PREPARE:
            self.prepare(x)
        elif self._on_unprepared == Unprepared.ERROR:
            raise UnpreparedError(
                f"there is no program for {images}: {self._compiled.programs(x)}; call prepare(x) with such images "
                "first, or take on_unprepared='prepare' or 'warn'"
            )
        elif self._warned.get(key(x)) is None:
            self._warned.put(key(x), True)
            _warn(
                f"{images} are scored by hooks, slower than by a program: {self._compiled.programs(x)}. Call "
                "prepare(x) with such images, or take on_unprepared='prepare'; engine='hooks' says that this is meant"
            )


def _warn(message: str) -> None:
    """Warns at the line that called this package."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UnpreparedWarning, stacklevel=level)
