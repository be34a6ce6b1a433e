"""A program made of a model: captured, folded, recorded, and compared with the reference before anybody uses it."""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.modules.module as torch_module
from torch import Tensor, nn

from gaia_fast import timing_cache
from gaia_fast.backends import Choice
from gaia_fast.compiler import runtimes
from gaia_fast.compiler.frontend.capture import Captured, capture
from gaia_fast.compiler.ir.results import PRECONDITIONS
from gaia_fast.compiler.onnx.conversion import Conversion, from_bytes
from gaia_fast.compiler.pipeline import CAPTURED, run_passes
from gaia_fast.compiler.program import Program, build
from gaia_fast.compiler.program_cache import Entry, ProgramCache
from gaia_fast.compiler.runtimes import autotuning
from gaia_fast.compiler.runtimes.checked import Checks
from gaia_fast.compiler.sparsity import Sparsity, analyse
from gaia_fast.compiler.verification import Found, Truth, Verifier, rounding
from gaia_fast.errors import CompilationError, GaiaError, ModelError, ProgramCacheWarning, first_line
from gaia_fast.inspection import guards
from gaia_fast.inspection.fingerprint import Fingerprint, code_digest
from gaia_fast.inspection.head import Head, find_head
from gaia_fast.inspection.requests import Request, all_layers
from gaia_fast.inspection.survey import Passes, nothing
from gaia_fast.options import AUTO, Measure, Runtime, Tune
from gaia_fast.reference import copy_in

Run = Callable[[Tensor], Iterable[Tensor]]

FROM_ONNX = (Runtime.ONNXRUNTIME, Runtime.OPENVINO)


@dataclass(frozen=True)
class Prepared:
    """A program for one size of image, dtype and device.

    Attributes:
        program, runner, runtime: what runs, and how.
        dtype: what it computes in, and takes images in.
        dynamic: whether it was captured for any number of images.
        derivations: of each method, for each map, how its entries of Lambda come about, and why not otherwise.
        head: where Phi and A_last are; None where no method needs either.
        state: of the model, when it was captured.
        checked: whether the runner gives one output more: (N,), positive where an image's results mean something.
        checked_memory: the device whose memory it compares as well, if any.
        kept_in: where it is kept for later processes, if anywhere.
    """

    program: Program
    runner: runtimes.Runner
    runtime: Choice
    dtype: torch.dtype
    dynamic: bool
    derivations: tuple[tuple[str, ...], ...]
    head: Head | None
    state: guards.ModelGuard
    checked: bool
    checked_memory: torch.device | None
    kept_in: ProgramCache | None = None


@dataclass(frozen=True)
class Source:
    """What is made a program of: a model, what of it is inspected, and what is measured.

    Attributes:
        model: the classifier, checked and in eval mode.
        modules: all of the model's.
        requests: what to measure, each on the layers that it inspects.
        head: where GAIA-A's components meet; None where no method needs one.
    """

    model: nn.Module
    modules: list[nn.Module]
    requests: tuple[Request, ...]
    head: Head | None

    @property
    def counts(self) -> bool:
        """Whether non-zeros are counted."""
        return any(each.method.name == Measure.GAIA_Z for each in self.requests)

    def in_dtype(self, dtype: torch.dtype, x: Tensor) -> "Source":
        """Returns a copy of it all in another dtype; ModelError where there can be none."""
        model = copy_in(self.model, dtype)
        head = None
        if self.head is not None:
            head = find_head(model, x.to(dtype), self.head.name if self.head.explicit else None)
        return Source(model, list(model.modules()), tuple(each.on(model) for each in self.requests), head)

    def verifier(self) -> Verifier:
        """Returns what holds a program to the reference."""
        return Verifier(self.model, self.requests, self.head)

    def capture(self, x: Tensor, dynamic: bool) -> Captured:
        """Returns the model as a graph; see `gaia_fast.compiler.frontend.capture`."""
        return capture(self.model, x, all_layers(self.requests, self.modules), self.head, dynamic)


@torch.inference_mode(False)
@torch.no_grad()
def prepare(
    source: Source,
    x: Tensor,
    runtime: str,
    thorough: bool = False,
    dtype: torch.dtype | None = None,
    tune: str = Tune.MODEL,
    cache: ProgramCache | None = None,
) -> Prepared:
    """Makes a program for images like `x`, and compares it with the reference on them.

    Args:
        source: what it is made of; left as it was.
        x: (N, C, H, W) images, checked, N at least 1.
        runtime: of `gaia_fast.options.Runtime`, or "auto".
        thorough: as in `sparsity.analyse`.
        dtype: to compute in; None for what the runtime does.
        tune: of `gaia_fast.options.Tune`.
        cache: where programs are kept for later processes; None for nowhere.

    Raises:
        ModelError: the model cannot be compiled, or what came out does not agree with the reference.
        BackendError: the runtime cannot run here.
    """
    if torch.is_autocast_enabled(x.device.type):
        raise CompilationError(
            "autocast decides dtypes while a model runs, and a compiled program has decided before; leave it, and "
            "convert the model: model.to(torch.bfloat16)"
        )
    _refuse_backward_hooks(source.model)
    runtimes.check_forced(runtime, x)
    plain = x.detach().as_subclass(Tensor).contiguous()
    passes = Passes()
    state = guards.settled(source.modules, lambda: passes.run(source.model, plain, nothing))
    widened = runtimes.computes_in(runtime, plain) if dtype is None else dtype
    if widened != plain.dtype:
        try:
            copied = source.in_dtype(widened, plain)
            widening = _Preparation(copied, plain.to(widened), runtime, thorough, tune, cache)
            widening.original = source.model
            return widening.prepared(source.head, state)
        except ModelError as error:
            if runtime != AUTO:
                who = f"runtime={runtime!r}" if dtype is None else "the file"
                raise CompilationError(
                    f"{who} computes in {widened}, and the model, widened to it, cannot be compiled: {error}"
                ) from error
    return _Preparation(source, plain, runtime, thorough, tune, cache).prepared(source.head, state)


class _Preparation:
    convert: Conversion  # of the program, once there is one

    def __init__(
        self, source: Source, x: Tensor, runtime: str, thorough: bool, tune: str, cache: ProgramCache | None
    ) -> None:
        self.source, self.x, self.runtime, self.thorough, self.tune = source, x, runtime, thorough, tune
        self.cache, self.verifier = cache, source.verifier()
        self.original = source.model

    @cached_property
    def own(self) -> Truth:
        return self.verifier.reference(self.x)

    @cached_property
    def others(self) -> list[tuple[Tensor, Truth]]:
        return self.verifier.other_batches(self.x, self.own)

    def prepared(self, head: Head | None, state: guards.ModelGuard) -> Prepared:
        """The program that is kept for such images; else a new one, which is kept from then on."""
        if self.cache is None:
            return self._new(head, state)
        hangs_on = [
            Fingerprint.of(self.original, state.but_for).digest(),
            code_digest(self.original),
            *self._asked(head),
        ]
        entry = self.cache.load(hangs_on)
        if entry is not None:
            timing_cache.take(entry.timings)
            try:
                return self._kept(entry, head, state)
            # Of a model that differs where no hash sees it, or damaged where no hash is taken.
            except Exception as error:
                message = f"the program kept in {self.cache.folder} does not fit and is made anew: {first_line(error)}"
                warnings.warn(message, ProgramCacheWarning, stacklevel=2)
        with timing_cache.recorded() as timings:
            made = self._new(head, state)
        onnx = self.convert().SerializeToString() if made.runtime.name in FROM_ONNX else None
        native = made.runner.to_data() if isinstance(made.runner, runtimes.Native) else None
        self.cache.store(
            hangs_on, Entry(made.program, made.dynamic, made.derivations, made.runtime, timings, onnx, native)
        )
        return made

    def _asked(self, head: Head | None) -> list[Any]:
        """All that a program hangs on beside the model, but for releases and the machine."""
        x = self.x
        asked = [
            [asdict(each.method), *(layer.name for layer in each.layers), each.name] for each in self.source.requests
        ]
        versions = [runtimes.version(name) for name in Runtime.values()]
        threads = [torch.get_num_threads(), os.environ.get("OMP_WAIT_POLICY", "")]
        images = [list(x.shape), str(x.dtype), str(x.device)]
        options = [self.runtime, self.thorough, self.tune, *([head.name, head.last_name] if head else [])]
        return [asked, images, options, versions, threads]

    def _kept(self, entry: Entry, head: Head | None, state: guards.ModelGuard) -> Prepared:
        """A program that was read from a file, held to the reference: on the example, and on its negative."""
        program, chosen, dynamic = entry.program, entry.runtime, entry.dynamic
        batches = [(self.x, self.own)]
        with contextlib.suppress(GaiaError):  # the model's own, which every engine would meet
            batches.append((-self.x.flip(3), self.verifier.reference(-self.x.flip(3))))
        if entry.native is not None:
            runner: runtimes.Runner = runtimes.Native.from_data(*entry.native, self.x)
            self._check(program, runner, chosen, batches)
        else:
            kept = entry.onnx
            self.convert = runtimes.conversion(program, self.x, dynamic) if kept is None else partial(from_bytes, kept)
            runner = self._checked_runner(program, chosen, dynamic, state, batches)
        return self._prepared(program, runner, chosen, dynamic, entry.derivations, head, state)

    def _new(self, head: Head | None, state: guards.ModelGuard) -> Prepared:
        """The program for any number of images; where there is none that holds, for that of the example."""
        try:
            return self._attempt(True, head, state)
        except ModelError:
            return self._attempt(False, head, state)

    def _attempt(self, dynamic: bool, head: Head | None, state: guards.ModelGuard) -> Prepared:
        captured = self.source.capture(self.x, dynamic)
        _ = self.own  # refuses, by name, what cannot be scored at all: a map that nothing reads
        if captured.saturating and self.source.counts:
            raise CompilationError(
                f"{type(self.source.model).__name__} has {', '.join(captured.saturating)}, in place: its gradient is "
                "zero where its result is rounded to the bound, and a program would count it. Use inplace=False "
                "(another count, then) or engine='hooks'"
            )
        run_passes(CAPTURED, captured.graph)
        chosen = runtimes.choose(self.runtime, self.x, captured.graph)
        program, derivations = self._built(captured)
        if dynamic and chosen.name != Runtime.EAGER:  # before a runtime works on it: Eager runs the graph itself
            self._check(program, program.graph, chosen, self.others)
        self.convert = runtimes.conversion(program, self.x, dynamic)
        runner, chosen = self._runner(program, chosen, dynamic, state)
        return self._prepared(program, runner, chosen, dynamic, derivations, head, state)

    def _prepared(
        self,
        program: Program,
        runner: runtimes.Runner,
        chosen: Choice,
        dynamic: bool,
        derivations: tuple[tuple[str, ...], ...],
        head: Head | None,
        state: guards.ModelGuard,
    ) -> Prepared:
        return Prepared(
            program,
            runner,
            chosen,
            self.x.dtype,
            dynamic,
            derivations,
            head,
            state.renewed(),
            runtimes.checks_results(chosen.name, self.x),
            self.x.device if runtimes.checks_memory(chosen.name, self.x) else None,
            self.cache,
        )

    def _runner(
        self, program: Program, chosen: Choice, dynamic: bool, state: guards.ModelGuard
    ) -> tuple[runtimes.Runner, Choice]:
        """The program in the runtime chosen, or in the fastest where they are measured; held to the reference."""
        rivals = runtimes.rivals(self.runtime, self.tune, self.x)
        if len(rivals) > 1:
            return self._fastest(program, rivals, dynamic, state)
        others = runtimes.instead_of(chosen.name) if self.runtime == AUTO else []
        while True:
            try:
                return self._checked_runner(program, chosen, dynamic, state), chosen
            except ModelError as error:
                if not others:
                    raise
                chosen = Choice(others.pop(0), f"not {chosen.name}: {first_line(error)}")

    def _fastest(
        self, program: Program, rivals: list[Runtime], dynamic: bool, state: guards.ModelGuard
    ) -> tuple[runtimes.Runner, Choice]:
        """The fastest of several runtimes on the example, of those that agree with the reference; kept for later."""
        key = autotuning.key(program.digest, self.x, [*rivals], dynamic)
        known = autotuning.ANSWERS.find(key)
        if known is not None and known.keys() <= {*rivals}:
            chosen = autotuning.choice(known, self.x)
            with contextlib.suppress(Exception):  # it was measured with other weights
                return self._checked_runner(program, chosen, dynamic, state), chosen
        runners: dict[str, runtimes.Runner] = {}
        refusals: list[ModelError] = []
        for runtime in rivals:
            try:
                runners[runtime.value] = self._checked_runner(program, Choice(runtime, "to be timed"), dynamic, state)
            except ModelError as error:
                refusals.append(error)
            except Exception as error:  # nobody asked for this runtime: another one may do
                refusals.append(CompilationError(f"runtime={runtime!r} does not take it: {first_line(error)}"))
        if not runners:
            raise refusals[0]
        spent = autotuning.time_runners(runners, self.x)
        autotuning.ANSWERS.put(key, spent)
        chosen = autotuning.choice(spent, self.x)
        return runners[chosen.name], chosen

    def _checked_runner(
        self,
        program: Program,
        chosen: Choice,
        dynamic: bool,
        state: guards.ModelGuard,
        batches: list[tuple[Tensor, Truth]] | None = None,
    ) -> runtimes.Runner:
        """The program in a runtime, held to the reference on some batches; None for all that there are."""
        checks = (
            Checks(program.outputs, program.results, state) if runtimes.checks_results(chosen.name, self.x) else None
        )
        runner = runtimes.make_runner(chosen.name, program, self.x, dynamic, checks, self.tune, self.convert)
        self._check(program, runner, chosen, batches or [(self.x, self.own), *self.others])
        return runner

    def _built(self, captured: Captured) -> tuple[Program, tuple[tuple[str, ...], ...]]:
        """The program, and its derivations: counts in the forward pass the maps for which the analysis holds on the
        example."""
        requests, maps = self.source.requests, captured.maps
        counted = [each.method.name == Measure.GAIA_Z for each in requests]
        found = analyse(captured.graph.graph, self.thorough) if self.source.counts else [""] * len(captured.maps)
        why = [str(each) if isinstance(each, Sparsity) else f"adjoint, {each}" for each in found]
        # Maps that other methods alone inspect are counted by nobody: what their counts need is asked of no image.
        of_counts = {
            place for each, counts in zip(requests, counted, strict=True) if counts for place in each.places(maps)
        }
        sparsity = [each if isinstance(each, Sparsity) and at in of_counts else None for at, each in enumerate(found)]
        while True:
            program = build(captured, requests, self.source.head, sparsity)
            wrong: dict[int, str] = {}
            if any(counted):
                outputs = self._outputs(program, program.graph, self.x)
                for index, counts in enumerate(counted):
                    wrong.update(self._wrong(program, outputs, sparsity, captured, index) if counts else ())
            if not wrong:
                break
            for place, reason in wrong.items():
                sparsity[place], why[place] = None, f"adjoint, {reason}"
        derivations = tuple(
            tuple(why[place] if counts else "adjoint" for place in each.places(captured.maps))
            for each, counts in zip(requests, counted, strict=True)
        )
        return program, derivations

    def _wrong(
        self,
        program: Program,
        outputs: dict[str, Tensor],
        sparsity: list[Sparsity | None],
        captured: Captured,
        index: int,
    ) -> Iterator[tuple[int, str]]:
        """The captured maps whose sparsity is another on the example, and why, as the method `index` counts them."""
        preconditions = outputs.get(PRECONDITIONS)
        violated = set()
        if preconditions is not None:
            holds = (preconditions > 0).all(0).tolist()
            violated = {each for each, held in zip(program.preconditions, holds, strict=True) if not held}
        places, maps = self.source.requests[index].places(captured.maps), program.maps[index]
        columns = outputs[program.results[index].packed].split([each.channels for each in maps], dim=1)
        flips = min(0.02, 256 * rounding(self.own.logits))  # the share of units that are zero to rounding
        for place, counts, expected, of in zip(places, columns, self.own.abnormality[index], maps, strict=True):
            each = sparsity[place]
            if each is None:
                continue
            failed = sorted(str(precondition) for precondition in each.preconditions & violated)
            if failed:
                yield place, f"the example violates a precondition: {failed[0]}"
                continue
            different = float((counts - expected * of.area).abs().sum())
            if different > 1 + flips * counts.numel() * of.area:
                yield place, "the reference counts differently on the example"

    def _outputs(self, program: Program, run: Run, x: Tensor) -> dict[str, Tensor]:
        try:
            return dict(zip(program.outputs, tuple(run(x))[: len(program.outputs)], strict=True))
        except GaiaError:
            raise
        except Exception as error:
            raise CompilationError(
                f"the program of {type(self.source.model).__name__} fails on {len(x)} images: {first_line(error)}; "
                "engine='hooks' scores it as it is"
            ) from error

    def _check(self, program: Program, run: Run, runtime: Choice, batches: list[tuple[Tensor, Truth]]) -> None:
        """Raises ModelError unless what is run agrees with the reference on all batches."""
        for x, own in batches:
            found = Found.of(self._outputs(program, run, x), program.results)
            off, allowed = self.verifier.error(found, x, own)
            if not off <= allowed:
                raise ModelError(
                    f"the program of {type(self.source.model).__name__} under runtime {runtime.name!r} is off by "
                    f"{off:.2g} from the reference on {len(x)} of the example images, more than {allowed:.2g}; "
                    "engine='hooks' scores it as it is"
                )


def _refuse_backward_hooks(model: nn.Module) -> None:
    """Raises CompilationError where a hook may change gradients: none of it is in a graph."""
    everywhere = torch_module._global_backward_hooks or torch_module._global_backward_pre_hooks
    for name, module in model.named_modules():
        if everywhere or module._backward_hooks or module._backward_pre_hooks:
            which = "every module" if everywhere else f"module {name!r}" if name else "the model"
            raise CompilationError(
                f"{which} has backward hooks, and what they do to a gradient cannot be compiled; take them off, or use "
                "engine='hooks'"
            )
