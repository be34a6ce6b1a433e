"""Hooks until a program was prepared, the compiled engine from then on where it is faster."""

from torch import Tensor

from gaia_fast.backends import Choice
from gaia_fast.compiler.preparation import Prepared
from gaia_fast.compiler.runtimes.autotuning import described, fastest, seconds
from gaia_fast.engines.base import EnginePlan
from gaia_fast.engines.compiled import CompiledEngine, Key, key
from gaia_fast.engines.hooks import HooksEngine
from gaia_fast.errors import BackendError, LayerError, ModelError
from gaia_fast.inspection.head import MOST_SIZES
from gaia_fast.measurement import Measurement
from gaia_fast.options import EngineName, Tune
from gaia_fast.recent import Recent


class AutoEngine:
    """See `gaia_fast.engines.base.Engine`. Where the model cannot be compiled, the plan says why, and hooks go on; so
    they do for as many images as were prepared where they are faster than the program."""

    def __init__(self, hooks: HooksEngine, compiled: CompiledEngine) -> None:
        self._hooks, self._compiled = hooks, compiled
        self._refusals: Recent[Key, str] = Recent(MOST_SIZES)
        self._slower: Recent[tuple[Key, int], str] = Recent(MOST_SIZES)  # programs, and by how much

    def plan(self, x: Tensor) -> EnginePlan:
        found = self.program(x)
        if found is not None:
            return self._compiled.plan_of(x, found, "prepared for such images")
        plan = self._hooks.plan(x)
        why = self._refusals.get(key(x)) or self._slower.get((key(x), x.shape[0]))
        return EnginePlan(
            Choice("hooks", why or "takes any eager model; prepare(...) compiles it, for speed"), plan.backend
        )

    def prepare(self, x: Tensor, tune: str | None = None) -> None:
        self._slower.pop((key(x), x.shape[0]))
        try:
            self._compiled.prepare(x, tune)
        except (ModelError, LayerError, BackendError) as error:
            self._refusals.put(key(x), f"not compiled: {error}")
            return
        self._refusals.pop(key(x))
        if (tune or Tune.default()) == Tune.MEASURE and x.device.type == "cpu":
            self._compare(x)

    def _compare(self, x: Tensor) -> None:
        """Keeps hooks for as many images as `x` has where they are faster than the program."""
        compiled, hooks = EngineName.COMPILED.value, EngineName.HOOKS.value
        try:
            spent = seconds({compiled: lambda: self._compiled.score(x), hooks: lambda: self._hooks.score(x)})
        except Exception:  # hooks may need more memory than the program; what is wrong with the images, `score` says
            return
        if fastest(spent) == hooks:
            self._slower.put((key(x), x.shape[0]), f"faster than the program here: {described(spent)}")

    def program(self, x: Tensor) -> Prepared | None:
        return None if self._slower.get((key(x), x.shape[0])) else self._compiled.program(x)

    def score_prepared(self, x: Tensor) -> Measurement | None:
        return None if self._slower.get((key(x), x.shape[0])) else self._compiled.score_prepared(x)

    def score(self, x: Tensor) -> Measurement:
        engine = self._hooks if self.program(x) is None else self._compiled
        return engine.score(x)
