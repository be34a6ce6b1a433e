"""The compiled engine: programs made of a model, kept while it is what it was, and run."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gaia_fast.backends import Choice
from gaia_fast.compiler import runtimes
from gaia_fast.compiler.ir.results import LOGITS, PRECONDITIONS, ResultNames
from gaia_fast.compiler.package.checking import FileCheck
from gaia_fast.compiler.package.preprocessing import check_preset
from gaia_fast.compiler.package.writing import Sized, check_format, computes_in, export
from gaia_fast.compiler.preparation import Prepared, Source, prepare
from gaia_fast.compiler.program import with_decisions, without_recourse
from gaia_fast.compiler.program_cache import ProgramCache
from gaia_fast.data.presets import Preset
from gaia_fast.engines.base import EnginePlan, Subject
from gaia_fast.engines.hooks import HooksEngine
from gaia_fast.errors import GaiaError, ModelError, first_line
from gaia_fast.inspection import checks, guards
from gaia_fast.inspection.head import Head
from gaia_fast.inspection.survey import nothing
from gaia_fast.measurement import Measurement, Result
from gaia_fast.ops import result_checks
from gaia_fast.options import Tune
from gaia_fast.recent import Recent

Key = tuple[torch.Size, torch.dtype, torch.device]

# One program holds the model's weights once more: sizes of images without end would fill the memory.
MOST_PROGRAMS = 16
# A model that keeps something for each size of a batch has changed once it was compared on other numbers of images.
_TRIES = 2


class _ChangedError(Exception):
    """The model is not what the program was made of."""


@dataclass(frozen=True)
class Refusal:
    """Why a model could not be compiled.

    Attributes:
        reason: the message.
        state: of the model then.
        autocast: whether autocast was on.
    """

    reason: str
    state: guards.ModelGuard
    autocast: bool

    def holds(self, x: Tensor) -> bool:
        """Whether the reason may still hold: nothing that it may rest on is otherwise."""
        return self.autocast == torch.is_autocast_enabled(x.device.type) and bool(self.state.holds())


class CompiledEngine:
    """See `gaia_fast.engines.base.Engine`. Prepares programs, keeps them, and runs them.

    Args:
        subject: what is measured.
        runtime: of `gaia_fast.options.Runtime`, or "auto".
        hooks: for images that a program cannot score.
        cache: where programs are kept; None for nowhere, until `prepare` names a place.
    """

    def __init__(self, subject: Subject, runtime: str, hooks: HooksEngine, cache: ProgramCache | None = None) -> None:
        self._subject, self.runtime, self._hooks = subject, runtime, hooks
        self._prepared: Recent[Key, Prepared] = Recent(MOST_PROGRAMS)
        self._lock = threading.Lock()
        # As last asked for: what is prepared unasked is prepared so, too.
        self.tune: str | None = None
        self.cache = cache

    def program(self, x: Tensor) -> Prepared | None:
        """The program for images like `x`, unless there is none or the model has changed since."""
        found = self._prepared.get(key(x))
        return found if found is not None and found.state.holds() else None

    def refused(self, x: Tensor, reason: str) -> Refusal:
        """Returns a reason why the model was not compiled for images like `x`, with what it may rest on."""
        subject = self._subject
        try:
            state = guards.settled(subject.modules, lambda: subject.passes.run(subject.model, x, nothing), values=False)
        except Exception:  # the model's own, which `score` will say
            state = guards.ModelGuard(subject.modules, values=False)
        return Refusal(reason, state, torch.is_autocast_enabled(x.device.type))

    def programs(self, x: Tensor) -> str:
        """What is prepared, for a message about images that have no program."""
        if self._prepared.get(key(x)) is not None:
            return "the model has changed since it was prepared for them"
        kinds = self._prepared.keys()
        sizes = ", ".join(sorted({f"{tuple(size)} {dtype}".replace("torch.", "") for size, dtype, _ in kinds}))
        return f"it was prepared for {sizes}" if sizes else "nothing was prepared"

    def plan(self, x: Tensor) -> EnginePlan:
        return self.plan_of(x, self._prepare(x), "asked for")

    def plan_of(self, x: Tensor, prepared: Prepared, why: str) -> EnginePlan:
        """Returns the plan for images that have a program; `why` the engine is this one."""
        programs = f"{len(self._prepared)} of at most {self._prepared.most}, one a size of images"
        backend = self._hooks.plan(x).backend
        runtime = prepared.runtime
        if isinstance(prepared.runner, runtimes.FixedSizes) and (how := prepared.runner.how):
            runtime = Choice(runtime.name, f"{runtime.why}; {how}")
        return EnginePlan(Choice("compiled", why), backend, runtime, prepared.derivations, programs)

    def prepare(self, x: Tensor, tune: str | None = None, cache: ProgramCache | None = None) -> None:
        if cache is not None and self.cache is not None and cache.folder == self.cache.folder:
            cache = self.cache
        self.tune, self.cache = tune or self.tune, cache or self.cache
        self._prepare(x, kept=cache is not None)

    def _prepare(self, x: Tensor, kept: bool = False) -> Prepared:
        """The program for images like `x`, compared with the reference on them where it is new.

        Args:
            kept: whether it is to be in the cache, so that one that is not is made anew.
        """
        head = self._subject.head(x)
        with self._lock:
            found = self.program(x)
            if found is not None and kept and found.kept_in is not self.cache:
                found = None
            if found is None:
                source = _source(self._subject, head)
                tune = self.tune or Tune.default()
                for _ in range(_TRIES):
                    found = prepare(source, x, self.runtime, tune=tune, cache=self.cache)
                    if found.state.holds():
                        break
                assert found is not None
                self._prepared.put(key(x), found)
            elif isinstance(found.runner, runtimes.FixedSizes):
                found.runner.prepare(x.shape[0])
            return found

    def score_prepared(self, x: Tensor) -> Measurement | None:
        prepared = self._prepared.get(key(x))
        try:
            return None if prepared is None else self.measure(x, prepared, guarded=True)
        except _ChangedError:
            return None

    def score(self, x: Tensor) -> Measurement:
        self._hooks.plan(x)  # a backend that cannot take such images says so, whether it is needed or not
        found = self.program(x)
        if found is None:
            checks.check_pixels(x)
            found = self._prepare(x)
        return self.measure(x, found)

    def measure(self, x: Tensor, prepared: Prepared, guarded: bool = False) -> Measurement:
        """Scores one batch with a program for such images.

        Images that violate a precondition of the sparsity analysis are scored again by hooks.

        Args:
            guarded: whether to see, while the program runs, if the model has changed since it was made; then raises
                _ChangedError.

        Raises:
            InputError, NonFiniteError: pixels, logits, a score or an output component that are not finite, or no number
                to divide by.
        """
        # Asked for first: with one image, entering what is in force already takes longer than many a kernel.
        if torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):  # the program's dtypes are decided
                return self.measure(x, prepared, guarded)
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False):
                return self.measure(x, prepared, guarded)
        # As are a tensor's class and history: to take them off, with one image, takes as long as a layer.
        plain = x if type(x) is Tensor and not x.requires_grad else x.detach().as_subclass(Tensor)
        fine: list[bool | Tensor] = []

        def guard() -> None:
            if guarded:
                same = prepared.state.holds(but_for=prepared.checked_memory)
                if same is False:
                    raise _ChangedError
                fine.append(same)
            if not prepared.checked:
                fine.append(result_checks.all_finite(plain))

        try:
            outputs = prepared.runner(plain if plain.dtype == prepared.dtype else plain.to(prepared.dtype), guard)
        except _ChangedError:
            raise
        except Exception as error:
            # A model that has changed explains whatever the program ran into.
            if guarded and not prepared.state.holds():
                raise _ChangedError from None
            if isinstance(error, (GaiaError, MemoryError, torch.OutOfMemoryError)):
                raise
            raise ModelError(
                f"the program of {type(self._subject.model).__name__} under runtime {prepared.runtime.name!r} failed "
                f"on images of shape {tuple(x.shape)}: {first_line(error)}; engine='hooks' scores it as it is"
            ) from error
        program = prepared.program
        found = dict(zip(program.outputs, outputs, strict=False))
        if prepared.checked:
            fine.append(result_checks.all_hold(outputs[len(program.outputs)]))
        if found[LOGITS].dtype != plain.dtype:
            found[LOGITS] = found[LOGITS].to(plain.dtype)
            if prepared.checked:  # what is finite in float32 need not be in half of it
                fine.append(result_checks.all_finite(found[LOGITS]))
        if not prepared.checked:
            fine += _results_hold(found, program.results)
        if not result_checks.together(fine):
            if guarded and not prepared.state.holds():
                raise _ChangedError
            self._find_failures(found, program.results, plain, prepared.head)
        results = tuple(
            Result(found[names.score], maps, found[names.packed], names.component_in(found))
            for names, maps in zip(program.results, program.maps, strict=True)
        )
        return Measurement(found[LOGITS], results)

    def _find_failures(
        self, found: dict[str, Tensor], results: Sequence[ResultNames], x: Tensor, head: Head | None
    ) -> None:
        """Raises what `measure` does; has hooks score the images that the program cannot."""
        checks.check_pixels(x)
        checks.check_logits(found[LOGITS])
        preconditions = found.get(PRECONDITIONS)
        if preconditions is not None and not (preconditions > 0).all():
            violating = (~(preconditions > 0)).any(1).nonzero().flatten()
            counted = [names for names in results if names.counted]
            requests = [each for each in self._subject.requests if each.name in {names.score for names in counted}]
            exact = self._hooks.measure(x[violating], head, requests=requests)
            for names, result in zip(counted, exact.results, strict=True):
                found[names.score] = found[names.score].index_copy(0, violating, result.score)
                packed = found[names.packed]
                found[names.packed] = packed.index_copy(0, violating, result.packed.to(packed))
        for names in results:
            component = names.component_in(found)
            if component is not None:
                checks.check_output_component(component, found[LOGITS])
            checks.check_score(found[names.score])


def _results_hold(found: Mapping[str, Tensor], results: Sequence[ResultNames]) -> list[bool | Tensor]:
    """Whether each method's results mean something; where there is no method, whether the logits do."""
    logits = found[LOGITS]
    return [
        result_checks.results_hold(
            logits,
            found[names.score],
            found.get(PRECONDITIONS) if names.counted else None,
            names.component_in(found),
        )
        for names in results
    ] or [result_checks.all_finite(logits)]


def export_program(
    subject: Subject,
    path: Path,
    examples: Sequence[Tensor],
    metadata: Mapping[str, str],
    scores: Sequence[str],
    thresholds: Mapping[str, float],
    preset: Preset | None = None,
) -> None:
    """Writes programs for images like the examples, each of another size, to a file, with the scores named, and with a
    decision for each threshold; see `gaia_fast.compiler.package.writing`.

    Before it takes its name the file is opened and compared with the reference, on other images than the examples.

    Raises:
        ArgumentError: the preset makes other images than the example, or a file does not hold what it does.
        CompilationError: the model cannot be compiled, or the file does not run, or not right.
    """
    check_format(path)
    if preset is not None:
        check_preset(preset, examples[0])
    check = FileCheck(path, scores, thresholds, preset)
    programs = []
    for x in examples:
        source = _source(subject, subject.head(x))
        prepared = prepare(source, x, "eager", thorough=True, dtype=computes_in(path, x.dtype))
        alone = with_decisions(without_recourse(prepared.program, scores), thresholds)
        sized = Sized(alone, x.detach().as_subclass(Tensor).contiguous(), prepared.dynamic)
        programs.append(sized)
        check.add(sized, source.verifier(), prepared.program.results)
    export(programs, path, metadata, preset, check)


def _source(subject: Subject, head: Head | None) -> Source:
    return Source(subject.model, subject.modules, subject.requests, head)


def key(x: Tensor) -> Key:
    """Returns what a program is made for."""
    return x.shape[1:], x.dtype, x.device
