"""What all detectors share: what is given is checked, an engine measures it, whatever was done to the model since."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from gaia_fast import backends
from gaia_fast._version import __version__
from gaia_fast.calibration import Calibration
from gaia_fast.compiler.preparation import Prepared
from gaia_fast.compiler.program_cache import ProgramCache
from gaia_fast.data.presets import Preset, preset_named
from gaia_fast.detector_file import SavedDetector
from gaia_fast.engines import EnginePlan, Subject, export_program, make_engine
from gaia_fast.errors import ArgumentError, InputError, LayerError
from gaia_fast.inspection import checks, guards, layers, stages, token_maps
from gaia_fast.inspection.feature_maps import check_images_first, feature_maps
from gaia_fast.inspection.fingerprint import Fingerprint
from gaia_fast.inspection.forward_hooks import in_grad_mode
from gaia_fast.inspection.requests import Request
from gaia_fast.inspection.survey import nothing
from gaia_fast.measurement import Measurement, Result
from gaia_fast.method import Method
from gaia_fast.options import EngineName, Runtime, Tune, TuneOption, Unprepared
from gaia_fast.plan import Plan

Layers = str | Sequence[str] | None


@dataclass(frozen=True)
class Options:
    """What was asked of a detector, but for its methods; `layers` has an entry for each of these."""

    layers: tuple[Layers, ...]
    head: str | nn.Module | None
    engine: str
    backend: str
    runtime: str
    on_unprepared: str


class Detector:
    """A model, methods by the names of their scores, and an engine that measures with all of them in one call."""

    _kind = "Detector"  # by which a file names the class

    def __init__(self, model: nn.Module, methods: Mapping[str, Method], options: Options) -> None:
        EngineName.check_or_auto(options.engine, "engine")
        Runtime.check_or_auto(options.runtime, "runtime")
        Unprepared.parse(options.on_unprepared, "on_unprepared")
        self.model = checks.unwrap(model)
        self._methods = dict(methods)
        self._options = options
        self._lock = threading.RLock()
        self._cache: ProgramCache | None = None
        self._seen: tuple[torch.Size, torch.dtype, torch.device] | None = None  # of the last images that were checked
        # By the stages' names, once they are known, whatever images come.
        self._stage_layers: dict[str, list[str]] = {}
        self._resolve()
        first = next(self.model.parameters(), torch.empty(0))
        backends.choose(options.backend, first.device, first.dtype)  # a forced backend that cannot run says so at once

    def prepare(self, example: Tensor, tune: TuneOption | None = None, cache_dir: str | Path | None = None) -> Self:
        """Compiles the model for images like `example`: same size, dtype and device. Seconds, in some runtimes minutes.

        With engine="compiled" the first call does it unasked; it is done once for each size of image, and again where
        a weight has changed. With engine="auto" it is what makes the engine "compiled", where the model allows: where
        it does not, a warning and the plan say why, and hooks score as before.

        Args:
            example: (N, C, H, W) images, N at least 1, on which the program is compared with the reference: real ones
                show more than noise. In runtimes that are made for a number of images, N is that number; call again for
                further ones. A call with another number is filled up to the next, or split.
            tune: how is settled between a convolution's algorithms in runtime "native", and on the CPU in float32
                between the runtimes that "auto" can take and are installed, and hooks: "measure" times them here for as
                many images, once for each processor and build (in $GAIA_FAST_CACHE, else in the user's cache, empty for
                nowhere), which takes seconds for each; "model" counts operations. None for what was said before, else
                what $GAIA_FAST_TUNE says, else "measure".
            cache_dir: a folder where programs are kept, so that a process that comes later, on a machine of the same
                kind, need not capture and time them again: it reads what was made for the same weights, code, options
                and images, compares it with the reference on `example`, and scores as the first does, to the last bit.
                None for where it was said before, or nowhere. Programs under Inductor are compiled anew; PyTorch keeps
                its own cache of those. As of any cache of compiled code: let none write there but whom you trust.

        Returns:
            The detector itself.

        Raises:
            ModelError, BackendError: a runtime that is forced cannot run here; or the model cannot be compiled, and
                engine="compiled", or "auto" with on_unprepared="error".
            ArgumentError: the engine has nothing to prepare; `cache_dir` is no folder that takes files.

        Example:
            >>> from gaia_fast import GaiaZ
            >>> from gaia_fast.data.digits import held_out_digits
            >>> from gaia_fast.models import digits_resnet
            >>> model, (x, labels) = digits_resnet(pretrained=True), held_out_digits()
            >>> detector = GaiaZ(model, runtime="eager").prepare(x[:4])
            >>> detector.plan(x[:4]).engine.name
            'compiled'
        """
        if tune is not None:
            Tune.parse(tune, "tune")
        self._check_example(example)
        cache = None if cache_dir is None else ProgramCache(Path(cache_dir))
        self._engine.prepare(example, tune, cache)
        self._cache = cache or self._cache
        return self

    def program(self, x: Tensor) -> Prepared | None:
        """Returns the compiled program for images like `x`; None without one, or where the model has changed since.

        Example:
            >>> from gaia_fast import GaiaZ
            >>> from gaia_fast.data.digits import held_out_digits
            >>> from gaia_fast.models import digits_resnet
            >>> model, (x, labels) = digits_resnet(pretrained=True), held_out_digits()
            >>> detector = GaiaZ(model, runtime="eager")
            >>> detector.program(x[:4]) is None
            True
            >>> detector.prepare(x[:4]).program(x[:4]).program.outputs[:2]
            ('logits', 'score')
        """
        return self._engine.program(x)

    @property
    def engine(self) -> str:
        """The engine that was asked for; the plan tells which one works."""
        return str(self._options.engine)

    @property
    def inspected_layers(self) -> dict[str, list[str]]:
        """By score, the names of the layers that are inspected; of a stage, none before images have shown it."""
        return {} if self._pending else dict(zip(self._methods, self._layer_names(), strict=True))

    def save(self, path: str | Path, preset: Preset | str | None = None) -> Path:
        """Writes the detector to a file, without its model: options, layers, thresholds, what they were calibrated on.

        `gaia_fast.load(path, model)` makes it again, in any process, for a model with the same modules and weights, and
        refuses any other. Programs are not in it: `prepare(..., cache_dir=...)` keeps those.

        Args:
            path: ends in ".gaia".
            preset: how the images were prepared that it was calibrated on, a `gaia_fast.data.Preset` or the name of
                one: `gaia-fast serve` then prepares them so, and in no other way. None where it is not to say.

        Returns:
            The path.

        Raises:
            ArgumentError: another ending, no such folder, or a class that is derived from one of this package's.
            ModelError: tensors whose bytes cannot be told.

        Example:
            >>> from gaia_fast import GaiaZ, load
            >>> from gaia_fast.data.digits import held_out_digits
            >>> from gaia_fast.models import digits_resnet
            >>> from tempfile import TemporaryDirectory
            >>> model, (x, labels) = digits_resnet(pretrained=True), held_out_digits()
            >>> detector = GaiaZ(model).calibrate(x[:500])
            >>> with TemporaryDirectory() as folder:
            ...     again = load(detector.save(f"{folder}/digits.gaia"), model)
            >>> again.threshold == detector.threshold
            True
        """
        checks.check_model(self.model)
        path = Path(path)
        if type(self).__name__ != self._kind:
            raise ArgumentError(
                f"a {type(self).__name__} cannot be loaded again, as load(...) does not know it; save the {self._kind} "
                "that it is made of"
            )
        SavedDetector(
            self._kind,
            self._arguments(),
            self.inspected_layers,
            self._stage_layers,
            self._saved_thresholds(),
            self._saved_calibrations(),
            Fingerprint.of(self.model, self._written()),
            None if preset is None else preset_named(preset),
        ).write(path)
        return path

    def _written(self) -> frozenset[guards.Place]:
        """What the model's forward pass writes, as far as images have been seen: it is no part of what the model is."""
        if self._seen is None:
            return frozenset()
        size, dtype, device = self._seen
        blank, subject = torch.zeros((1, *size), dtype=dtype, device=device), self._subject
        try:
            run = partial(subject.passes.run, subject.model, blank, nothing)
            return guards.settled(subject.modules, run).but_for
        except Exception:  # a model that takes no blank image, or not one alone
            return frozenset()

    def _arguments(self) -> dict[str, Any]:
        """What it was made with, beside the model, as plain data."""
        options = self._options
        return {
            "engine": str(options.engine),
            "backend": str(options.backend),
            "runtime": str(options.runtime),
            "on_unprepared": str(options.on_unprepared),
        }

    def _head_name(self) -> str | None:
        head = self._options.head
        if not isinstance(head, nn.Module):
            return head
        name = next((name for name, module in self.model.named_modules() if module is head), None)
        if name is None:
            raise LayerError(
                f"the head, a {type(head).__name__}, is no module of {type(self.model).__name__}; name one"
            )
        return name

    def _saved_thresholds(self) -> dict[str, float]:
        raise NotImplementedError

    def _saved_calibrations(self) -> dict[str, Calibration]:
        raise NotImplementedError

    def _restore(self, saved: SavedDetector) -> None:
        """Takes over what was found out, after it was made."""
        self._stage_layers = {stage: list(names) for stage, names in saved.stage_layers.items()}
        self._resolve()

    def _measure(self, x: Tensor) -> Measurement:
        """Measures a batch of any size; raises what fits. The model is left as it was, whatever happens."""
        checks.check_form(x)
        measured = self._engine.score_prepared(x) if x.shape[0] > 0 and not self._pending else None
        if measured is not None:
            return measured
        self._check(x)
        return self._engine.score(x) if x.shape[0] > 0 else self._measure_nothing(x)

    def _examples(self, example: Tensor | Sequence[Tensor]) -> list[Tensor]:
        """What is to be exported for, checked: images of one size, or of several, each given once."""
        examples: list[Any] = list(example) if isinstance(example, (list, tuple)) else [example]
        if not examples:
            raise InputError("an example is missing; give images of each size that the file is to be for")
        for each in examples:
            self._check_example(each)
        sizes = [tuple(each.shape[2:]) for each in examples]
        if len(set(sizes)) < len(sizes):
            raise InputError(f"the examples are of the sizes {sizes}; give images of each size once")
        return examples

    def _export(
        self,
        path: str | Path,
        examples: list[Tensor],
        preset: Preset | str | None,
        scores: Sequence[str],
        thresholds: Mapping[str, float],
        metadata: Mapping[str, str],
    ) -> Path:
        """Writes logits, the scores named, and decisions by the thresholds, in that order, to a file."""
        path = Path(path)
        found = None if preset is None else preset_named(preset)
        if found is not None and len(examples) > 1:
            raise ArgumentError(
                f"the preset {found.name!r} makes images of one size, and there are examples of {len(examples)}; give "
                "those of one size, or no preset"
            )
        about = {"gaia_fast": __version__, **metadata}
        export_program(self._subject, path, examples, about, scores, thresholds, found)
        return path

    def _layer_names(self) -> list[list[str]]:
        """The names of the inspected layers, for each method."""
        return [[layer.name for layer in request.layers] for request in self._subject.requests]

    def _plans(self, x: Tensor) -> tuple[EnginePlan, list[Plan]]:
        """What the engine does on batches like `x`, and the plan of each method."""
        self._check(x)
        checks.check_pixels(x)
        images = x if x.shape[0] else x.new_zeros((1, *x.shape[1:]))
        head = self._subject.head(images)
        found = self._engine.plan(images)
        plans = []
        for place, request in enumerate(self._subject.requests):
            own = head if request.method.needs_head else None
            plans.append(
                Plan(
                    request.method,
                    type(self.model).__name__,
                    tuple(x.shape),
                    feature_maps(self.model, request.layers, images),
                    own.name if own else None,
                    own.last_name if own and request.method.needs_output_component else None,
                    found.engine,
                    found.backend,
                    found.runtime,
                    found.derivations[place] if found.derivations else (),
                    found.programs,
                    stages.described(self._stages[place], request.layers),
                )
            )
        return found, plans

    def _resolve(self) -> None:
        """Looks the layers up; again where the model's modules are no longer the same."""
        with self._lock:
            checks.check_model(self.model)
            options, modules = self._options, list(self.model.modules())
            if isinstance(options.head, str):
                layers.find_module(self.model, options.head)
            self._stages = [
                stages.asked_for(asked, self.model) if method.needs_maps else None
                for asked, method in zip(options.layers, self._methods.values(), strict=True)
            ]
            there = dict(self.model.named_modules())
            self._stage_layers = {
                stage: names for stage, names in self._stage_layers.items() if all(name in there for name in names)
            }
            # What a stage is made of is seen on images: until then nothing may be scored.
            self._pending = any(stage is not None and stage not in self._stage_layers for stage in self._stages)
            self._inspect(modules)
            self._structure = guards.structure(modules)

    def _inspect(self, modules: list[nn.Module]) -> None:
        options = self._options
        requests = []
        for (name, method), asked, stage in zip(self._methods.items(), options.layers, self._stages, strict=True):
            names = asked if stage is None else self._stage_layers.get(stage)
            inspected = []
            if method.needs_maps and stage is not None and names is None:
                inspected = stages.candidates(stage, self.model)
            elif method.needs_maps:
                inspected = layers.inspected_layers(self.model, names)
            requests.append(Request(method, tuple(inspected), name))
        # Whether the first axis of maps of tokens is that of the images is seen on images.
        self._unseen = any(token_maps.width(each.module) for request in requests for each in request.layers)
        self._subject = Subject(self.model, modules, requests, options.head)
        self._engine = make_engine(
            options.engine, self._subject, options.backend, options.runtime, options.on_unprepared, self._cache
        )

    def _find_stages(self, x: Tensor) -> None:
        """Inspects what the stages asked for are made of, as images show it."""
        with self._lock:
            if not self._pending:  # another thread has found them
                return
            images = x if x.shape[0] else x.new_zeros((1, *x.shape[1:]))
            for stage in self._stages:
                if stage is not None and stage not in self._stage_layers:
                    self._stage_layers[stage] = stages.found_on(stage, self.model, images)
            self._inspect(self._subject.modules)
            self._pending = False

    def _check(self, x: Tensor) -> None:
        if self._structure != guards.structure(self._subject.modules):
            self._resolve()
        checks.check_kind(x, self.model)
        self._seen = x.shape[1:], x.dtype, x.device
        if self._pending:
            self._find_stages(x)
        if self._unseen and x.shape[0] > 1:
            for request in self._subject.requests:
                check_images_first(self.model, request.layers, x)
            self._unseen = False

    def _check_example(self, example: Tensor) -> None:
        self._check(example)
        checks.check_pixels(example)
        if example.shape[0] == 0:
            raise InputError("an example of no images shows nothing; give at least one")

    @in_grad_mode(False)
    def _measure_nothing(self, x: Tensor) -> Measurement:
        """An empty batch. Many models cannot run on one; a blank image tells the number of classes and the maps."""
        blank = x.new_zeros((1, *x.shape[1:]))
        logits = checks.logits_of(checks.forward(self.model, blank.clone()), 1)
        results = []
        for request in self._subject.requests:
            maps = feature_maps(self.model, request.layers, blank)
            packed = torch.zeros(0, sum(each.channels for each in maps) or 1, device=logits.device)
            results.append(Result(torch.zeros(0, device=logits.device), maps, packed))
        return Measurement(logits[:0].detach(), tuple(results))

    def __getstate__(self) -> dict[str, Any]:
        """What was asked for, and thresholds; what was found out about the model, programs too, is found again."""
        checks.check_model(self.model)
        found_out = ("_structure", "_unseen", "_subject", "_engine", "_stages", "_pending", "_lock")
        return {name: value for name, value in vars(self).items() if name not in found_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.RLock()
        self._resolve()
