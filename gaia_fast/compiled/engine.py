"""The compiled engine: a model captured once, scored by a forward-only program, checked before it is used."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.modules.module as torch_module
from torch import Tensor, nn

from gaia_fast import checks, fingerprint, hooks, reference
from gaia_fast.backends import Choice
from gaia_fast.compiled import modes
from gaia_fast.compiled.capture import Captured, capture
from gaia_fast.compiled.export import check_format, export
from gaia_fast.compiled.fold import fold
from gaia_fast.compiled.program import Program, build
from gaia_fast.compiled.zero_density import Density, analyse
from gaia_fast.errors import CompilationError, ModelError
from gaia_fast.layers import Head, InspectedLayer, find_head, inspected_layers
from gaia_fast.measurement import Measurement
from gaia_fast.method import Method
from gaia_fast.ops import soundness
from gaia_fast.reference import Reference
from gaia_fast.truth import copy_in, relative_error

Key = tuple[torch.Size, torch.dtype, torch.device]


@dataclass(frozen=True)
class Prepared:
    """A program for one size of image, dtype and device.

    Attributes:
        program, runner, mode: what runs, and how.
        dtype: what it computes in, and takes images in.
        dynamic: whether it was captured for any number of images.
        ways: for each inspected map, how its entries of Lambda come about, and why not otherwise.
        head: where Phi and A_last are; None where the method needs neither.
        state: of the model, when it was captured.
    """

    program: Program
    runner: modes.Runner
    mode: Choice
    dtype: torch.dtype
    dynamic: bool
    ways: tuple[str, ...]
    head: Head | None
    state: fingerprint.Fingerprint


class _ChangedError(Exception):
    """The model is not what the program was made of."""


@dataclass(frozen=True)
class _Subject:
    """What is captured: the model, or a copy of it in another dtype, with its inspected layers and head."""

    model: nn.Module
    layers: list[InspectedLayer]
    head: Head | None


class Compiled:
    """Prepares programs of one model and method, keeps them, and runs them.

    Args:
        model, method, layers, asked_for: as in `gaia_fast.hooks.measure`; modules, all of the model's.
        mode: a name of `gaia_fast.compiled.modes.MODES`, or "auto".
        backend: for the images that hooks have to score.
    """

    def __init__(
        self,
        model: nn.Module,
        modules: list[nn.Module],
        method: Method,
        layers: list[InspectedLayer],
        asked_for: bool,
        mode: str,
        backend: str,
    ) -> None:
        self.model, self.modules, self.method, self.layers, self.asked_for = model, modules, method, layers, asked_for
        self.mode, self.backend = mode, backend
        self._prepared: dict[Key, Prepared] = {}
        self._lock = threading.Lock()

    def find(self, x: Tensor) -> Prepared | None:
        """The program for images like `x`, unless there is none or the model has changed since."""
        found = self._prepared.get(_key(x))
        return found if found is not None and found.state.holds() else None

    def prepare(self, x: Tensor, head: Head | None) -> Prepared:
        """Makes the program for images like `x`, and compares it with the reference on them.

        Raises:
            ModelError: the model cannot be compiled, or what came out does not agree with the reference.
            BackendError: the mode cannot run here.
        """
        with self._lock:
            found = self.find(x)
            if found is None:
                found = self._prepared[_key(x)] = self._make(x, head, self.mode)
            elif isinstance(found.runner, modes.FixedSizes):
                found.runner.prepare(x.shape[0])
            return found

    def measure_at_once(self, x: Tensor) -> Measurement | None:
        """Scores one batch without a look at the model before: at what it is like the calling thread looks meanwhile.

        Returns:
            None where there is no program for images like `x`, or the model has changed since it was made.

        Raises:
            As `measure`.
        """
        prepared = self._prepared.get(_key(x))
        try:
            return None if prepared is None else self.measure(x, prepared, look=True)
        except _ChangedError:
            return None

    def measure(self, x: Tensor, prepared: Prepared, look: bool = False) -> Measurement:
        """Scores one batch with a program for such images.

        Images for which the structure's promise does not hold (`Counter.live`) are scored again by hooks.

        Args:
            look: whether to see, while the program runs, if the model has changed since it was made; then raises
                _ChangedError.

        Raises:
            InputError, NonFiniteError: pixels, logits, a score or an output component that are not finite, or no number
                to divide by.
        """
        # Asked for first: with one image, entering what is in force already takes longer than many a kernel.
        if torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):  # the program's dtypes are decided
                return self.measure(x, prepared, look)
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False):
                return self.measure(x, prepared, look)
        plain = x.detach().as_subclass(Tensor)
        fine: list[bool | Tensor] = []

        def meanwhile() -> None:
            if look:
                same = prepared.state.holds()
                if same is False:
                    raise _ChangedError
                fine.append(same)
            fine.append(soundness.all_finite(plain))

        try:
            outputs = prepared.runner(plain.to(prepared.dtype), meanwhile)
        except Exception:
            # A model that has changed explains whatever the program ran into.
            if look and not prepared.state.holds():
                raise _ChangedError from None
            raise
        found = dict(zip(prepared.program.outputs, outputs, strict=True))
        found["logits"] = found["logits"].to(plain.dtype)
        component = found.get("component")
        fine.append(soundness.sound(found["logits"], found["score"], found.get("live"), component))
        if not soundness.together(fine):
            if look and not prepared.state.holds():
                raise _ChangedError
            self._look_closer(found, plain, prepared.head)
        return Measurement(found["logits"], found["score"], prepared.program.maps, found["packed"], component)

    def _look_closer(self, found: dict[str, Tensor], x: Tensor, head: Head | None) -> None:
        """Raises what `measure` does; has hooks score the images that the program cannot."""
        checks.check_pixels(x)
        checks.check_logits(found["logits"])
        live, component = found.get("live"), found.get("component")
        if live is not None and not (live > 0).all():
            dead = (~(live > 0)).any(1).nonzero().flatten()
            exact = hooks.measure(self.model, x[dead], self.method, self.layers, self.asked_for, head, self.backend)
            found["score"] = found["score"].index_copy(0, dead, exact.score)
            found["packed"] = found["packed"].index_copy(0, dead, exact.packed.to(found["packed"]))
        if component is not None:
            checks.check_output_component(component, found["logits"])
        checks.check_score(found["score"])

    def export(self, path: Path, x: Tensor, head: Head | None, metadata: Mapping[str, str]) -> None:
        """Writes a program for images like `x` to a file; see `gaia_fast.compiled.export`."""
        check_format(path)
        prepared = self._make(x, head, "eager", thorough=True)
        export(prepared.program, path, x.detach().as_subclass(Tensor).contiguous(), prepared.dynamic, metadata)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _make(self, x: Tensor, head: Head | None, mode: str, thorough: bool = False) -> Prepared:
        if torch.is_autocast_enabled(x.device.type):
            raise CompilationError(
                "autocast decides dtypes while a model runs, and a compiled program has decided before; leave it, and "
                "convert the model: model.to(torch.bfloat16)"
            )
        _refuse_backward_hooks(self.model)
        plain = x.detach().as_subclass(Tensor).contiguous()
        state = fingerprint.settled(self.modules, lambda: checks.forward(self.model, plain.clone()))
        subject, captured = self._capture(mode, plain, head)
        plain = plain.to(captured.images.dtype)
        fold(captured.graph)
        chosen = modes.choose(mode, plain, captured.graph)
        truth = self._reference(plain, subject.model, head)
        if self.method.name == "gaia-z":
            program, ways = self._count(captured, plain, head, truth, thorough)
        else:
            program = build(captured, self.method, head)
            ways = ["adjoint"] * len(captured.maps)
        runner = modes.make_runner(chosen.name, program, plain, captured.dynamic)
        prepared = Prepared(program, runner, chosen, plain.dtype, captured.dynamic, tuple(ways), head, state.renewed())
        self._compare(prepared, plain, truth, subject)
        return prepared

    def _capture(self, mode: str, x: Tensor, head: Head | None) -> tuple[_Subject, Captured]:
        """The model as a graph in the dtype that the mode computes in; in its own where a copy in another cannot be."""
        dtype = modes.computes_in(mode, x)
        if dtype != x.dtype:
            try:
                subject = self._in_dtype(dtype, x, head)
                return subject, capture(subject.model, x.to(dtype), subject.layers, self.asked_for, subject.head)
            except ModelError as error:
                if mode != "auto":
                    raise CompilationError(
                        f"mode={mode!r} computes in {dtype}, and the model cannot be widened to it: {error}"
                    ) from error
        subject = _Subject(self.model, self.layers, head)
        return subject, capture(subject.model, x, subject.layers, self.asked_for, subject.head)

    def _in_dtype(self, dtype: torch.dtype, x: Tensor, head: Head | None) -> _Subject:
        model = copy_in(self.model, dtype)
        names = [layer.name for layer in self.layers]
        found = None
        if head is not None:
            found = find_head(model, x.to(dtype), head.name if head.asked_for else None)
        return _Subject(model, inspected_layers(model, names) if names else [], found)

    def _count(
        self, captured: Captured, x: Tensor, head: Head | None, truth: Reference, thorough: bool
    ) -> tuple[Program, list[str]]:
        """GAIA-Z: the densities that the structure tells, but for those that are wrong on the example."""
        found = analyse(captured.graph.graph, thorough)
        ways = [str(each) if isinstance(each, Density) else f"adjoint, {each}" for each in found]
        densities = [each if isinstance(each, Density) else None for each in found]
        while True:
            program = build(captured, self.method, head, densities)
            outputs = dict(zip(program.outputs, program.graph(x), strict=True))
            wrong = self._wrong(program, outputs, densities, truth)
            if not wrong:
                return program, ways
            for index, why in wrong.items():
                densities[index], ways[index] = None, f"adjoint, {why}"

    def _wrong(
        self,
        program: Program,
        outputs: dict[str, Tensor],
        densities: list[Density | None],
        truth: Reference,
    ) -> dict[int, str]:
        """The maps whose densities do not hold on the example, and why."""
        live = outputs.get("live")
        dead = set()
        if live is not None:
            failed = (live <= 0).any(0).tolist()
            dead = {condition for condition, fails in zip(program.conditions, failed, strict=True) if fails}
        columns = outputs["packed"].split([each.channels for each in program.maps], dim=1)
        wrong = {}
        for index, (density, counts, expected) in enumerate(zip(densities, columns, truth.abnormality, strict=True)):
            if density is None:
                continue
            if density.conditions & dead:
                wrong[index] = "the example has windows in which every channel is closed"
                continue
            area = program.maps[index].area
            different = float((counts - expected * area).abs().sum())
            if different > 1 + _flips(truth.logits) * counts.numel() * area:
                wrong[index] = "the reference counts otherwise on the example"
        return wrong

    def _compare(self, prepared: Prepared, x: Tensor, own: Reference, subject: _Subject) -> None:
        """Raises ModelError unless the runner agrees with the reference, as far as two orders of rounding can.

        A unit that is zero to rounding and opens changes a score by far more than rounding does. Where the model
        amplifies rounding beyond that, both are held to the reference on a float64 copy: the program may be off by
        twice what the reference in the model's own dtype is.
        """
        found = dict(zip(prepared.program.outputs, prepared.runner(x), strict=True))
        allowed = max(1e-3, 32 * _eps(own.logits))
        error = _error(found["logits"], found["score"], own)
        if not error <= allowed:
            truth = self._reference(x.double(), copy_in(subject.model, torch.float64), subject.head)
            allowed = max(allowed, 2 * _error(own.logits, own.score, truth))
            error = _error(found["logits"], found["score"], truth)
        if not error <= allowed:
            raise ModelError(
                f"the program of {type(self.model).__name__} in mode {prepared.mode.name!r} is off by {error:.2g} from "
                f"the reference on the example images, more than {allowed:.2g}; engine='hooks' scores it as it is"
            )

    @torch.enable_grad()
    def _reference(self, x: Tensor, model: nn.Module, head: Head | None) -> Reference:
        names = [layer.name for layer in self.layers] if self.asked_for else None
        method = self.method
        if method.name == "gaia-z":
            return reference.gaia_z(model, x, names, p=method.p)
        named = head.name if head else None
        return reference.gaia_a(model, x, names, named, method.fusion, method.statistic, p=method.p)


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


def _error(logits: Tensor, score: Tensor, truth: Reference) -> float:
    """The larger of the scores' relative error and the logits', to each image's largest."""
    size = truth.logits.double().abs().amax(1)
    off = (logits.double() - truth.logits.double()).abs().amax(1)
    return max(relative_error(score, truth.score), relative_error(size + off, size))


def _eps(logits: Tensor) -> float:
    """How exactly the model was computed."""
    # Not by `allow_tf32`, which raises once the newer setting has been used.
    convolutions: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    if logits.device.type == "cuda" and logits.dtype == torch.float32 and convolutions.fp32_precision == "tf32":
        return 2.0**-11  # TF32, PyTorch's own choice for convolutions
    return float(torch.finfo(logits.dtype).eps)


def _flips(logits: Tensor) -> float:
    """The share of units that may open or close by rounding alone: those that are zero to rounding."""
    return min(0.02, 256 * _eps(logits))


def _key(x: Tensor) -> Key:
    return x.shape[1:], x.dtype, x.device
