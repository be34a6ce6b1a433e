"""Hooks until a program was prepared, the compiled engine from then on."""

from torch import Tensor

from gaia_fast.backends import Choice
from gaia_fast.compiler.preparation import Prepared
from gaia_fast.engines.base import EnginePlan
from gaia_fast.engines.compiled import CompiledEngine
from gaia_fast.engines.hooks import HooksEngine
from gaia_fast.errors import BackendError, LayerError, ModelError
from gaia_fast.inspection.head import MOST_SIZES
from gaia_fast.measurement import Measurement
from gaia_fast.recent import Recent


class AutoEngine:
    """See `gaia_fast.engines.base.Engine`. Where the model cannot be compiled, the plan says why, and hooks go on."""

    def __init__(self, hooks: HooksEngine, compiled: CompiledEngine) -> None:
        self._hooks, self._compiled = hooks, compiled
        self._refusals: Recent[object, str] = Recent(MOST_SIZES)

    def plan(self, x: Tensor) -> EnginePlan:
        found = self._compiled.program(x)
        if found is not None:
            return self._compiled.plan_of(x, found, "prepared for such images")
        plan = self._hooks.plan(x)
        refusal = self._refusals.get(x.shape[1:])
        why = f"not compiled: {refusal}" if refusal else "takes any eager model; prepare(...) compiles it, for speed"
        return EnginePlan(Choice("hooks", why), plan.backend)

    def prepare(self, x: Tensor, tune: str | None = None) -> None:
        try:
            self._compiled.prepare(x, tune)
            self._refusals.pop(x.shape[1:])
        except (ModelError, LayerError, BackendError) as error:
            self._refusals.put(x.shape[1:], str(error))

    def program(self, x: Tensor) -> Prepared | None:
        return self._compiled.program(x)

    def score_prepared(self, x: Tensor) -> Measurement | None:
        return self._compiled.score_prepared(x)

    def score(self, x: Tensor) -> Measurement:
        engine = self._hooks if self._compiled.program(x) is None else self._compiled
        return engine.score(x)
