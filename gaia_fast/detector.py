"""GaiaA and GaiaZ, of one score each: what a user touches, beside `Gaia`, of several."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gaia_fast.calibration import Calibration
from gaia_fast.data.presets import Preset
from gaia_fast.detector_base import Detector, Options
from gaia_fast.detector_file import SavedDetector
from gaia_fast.inspection.requests import SCORE
from gaia_fast.method import Method
from gaia_fast.options import (
    BackendOption,
    EngineOption,
    FusionOption,
    Measure,
    RuntimeOption,
    StatisticOption,
    UnpreparedOption,
)
from gaia_fast.outputs import GaiaOutput
from gaia_fast.plan import Plan
from gaia_fast.scorers import Scorer


class _OneScore(Scorer, Detector):
    """What GaiaA and GaiaZ share: one score, and its threshold."""

    def __init__(self, model: nn.Module, method: Method, options: Options) -> None:
        self.method = method
        super().__init__(model, {SCORE: method}, options)

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
        measured = self._measure(x)
        (result,) = measured.results
        return GaiaOutput(measured.logits, result.score, result.matrix() if return_matrix else None, self.threshold)

    def export(
        self, path: str | Path, example: Tensor | Sequence[Tensor], *, preset: Preset | str | None = None
    ) -> Path:
        """Writes prediction and score as one program to a file that runs without this package, and without Python.

        Input "images" (N, C, H, W), any N unless the model fixes it; outputs "logits" (N, C), "score" (N,) float32 and,
        where there is a threshold, behind them "is_ood" (N,) bool. The file's metadata holds the threshold, the method
        and its options, the layers, and the images' sizes and dtype (`gaia_fast.read_metadata`): look at them, a
        package itself does not. A file cannot score an image again: where a precondition of GAIA-Z's forward densities
        is violated, the score is NaN, and the image counts as out of distribution. `gaia_fast.load` reads the file.

        Args:
            path: "model.onnx", for onnxruntime: standard operators alone; or "model.pt2", an AOTInductor package.
            example: images as for `prepare`; or several such batches, each of another size, for a file that takes
                all these sizes, with the weights once for each. An .onnx file chooses among them itself; a package
                holds the first as "model", another one as "model_HxW", for `AOTIModelPackageLoader(path, name)`.
            preset: how the file prepares pictures, if it is to: a `gaia_fast.data.Preset`, or the name of one, by which
                the example was prepared. "images" are then uint8 RGB pictures (N, 3, H, W), those of one batch of one
                size, which is any where the preset resizes or crops. The pixels are the preset's own, bit for bit
                (by lanczos in onnxruntime a few are one of 255 levels off). A file cannot refuse pictures that are
                smaller than the crop: see that they are not; `load` does.

        Returns:
            The path.

        Raises:
            ModelError, BackendError, ArgumentError: see the messages.

        Example:
            >>> from gaia_fast import GaiaZ
            >>> from gaia_fast.data.digits import held_out_digits
            >>> from gaia_fast.models import digits_resnet
            >>> model, (x, labels) = digits_resnet(pretrained=True), held_out_digits()
            >>> import torch
            >>> from tempfile import TemporaryDirectory
            >>> from gaia_fast import load
            >>> with TemporaryDirectory() as folder:
            ...     path = GaiaZ(model).export(f"{folder}/model.onnx", x[:4])
            ...     logits, score = load(path).score(x[:2])
            >>> torch.allclose(score, GaiaZ(model)(x[:2]))
            True
        """
        examples = self._examples(example)
        (names,) = self._layer_names()
        metadata = {
            "method": json.dumps(asdict(self.method)),
            "layers": json.dumps(names),
            "threshold": "" if self.threshold is None else repr(self.threshold),
        }
        thresholds = {} if self.threshold is None else {SCORE: self.threshold}
        return self._export(path, examples, preset, [SCORE], thresholds, metadata)

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
        _, (plan,) = self._plans(x)
        return plan

    def _arguments(self) -> dict[str, Any]:
        (layers,) = self._options.layers
        asked = list(layers) if layers is not None and not isinstance(layers, str) else layers
        return {"layers": asked, "p": self.method.p, **super()._arguments()}

    def _saved_thresholds(self) -> dict[str, float]:
        return {} if self.threshold is None else {SCORE: self.threshold}

    def _saved_calibrations(self) -> dict[str, Calibration]:
        return {} if self.calibration is None else {SCORE: self.calibration}

    def _restore(self, saved: SavedDetector) -> None:
        super()._restore(saved)
        self.threshold, self.calibration = saved.thresholds.get(SCORE), saved.calibrations.get(SCORE)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.model).__name__}, {self.method}, threshold={self.threshold})"


class GaiaZ(_OneScore):
    """GAIA-Z: the density of non-zero attribution gradients of the top-1 logit (Eq. 10 and 12).

    Args:
        model: a trained classifier in eval mode; it is never changed. DataParallel, DistributedDataParallel and
            torch.compile wrappers are taken off.
        layers: the modules whose feature maps are inspected, by name; a container stands for the normalisation layers
            below it; None for every normalisation layer; "last_stage" or "last_two_stages" for those whose maps are of
            the smallest size, or the two smallest, on the first images that are given; "convolutions", for a network
            without norms, for all before an activation; "token_maps" for the LayerNorms of a transformer, whose
            maps (N, T, C) have T positions, and which is experimental (docs/transformers.md).
        p: order of the norm that aggregates (Fig. 4).
        engine: "hooks", "compiled", "reference", or "auto": hooks until `prepare` was called, compiled from then on.
        backend: "cpu", "triton", "cuda", "torch", or "auto"; see `gaia_fast.backends`.
        runtime: how a compiled program runs: "eager", "native" (the package's own CPU kernels), "inductor",
            "onnxruntime", "openvino", "cudagraph", or "auto".
        on_unprepared: what engine "auto" does with images of a size that no program was prepared for, or after the
            model has changed: "warn", once, and score them by hooks; "prepare" a program; or raise an "error".

    Raises:
        LayerError, ModelError, ArgumentError, BackendError: see the messages.

    Example:
        >>> import torch
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

    _kind = "GaiaZ"

    def __init__(
        self,
        model: nn.Module,
        *,
        layers: str | Sequence[str] | None = None,
        p: float = 2.0,
        engine: EngineOption = "auto",
        backend: BackendOption = "auto",
        runtime: RuntimeOption = "auto",
        on_unprepared: UnpreparedOption = "warn",
    ) -> None:
        super().__init__(
            model, Method(Measure.GAIA_Z, p=p), Options((layers,), None, engine, backend, runtime, on_unprepared)
        )


class GaiaA(_OneScore):
    """GAIA-A: the channel-wise average gradient, inner component over output component (Eq. 8, 9, 11 and 12).

    Args:
        model, layers, p, engine, backend, runtime, on_unprepared: as in `GaiaZ`.
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

    _kind = "GaiaA"

    def __init__(
        self,
        model: nn.Module,
        *,
        layers: str | Sequence[str] | None = None,
        head: str | nn.Module | None = None,
        fusion: FusionOption = "division",
        statistic: StatisticOption = "abs_mean",
        p: float = 2.0,
        engine: EngineOption = "auto",
        backend: BackendOption = "auto",
        runtime: RuntimeOption = "auto",
        on_unprepared: UnpreparedOption = "warn",
    ) -> None:
        method = Method(Measure.GAIA_A, fusion, statistic, p)
        super().__init__(model, method, Options((layers,), head, engine, backend, runtime, on_unprepared))

    def _arguments(self) -> dict[str, Any]:
        method = self.method
        own = {"head": self._head_name(), "fusion": str(method.fusion), "statistic": str(method.statistic)}
        return {**own, **super()._arguments()}
