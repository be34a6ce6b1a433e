"""Hooks until a program was prepared, the compiled engine from then on where it is faster."""

from torch import Tensor

from gaia_fast.backends import Choice
from gaia_fast.compiler.preparation import Prepared
from gaia_fast.compiler.runtimes.autotuning import described, fastest, seconds
from gaia_fast.engines.base import EnginePlan
from gaia_fast.engines.compiled import CompiledEngine, Key, key
from gaia_fast.engines.hooks import HooksEngine
from gaia_fast.errors import BackendError, GaiaError, LayerError, ModelError
from gaia_fast.inspection.head import MOST_SIZES
from gaia_fast.measurement import Measurement
from gaia_fast.options import EngineName, Tune
from gaia_fast.recent import Recent


class AutoEngine:
    """See `gaia_fast.engines.base.Engine`. Where the model cannot be compiled, the plan says why, and hooks go on."""

    def __init__(self, hooks: HooksEngine, compiled: CompiledEngine) -> None:
        self._hooks, self._compiled = hooks, compiled
        self._refusals: Recent[Key, str] = Recent(MOST_SIZES)

    def plan(self, x: Tensor) -> EnginePlan:
        found = self.program(x)
        if found is not None:
            return self._compiled.plan_of(x, found, "prepared for such images")
        plan = self._hooks.plan(x)
        why = self._refusals.get(key(x)) or "takes any eager model; prepare(...) compiles it, for speed"
        return EnginePlan(Choice("hooks", why), plan.backend)

    def prepare(self, x: Tensor, tune: str | None = None) -> None:
        try:
            self._compiled.prepare(x, tune)
        except (ModelError, LayerError, BackendError) as error:
            self._refusals.put(key(x), f"not compiled: {error}")
            return
        self._refusals.pop(key(x))
        if (tune or Tune.default()) == Tune.MEASURE and x.device.type == "cpu":
            self._compare(x)

    def _compare(self, x: Tensor) -> None:
        """Keeps hooks for images like `x` where they are faster than the program."""
        compiled, hooks = EngineName.COMPILED.value, EngineName.HOOKS.value
        try:
            spent = seconds({compiled: lambda: self._compiled.score(x), hooks: lambda: self._hooks.score(x)})
        except GaiaError:  # of images that cannot be scored: `score` says so
            return
        if fastest(spent) == hooks:
            self._refusals.put(key(x), f"faster than the program here: {described(spent)}")

    def program(self, x: Tensor) -> Prepared | None:
        return None if self._refusals.get(key(x)) else self._compiled.program(x)

    def score_prepared(self, x: Tensor) -> Measurement | None:
        return None if self._refusals.get(key(x)) else self._compiled.score_prepared(x)

    def score(self, x: Tensor) -> Measurement:
        engine = self._hooks if self.program(x) is None else self._compiled
        return engine.score(x)
