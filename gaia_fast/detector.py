"""GaiaA and GaiaZ: what a user touches."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gaia_fast import backends, calibration, checks, fingerprint, hooks, layers, reference
from gaia_fast._version import __version__
from gaia_fast.backends import Choice
from gaia_fast.capture import ForwardHooks, in_grad_mode
from gaia_fast.compiled import modes
from gaia_fast.compiled.engine import Compiled
from gaia_fast.compiled.preparation import Prepared
from gaia_fast.errors import ArgumentError, BackendError, CalibrationError, InputError, LayerError, ModelError
from gaia_fast.kept import undisturbed
from gaia_fast.measurement import FeatureMap, Measurement
from gaia_fast.method import Method
from gaia_fast.plan import Plan
from gaia_fast.recent import Recent
from gaia_fast.survey import Passes, nothing

ENGINES = ("reference", "hooks", "compiled")
MOST_SIZES = 256  # of images, for which a detector remembers where the head is


# A detector's attributes that are not found out about its model.
_ASKED = (
    "model",
    "method",
    "threshold",
    "_asked_for",
    "_layer_names",
    "_requested_head",
    "_engine",
    "_backend",
    "_mode",
)


@dataclass(frozen=True)
class GaiaOutput:
    """The prediction and its score, from one call; unpacks as `logits, score`.

    Attributes:
        logits: (N, C), detached, in the model's dtype.
        score: (N,) float32; larger = more out of distribution.
        matrix: (N, L, K_max), the zero-padded abnormality matrix Lambda, where it was asked for.
    """

    logits: Tensor
    score: Tensor
    matrix: Tensor | None = None

    def __iter__(self) -> Iterator[Tensor]:
        yield self.logits
        yield self.score


class _Detector:
    """What GaiaA and GaiaZ share: checks, the choice of engine and backend, the threshold."""

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        layer_names: Sequence[str] | None,
        head: str | nn.Module | None,
        engine: str,
        backend: str,
        mode: str,
    ) -> None:
        if engine not in ("auto", *ENGINES):
            raise ArgumentError(f"engine={engine!r} does not exist; choose from {('auto', *ENGINES)}")
        self.model = checks.unwrap(model)
        self.method = method
        self.threshold: float | None = None
        self._asked_for = layer_names is not None
        self._layer_names = layer_names
        self._requested_head = head
        self._engine = engine
        self._backend = backend
        self._mode = mode
        modes.check(mode)
        self._resolve()
        first = next(self.model.parameters(), torch.empty(0))
        backends.choose(backend, first.device, first.dtype)  # a forced backend that cannot run says so at once

    def score(self, x: Tensor, *, return_matrix: bool = False) -> GaiaOutput:
        """Predicts and scores a batch in one call.

        Args:
            x: (N, C, H, W) images, prepared as in training, of the model's dtype and device; N may be 0.
            return_matrix: also return Lambda.

        Returns:
            GaiaOutput: logits (N, C), score (N,) float32, detached; larger score = more out of distribution.

        Raises:
            GaiaError: of the kind that fits. The model is left as it was, whatever happens.
        """
        checks.check_form(x)
        prepared = self._engine in ("auto", "compiled") and x.shape[0] > 0
        measured = self._compiled.measure_at_once(x) if prepared else None
        if measured is None:
            self._check(x)
            if x.shape[0] == 0:
                nothing = self._score_nothing(x)
                return nothing if return_matrix else GaiaOutput(nothing.logits, nothing.score)
            measured = self._measure(x)
        return GaiaOutput(measured.logits, measured.score, measured.matrix() if return_matrix else None)

    def predict(self, x: Tensor) -> Tensor:
        """Returns the (N,) float32 scores alone; larger = more out of distribution. See `score`."""
        return self.score(x).score

    def __call__(self, x: Tensor) -> Tensor:
        return self.predict(x)

    def prepare(self, example: Tensor) -> "_Detector":
        """Compiles the model for images like `example`: same size, dtype and device. Seconds, in some modes minutes.

        With engine="compiled" the first call does it unasked; it is done once for each size of image, and again where
        a weight has changed. With engine="auto" it is what makes the engine "compiled", where the model allows: where
        it does not, the plan says why, and hooks score as before.

        Args:
            example: (N, C, H, W) images, N at least 1, on which the program is compared with the reference: real ones
                show more than noise. In modes that are made for a number of images, N is that number; call again for
                further ones. A call with another number is filled up to the next, or split.

        Returns:
            The detector itself.

        Raises:
            ModelError, BackendError: engine="compiled" and the model, or the mode, cannot do it.
            ArgumentError: the engine has nothing to prepare.
        """
        if self._engine in ("reference", "hooks"):
            raise ArgumentError(f"engine={self._engine!r} has nothing to prepare; use engine='compiled' or 'auto'")
        self._check(example)
        checks.check_pixels(example)
        if example.shape[0] == 0:
            raise InputError("an example of no images shows nothing; give at least one")
        try:
            self._compiled.prepare(example, self._find_head(example))
            self._refusals.pop(example.shape[1:])
        except (ModelError, LayerError, BackendError) as error:
            if self._engine == "compiled":
                raise
            self._refusals.put(example.shape[1:], str(error))
        return self

    def export(self, path: str | Path, example: Tensor) -> Path:
        """Writes prediction and score as one program to a file that runs without this package, and without Python.

        Input "images" (N, C, H, W), any N unless the model fixes it; outputs "logits" (N, C) and "score" (N,) float32.
        The file's metadata holds the threshold, where there is one, the method and its options, the layers, and the
        images' sizes and dtype (`gaia_fast.compiled.export.read_metadata`): look at them, a package itself does not. A
        file cannot score an image again: where GAIA-Z's densities cannot be told from the forward pass, the score is
        NaN.

        Args:
            path: "model.onnx", for onnxruntime: standard operators alone; or "model.pt2", an AOTInductor package.
            example: images as for `prepare`.

        Returns:
            The path.

        Raises:
            ModelError, BackendError, ArgumentError: see the messages.
        """
        self._check(example)
        checks.check_pixels(example)
        if example.shape[0] == 0:
            raise InputError("an example of no images shows nothing; give at least one")
        path = Path(path)
        metadata = {
            "gaia_fast": __version__,
            "method": json.dumps(asdict(self.method)),
            "layers": json.dumps([layer.name for layer in self._layers]),
            "threshold": "" if self.threshold is None else repr(float(self.threshold)),
        }
        self._compiled.export(path, example, self._find_head(example), metadata)
        return path

    def calibrate(self, loader_or_scores: Iterable[Any], id_tpr: float = 0.95) -> "_Detector":
        """Sets `threshold` so that at least the share `id_tpr` of in-distribution images is accepted.

        Args:
            loader_or_scores: in-distribution scores (1-D tensor, array or list), or batches of in-distribution images:
                a tensor, or an iterable of tensors, (images, labels) pairs or mappings with "data",
                "image", "images", "x" or "pixel_values".
            id_tpr: the share to accept.

        Returns:
            The detector itself.

        Raises:
            CalibrationError: nothing to calibrate on. GaiaError: as `score`.
        """
        scores: Any = loader_or_scores
        if not calibration.looks_like_scores(loader_or_scores):
            found = [self.predict(images).cpu() for images in calibration.image_batches(loader_or_scores)]
            scores = torch.cat(found) if found else []
        threshold = calibration.threshold_for(scores, id_tpr)
        calibration.check_informative(scores)
        self.threshold = threshold
        return self

    def is_ood(self, x: Tensor) -> Tensor:
        """Returns the (N,) bool decisions score > threshold (Eq. 1); CalibrationError before `calibrate`."""
        if self.threshold is None:
            raise CalibrationError(
                "there is no threshold yet: call calibrate(...) with in-distribution images or scores, or set "
                ".threshold"
            )
        return self.predict(x) > self.threshold

    def plan(self, x: Tensor) -> Plan:
        """Returns what will be done on batches like `x`: inspected maps, head, engine, backend, and why; print it."""
        self._check(x)
        checks.check_pixels(x)
        images = x if x.shape[0] else x.new_zeros((1, *x.shape[1:]))
        head = self._find_head(images)
        if self._engine == "compiled":
            self._compiled.prepare(images, head)
        engine, backend, prepared = self._choose(images)
        return Plan(
            self.method,
            type(self.model).__name__,
            tuple(x.shape),
            self._observe(images),
            head.name if head else None,
            head.last_name if head else None,
            engine,
            backend,
            prepared.mode if prepared else None,
            prepared.derivations if prepared else (),
            self._compiled.kept if prepared else "",
        )

    def _resolve(self) -> None:
        """Looks the layers up; again where the model's modules are no longer the same."""
        checks.check_model(self.model)
        self._modules = list(self.model.modules())
        self._structure = fingerprint.structure(self._modules)
        self._layers = layers.inspected_layers(self.model, self._layer_names) if self.method.needs_maps else []
        if isinstance(self._requested_head, str):
            layers.find_module(self.model, self._requested_head)
        # By the shape of an image: control flow may depend on it.
        self._heads: Recent[torch.Size, layers.Head] = Recent(MOST_SIZES)
        self._heads_like: fingerprint.Fingerprint | None = None  # what the model was like when they were found
        self._passes = Passes()
        self._compiled = Compiled(
            self.model,
            self._modules,
            self.method,
            self._layers,
            self._asked_for,
            self._mode,
            self._backend,
            self._passes,
        )
        self._refusals: Recent[torch.Size, str] = Recent(MOST_SIZES)

    def _check(self, x: Tensor) -> None:
        if self._structure != fingerprint.structure(self._modules):
            self._resolve()
        checks.check_kind(x, self.model)

    @in_grad_mode(False)
    def _score_nothing(self, x: Tensor) -> GaiaOutput:
        """An empty batch. Many models cannot run on one; a blank image tells the number of classes and the maps."""
        blank = x.new_zeros((1, *x.shape[1:]))
        logits = checks.logits_of(checks.forward(self.model, blank.clone()), 1)
        seen = self._observe(blank) or (FeatureMap("output component", 1, 1, 1),)
        matrix = torch.zeros(0, len(seen), max(each.channels for each in seen), device=logits.device)
        return GaiaOutput(logits[:0].detach(), torch.zeros(0, device=logits.device), matrix)

    def __getstate__(self) -> dict[str, Any]:
        """What was asked for, and the threshold; what was found out about the model, programs too, is found again."""
        checks.check_model(self.model)
        return {name: value for name, value in vars(self).items() if name in _ASKED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._resolve()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.model).__name__}, {self.method}, threshold={self.threshold})"

    def _choose(self, x: Tensor) -> tuple[Choice, Choice, Prepared | None]:
        """The engine and the backend for a batch, and the compiled program, where there is one already."""
        if self._engine == "reference":
            if self._backend not in ("auto", "torch"):
                raise ArgumentError(
                    f"engine='reference' uses no kernels, so backend={self._backend!r} means nothing; use 'torch'"
                )
            return Choice("reference", "asked for"), Choice("torch", "the reference uses no kernels"), None
        backend = backends.choose(self._backend, x.device, x.dtype)
        if self._engine == "hooks":
            return Choice("hooks", "asked for"), backend, None
        prepared = self._compiled.find(x)
        if self._engine == "compiled":
            return Choice("compiled", "asked for"), backend, prepared
        if prepared is not None:
            return Choice("compiled", "prepared for such images"), backend, prepared
        refusal = self._refusals.get(x.shape[1:])
        why = f"not compiled: {refusal}" if refusal else "takes any eager model; prepare(...) compiles it, for speed"
        return Choice("hooks", why), backend, None

    def _measure(self, x: Tensor) -> Measurement:
        engine, backend, prepared = self._choose(x)
        if prepared is None:
            checks.check_pixels(x)
        if engine.name == "compiled":
            return self._compiled.measure(x, prepared or self._compiled.prepare(x, self._find_head(x)))
        if engine.name == "reference":
            measured = self._measure_by_reference(x)
        else:
            head = self._find_head(x)
            measured = hooks.measure(
                self.model, x, self.method, self._layers, self._asked_for, head, backend.name, self._passes
            )
        checks.check_logits(measured.logits)
        checks.check_score(measured.score)
        return measured

    def _measure_by_reference(self, x: Tensor) -> Measurement:
        names = [layer.name for layer in self._layers] if self._asked_for else None
        if self.method.name == "gaia-z":
            found = reference.gaia_z(self.model, x, names, p=self.method.p)
        else:
            found = reference.gaia_a(
                self.model, x, names, self._requested_head, self.method.fusion, self.method.statistic, p=self.method.p
            )
        widths = [FeatureMap(str(index), each.shape[1], 1, 1) for index, each in enumerate(found.abnormality)]
        packed = torch.cat(found.abnormality, dim=1)
        return Measurement(found.logits, found.score.float(), tuple(widths), packed)

    @in_grad_mode(False)
    def _find_head(self, x: Tensor) -> layers.Head | None:
        if not (self.method.needs_inner_component or self.method.needs_output_component):
            return None
        shape = x.shape[1:]
        if self._heads_like is None or not self._heads_like.holds():
            like = fingerprint.settled(self._modules, lambda: self._passes.run(self.model, x, nothing), values=False)
            self._heads, self._heads_like = Recent(MOST_SIZES), like  # in this order, for other threads
        heads = self._heads
        found = heads.get(shape)
        if found is None:
            found = layers.find_head(self.model, x, self._requested_head)
            heads.put(shape, found)
        return found

    @in_grad_mode(False)
    def _observe(self, x: Tensor) -> tuple[FeatureMap, ...]:
        seen: list[FeatureMap] = []
        names = layers.MapNames()

        def see(layer: layers.InspectedLayer, _: nn.Module, output: Tensor) -> None:
            if layers.is_feature_map(output, layer, x.shape[0], self._asked_for):
                seen.append(FeatureMap(names.next(layer), *output.shape[1:]))

        def watch(hooks: ForwardHooks) -> None:
            nonlocal names
            seen.clear()
            names = layers.MapNames()
            for layer in self._layers:
                layer.watch(hooks, partial(see, layer))

        _, _, ran = undisturbed(self.model, lambda: Passes().run(self.model, x, watch))
        if self._layers:
            names.check_called(self._layers, self._asked_for, ran)
        return tuple(seen)


class GaiaZ(_Detector):
    """GAIA-Z: the density of non-zero attribution gradients of the top-1 logit (Eq. 10 and 12).

    Args:
        model: a trained classifier in eval mode; it is never changed. DataParallel, DistributedDataParallel and
            torch.compile wrappers are taken off.
        layers: the modules whose feature maps are inspected, by name; a container stands for the normalisation layers
            below it; None for every normalisation layer.
        p: order of the norm that aggregates (Fig. 4).
        engine: "hooks", "compiled", "reference", or "auto": hooks until `prepare` was called, compiled from then on.
        backend: "cpu", "triton", "cuda", "torch", or "auto"; see `gaia_fast.backends`.
        mode: how a compiled program runs: "eager", "native" (the package's own CPU kernels), "inductor", "onnxruntime",
            "cudagraph", or "auto".

    Raises:
        LayerError, ModelError, ArgumentError, BackendError: see the messages.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        layers: Sequence[str] | None = None,
        p: float = 2.0,
        engine: str = "auto",
        backend: str = "auto",
        mode: str = "auto",
    ) -> None:
        super().__init__(model, Method("gaia-z", p=p), layers, None, engine, backend, mode)


class GaiaA(_Detector):
    """GAIA-A: the channel-wise average gradient, inner component over output component (Eq. 8, 9, 11 and 12).

    Args:
        model, layers, p, engine, backend, mode: as in `GaiaZ`.
        head: the final linear or 1x1-convolution module, or its name; None finds it on the first call.
        fusion: "division", "inner", "output" or "top1" (Table 3).
        statistic: "abs_mean" (Eq. 11) or "mean_abs".

    Raises:
        LayerError, ModelError, ArgumentError, BackendError: see the messages.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        layers: Sequence[str] | None = None,
        head: str | nn.Module | None = None,
        fusion: str = "division",
        statistic: str = "abs_mean",
        p: float = 2.0,
        engine: str = "auto",
        backend: str = "auto",
        mode: str = "auto",
    ) -> None:
        super().__init__(model, Method("gaia-a", fusion, statistic, p), layers, head, engine, backend, mode)
