"""What a detector will do on a given batch, and why: values that print as tables."""

from dataclasses import dataclass

from gaia_fast.backends import Choice
from gaia_fast.measurement import FeatureMap
from gaia_fast.method import Method


@dataclass(frozen=True)
class Plan:
    """The inspected maps, the head, the engine and the backend of a detector for one kind of input.

    Attributes:
        method: the measurement and its options.
        model: the model's class name.
        images: the shape of the example batch.
        maps: the inspected maps, in the order in which the model makes them.
        head, last: module names of the head and of the source of A_last; None where the method needs none.
        engine, backend: what was picked, and why.
        runtime: how the compiled program runs, and why; None in the other engines.
        derivations: for each map, how the compiled program gets its entries of Lambda; empty in the other engines.
        layers: the other name than the modules' own that was asked for, and whether maps of tokens are among them; else
            empty.
        programs: how many programs are kept, and at most; the one used least recently goes. Empty in the other engines.
    """

    method: Method
    model: str
    images: tuple[int, ...]
    maps: tuple[FeatureMap, ...]
    head: str | None
    last: str | None
    engine: Choice
    backend: Choice
    runtime: Choice | None = None
    derivations: tuple[str, ...] = ()
    programs: str = ""
    layers: str = ""

    @property
    def channels(self) -> int:
        """The number of entries of Lambda without its padding, sum of K_l."""
        return sum(each.channels for each in self.maps)

    def __str__(self) -> str:
        head = f"{self._asked}, on {self.model} with images {self.images}"
        return "\n".join([head, *_engine_lines(self), *self._map_lines()])

    @property
    def _asked(self) -> str:
        options = f", fusion {self.method.fusion}, statistic {self.method.statistic}" if self.head else ""
        return f"{self.method.name}{options}, p = {self.method.p:g}"

    def _map_lines(self) -> list[str]:
        lines = [f"layers   {self.layers}"] if self.layers else []
        if self.head is not None:
            lines.append(f"head     {self.head}: Phi is its input")
        if self.last is not None:
            lines.append(f"A_last   output of {self.last}")
        width = max([len(each.name) for each in self.maps] + [len("layer")])
        derivations = self.derivations or ("",) * len(self.maps)
        lines.append(f"{'layer':<{width}}  channels  {'map':<9}{'  derivation' if self.derivations else ''}".rstrip())
        lines += [
            f"{each.name:<{width}}  {each.channels:>8}  {f'{each.height}x{each.width}':<9}  {derivation}".rstrip()
            for each, derivation in zip(self.maps, derivations, strict=True)
        ]
        lines.append(f"{len(self.maps)} layers, {self.channels} channels")
        return lines


@dataclass(frozen=True)
class JointPlan:
    """The plan of a detector of several scores, whose forward pass they share.

    Attributes:
        model, images, engine, backend, runtime, programs: as in `Plan`.
        scores: all of them, by name; those that are no keys of `plans` are of the logits alone.
        plans: of each GAIA score, by its name.
    """

    model: str
    images: tuple[int, ...]
    engine: Choice
    backend: Choice
    runtime: Choice | None
    programs: str
    scores: tuple[str, ...]
    plans: dict[str, Plan]

    def __str__(self) -> str:
        lines = [f"{', '.join(self.scores)} on {self.model} with images {self.images}", *_engine_lines(self)]
        for score in self.scores:
            plan = self.plans.get(score)
            lines += ["", f"{score}: of the logits"] if plan is None else ["", plan._asked, *plan._map_lines()]
        return "\n".join(lines)


def _engine_lines(plan: Plan | JointPlan) -> list[str]:
    lines = [f"engine   {plan.engine.name}: {plan.engine.why}", f"backend  {plan.backend.name}: {plan.backend.why}"]
    if plan.runtime is not None:
        lines += [f"runtime  {plan.runtime.name}: {plan.runtime.why}", f"programs {plan.programs}"]
    return lines
