"""GaiaA and GaiaZ: what a user touches."""

import json
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gaia_fast import backends, calibration
from gaia_fast._version import __version__
from gaia_fast.compiler.preparation import Prepared
from gaia_fast.engines import Subject, export_program, make_engine
from gaia_fast.errors import CalibrationError, InputError
from gaia_fast.inspection import checks, guards, layers, stages
from gaia_fast.inspection.feature_maps import feature_maps
from gaia_fast.inspection.forward_hooks import in_grad_mode
from gaia_fast.method import Method
from gaia_fast.options import EngineName, Measure, Runtime, Tune
from gaia_fast.plan import Plan


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


@dataclass(frozen=True)
class _Options:
    """What was asked of a detector."""

    layers: str | Sequence[str] | None
    head: str | nn.Module | None
    engine: str
    backend: str
    runtime: str


DetectorT = TypeVar("DetectorT", bound="_Detector")


class _Detector:
    """What GaiaA and GaiaZ share: checks of what is given, an engine, and the threshold."""

    def __init__(self, model: nn.Module, method: Method, options: _Options) -> None:
        EngineName.check_or_auto(options.engine, "engine")
        Runtime.check_or_auto(options.runtime, "runtime")
        self.model = checks.unwrap(model)
        self.method = method
        self.threshold: float | None = None
        self._options = options
        self._lock = threading.RLock()
        self._stage_layers: list[str] | None = None  # once they are known, whatever images come
        self._resolve()
        first = next(self.model.parameters(), torch.empty(0))
        backends.choose(options.backend, first.device, first.dtype)  # a forced backend that cannot run says so at once

    def score(self, x: Tensor, *, return_matrix: bool = False) -> GaiaOutput:
        """Predicts and scores a batch in one call.

        Args:
            x: (N, C, H, W) images, prepared as in training, of the model's dtype and device; N may be 0.
            return_matrix: also return Lambda.

        Returns:
            GaiaOutput: logits (N, C), score (N,) float32, detached; larger score = more out of distribution.

        Raises:
            GaiaError: of the kind that fits. The model is left as it was, whatever happens.

        Example:
            >>> from gaia_fast import GaiaZ
            >>> from gaia_fast.data.digits import held_out_digits
            >>> from gaia_fast.models import digits_resnet
            >>> model, (x, labels) = digits_resnet(pretrained=True), held_out_digits()
            >>> logits, score = GaiaZ(model).score(x[:100])
            >>> accuracy = (logits.argmax(1) == labels[:100]).float().mean()
            >>> bool(accuracy > 0.9)
            True
        """
        checks.check_form(x)
        measured = self._engine.score_prepared(x) if x.shape[0] > 0 and not self._pending else None
        if measured is None:
            self._check(x)
            if x.shape[0] == 0:
                nothing = self._score_nothing(x)
                return nothing if return_matrix else GaiaOutput(nothing.logits, nothing.score)
            measured = self._engine.score(x)
        return GaiaOutput(measured.logits, measured.score, measured.matrix() if return_matrix else None)

    def predict(self, x: Tensor) -> Tensor:
        """Returns the (N,) float32 scores alone; larger = more out of distribution. See `score`.

        Example:
            >>> from gaia_fast import GaiaZ
            >>> from gaia_fast.data.digits import held_out_digits
            >>> from gaia_fast.models import digits_resnet
            >>> model, (x, labels) = digits_resnet(pretrained=True), held_out_digits()
            >>> detector = GaiaZ(model)
            >>> torch.equal(detector.predict(x[:4]), detector(x[:4]))
            True
        """
        return self.score(x).score

    def __call__(self, x: Tensor) -> Tensor:
        return self.predict(x)

    def prepare(self: DetectorT, example: Tensor, tune: str | None = None) -> DetectorT:
        """Compiles the model for images like `example`: same size, dtype and device. Seconds, in some runtimes minutes.

        With engine="compiled" the first call does it unasked; it is done once for each size of image, and again where
        a weight has changed. With engine="auto" it is what makes the engine "compiled", where the model allows: where
        it does not, the plan says why, and hooks score as before.

        Args:
            example: (N, C, H, W) images, N at least 1, on which the program is compared with the reference: real ones
                show more than noise. In runtimes that are made for a number of images, N is that number; call again for
                further ones. A call with another number is filled up to the next, or split.
            tune: how is settled between a convolution's algorithms in runtime "native", and on the CPU in float32
                between the runtimes that "auto" can take and are installed, and hooks: "measure" times them here for as
                many images, once for each processor and build (in $GAIA_FAST_CACHE, else in the user's cache, empty for
                nowhere), which takes seconds for each; "model" counts operations. None for what $GAIA_FAST_TUNE says,
                else "measure".

        Returns:
            The detector itself.

        Raises:
            ModelError, BackendError: engine="compiled" and the model, or the runtime, cannot do it.
            ArgumentError: the engine has nothing to prepare.

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
        self._engine.prepare(example, tune)
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

    def export(self, path: str | Path, example: Tensor) -> Path:
        """Writes prediction and score as one program to a file that runs without this package, and without Python.

        Input "images" (N, C, H, W), any N unless the model fixes it; outputs "logits" (N, C) and "score" (N,) float32.
        The file's metadata holds the threshold, where there is one, the method and its options, the layers, and the
        images' sizes and dtype (`gaia_fast.compiler.package.metadata.read_metadata`): look at them, a package itself
        does not. A file cannot score an image again: where a precondition of GAIA-Z's forward densities is violated,
        the score is NaN.

        Args:
            path: "model.onnx", for onnxruntime: standard operators alone; or "model.pt2", an AOTInductor package.
            example: images as for `prepare`.

        Returns:
            The path.

        Raises:
            ModelError, BackendError, ArgumentError: see the messages.

        Example:
            >>> from gaia_fast import GaiaZ
            >>> from gaia_fast.data.digits import held_out_digits
            >>> from gaia_fast.models import digits_resnet
            >>> model, (x, labels) = digits_resnet(pretrained=True), held_out_digits()
            >>> from tempfile import TemporaryDirectory
            >>> from gaia_fast import load
            >>> with TemporaryDirectory() as folder:
            ...     path = GaiaZ(model).export(f"{folder}/model.onnx", x[:4])
            ...     logits, score = load(path)(x[:2])
            >>> torch.allclose(score, GaiaZ(model)(x[:2]))
            True
        """
        self._check_example(example)
        path = Path(path)
        metadata = {
            "gaia_fast": __version__,
            "method": json.dumps(asdict(self.method)),
            "layers": json.dumps([layer.name for layer in self._subject.layers]),
            "threshold": "" if self.threshold is None else repr(float(self.threshold)),
        }
        export_program(self._subject, path, example, metadata)
        return path

    def calibrate(self: DetectorT, loader_or_scores: Iterable[Any], id_tpr: float = 0.95) -> DetectorT:
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

        Example:
            >>> from gaia_fast import GaiaZ
            >>> from gaia_fast.data.digits import held_out_digits
            >>> from gaia_fast.models import digits_resnet
            >>> model, (x, labels) = digits_resnet(pretrained=True), held_out_digits()
            >>> detector = GaiaZ(model).calibrate(x[:500])
            >>> bool((detector(x[:500]) <= detector.threshold).float().mean() >= 0.95)
            True
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
        """Returns the (N,) bool decisions score > threshold (Eq. 1); CalibrationError before `calibrate`.

        Example:
            >>> from gaia_fast import GaiaZ
            >>> from gaia_fast.data.digits import held_out_digits
            >>> from gaia_fast.models import digits_resnet
            >>> model, (x, labels) = digits_resnet(pretrained=True), held_out_digits()
            >>> detector = GaiaZ(model).calibrate(x[:500])
            >>> detector.is_ood(x[:4]).dtype
            torch.bool
        """
        if self.threshold is None:
            raise CalibrationError(
                "there is no threshold yet: call calibrate(...) with in-distribution images or scores, or set "
                ".threshold"
            )
        return self.predict(x) > self.threshold

    def plan(self, x: Tensor) -> Plan:
        """Returns what will be done on batches like `x`: inspected maps, head, engine, backend, and why; print it.

        Example:
            >>> from gaia_fast import GaiaZ
            >>> from gaia_fast.data.digits import held_out_digits
            >>> from gaia_fast.models import digits_resnet
            >>> model, (x, labels) = digits_resnet(pretrained=True), held_out_digits()
            >>> plan = GaiaZ(model).plan(x[:1])
            >>> len(plan.maps), plan.engine.name
            (12, 'hooks')
        """
        self._check(x)
        checks.check_pixels(x)
        images = x if x.shape[0] else x.new_zeros((1, *x.shape[1:]))
        head = self._subject.head(images)
        found = self._engine.plan(images)
        return Plan(
            self.method,
            type(self.model).__name__,
            tuple(x.shape),
            feature_maps(self.model, self._subject.layers, images),
            head.name if head else None,
            head.last_name if head else None,
            found.engine,
            found.backend,
            found.runtime,
            found.derivations,
            found.programs,
            self._stage or "",
        )

    def _resolve(self) -> None:
        """Looks the layers up; again where the model's modules are no longer the same."""
        with self._lock:
            checks.check_model(self.model)
            options, modules = self._options, list(self.model.modules())
            if isinstance(options.head, str):
                layers.find_module(self.model, options.head)
            stage = stages.asked_for(options.layers, self.model) if self.method.needs_maps else None
            names: str | Sequence[str] | None = options.layers
            if stage is not None:
                there = dict(self.model.named_modules())
                found = self._stage_layers or []
                names = found if found and all(name in there for name in found) else None
            inspected = layers.inspected_layers(self.model, names) if self.method.needs_maps else []
            # What a stage is made of is seen on images: until then nothing may be scored.
            self._pending = stage is not None and names is None
            self._stage = stage
            self._inspect(modules, inspected)
            self._structure = guards.structure(modules)

    def _inspect(self, modules: list[nn.Module], inspected: list[layers.InspectedLayer]) -> None:
        options = self._options
        self._subject = Subject(self.model, modules, self.method, inspected, options.head)
        self._engine = make_engine(options.engine, self._subject, options.backend, options.runtime)

    def _find_stage(self, x: Tensor) -> None:
        """Inspects what the stage asked for is made of, as images show it."""
        with self._lock:
            if not self._pending or self._stage is None:  # another thread has found it
                return
            images = x if x.shape[0] else x.new_zeros((1, *x.shape[1:]))
            self._stage_layers = stages.found_on(self._stage, self.model, images)
            self._inspect(self._subject.modules, layers.inspected_layers(self.model, self._stage_layers))
            self._pending = False

    def _check(self, x: Tensor) -> None:
        if self._structure != guards.structure(self._subject.modules):
            self._resolve()
        checks.check_kind(x, self.model)
        if self._pending:
            self._find_stage(x)

    def _check_example(self, example: Tensor) -> None:
        self._check(example)
        checks.check_pixels(example)
        if example.shape[0] == 0:
            raise InputError("an example of no images shows nothing; give at least one")

    @in_grad_mode(False)
    def _score_nothing(self, x: Tensor) -> GaiaOutput:
        """An empty batch. Many models cannot run on one; a blank image tells the number of classes and the maps."""
        blank = x.new_zeros((1, *x.shape[1:]))
        logits = checks.logits_of(checks.forward(self.model, blank.clone()), 1)
        widths = [each.channels for each in feature_maps(self.model, self._subject.layers, blank)] or [1]
        matrix = torch.zeros(0, len(widths), max(widths), device=logits.device)
        return GaiaOutput(logits[:0].detach(), torch.zeros(0, device=logits.device), matrix)

    def __getstate__(self) -> dict[str, Any]:
        """What was asked for, and the threshold; what was found out about the model, programs too, is found again."""
        checks.check_model(self.model)
        found_out = ("_structure", "_subject", "_engine", "_stage", "_pending", "_lock")
        return {name: value for name, value in vars(self).items() if name not in found_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.RLock()
        self._resolve()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.model).__name__}, {self.method}, threshold={self.threshold})"


class GaiaZ(_Detector):
    """GAIA-Z: the density of non-zero attribution gradients of the top-1 logit (Eq. 10 and 12).

    Args:
        model: a trained classifier in eval mode; it is never changed. DataParallel, DistributedDataParallel and
            torch.compile wrappers are taken off.
        layers: the modules whose feature maps are inspected, by name; a container stands for the normalisation layers
            below it; None for every normalisation layer; "last_stage" or "last_two_stages" for those whose maps are of
            the smallest size, or the two smallest, on the first images that are given.
        p: order of the norm that aggregates (Fig. 4).
        engine: "hooks", "compiled", "reference", or "auto": hooks until `prepare` was called, compiled from then on.
        backend: "cpu", "triton", "cuda", "torch", or "auto"; see `gaia_fast.backends`.
        runtime: how a compiled program runs: "eager", "native" (the package's own CPU kernels), "inductor",
            "onnxruntime", "openvino", "cudagraph", or "auto".

    Raises:
        LayerError, ModelError, ArgumentError, BackendError: see the messages.

    Example:
        >>> from gaia_fast import GaiaZ
        >>> from gaia_fast.data.digits import held_out_digits
        >>> from gaia_fast.models import digits_resnet
        >>> model, (x, labels) = digits_resnet(pretrained=True), held_out_digits()
        >>> detector = GaiaZ(model)
        >>> logits, score = detector.score(x[:8])
        >>> logits.shape, score.shape
        (torch.Size([8, 10]), torch.Size([8]))
        >>> noise = torch.rand_like(x[:8])
        >>> bool(detector(noise).mean() > score.mean())
        True
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        layers: str | Sequence[str] | None = None,
        p: float = 2.0,
        engine: str = "auto",
        backend: str = "auto",
        runtime: str = "auto",
    ) -> None:
        super().__init__(model, Method(Measure.GAIA_Z, p=p), _Options(layers, None, engine, backend, runtime))


class GaiaA(_Detector):
    """GAIA-A: the channel-wise average gradient, inner component over output component (Eq. 8, 9, 11 and 12).

    Args:
        model, layers, p, engine, backend, runtime: as in `GaiaZ`.
        head: the final linear or 1x1-convolution module, or its name; None finds it on the first call.
        fusion: "division", "inner", "output" or "top1" (Table 3).
        statistic: "abs_mean" (Eq. 11) or "mean_abs".

    Raises:
        LayerError, ModelError, ArgumentError, BackendError: see the messages.

    Example:
        >>> from gaia_fast import GaiaA
        >>> from gaia_fast.data.digits import held_out_digits
        >>> from gaia_fast.models import digits_resnet
        >>> model, (x, labels) = digits_resnet(pretrained=True), held_out_digits()
        >>> detector = GaiaA(model, layers=["layer3", "layer4"])
        >>> out = detector.score(x[:8], return_matrix=True)
        >>> out.score.shape, out.matrix.shape
        (torch.Size([8]), torch.Size([8, 6, 64]))
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        layers: str | Sequence[str] | None = None,
        head: str | nn.Module | None = None,
        fusion: str = "division",
        statistic: str = "abs_mean",
        p: float = 2.0,
        engine: str = "auto",
        backend: str = "auto",
        runtime: str = "auto",
    ) -> None:
        method = Method(Measure.GAIA_A, fusion, statistic, p)
        super().__init__(model, method, _Options(layers, head, engine, backend, runtime))
