"""Gaia: several scores of a batch from one program."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gaia_fast.calibration import Calibration
from gaia_fast.compiler.ir.results import decision_name
from gaia_fast.data.presets import Preset
from gaia_fast.detector_base import Detector, Layers, Options
from gaia_fast.detector_file import SavedDetector
from gaia_fast.errors import ArgumentError
from gaia_fast.inspection import checks
from gaia_fast.logit_scores import logit_score
from gaia_fast.method import Method
from gaia_fast.options import (
    BackendOption,
    EngineOption,
    Fusion,
    FusionOption,
    LogitScore,
    Measure,
    RuntimeOption,
    ScoreOption,
    Statistic,
    StatisticOption,
    UnpreparedOption,
)
from gaia_fast.outputs import GaiaScores
from gaia_fast.plan import JointPlan
from gaia_fast.scorers import JointScorer

SCORES = (*Measure.values(), *LogitScore.values())


class Gaia(JointScorer, Detector):
    """Several scores of a batch, whose forward pass they share: GAIA-Z, GAIA-A, and what the logits alone tell.

        gaia-z, gaia-a  as in `GaiaZ` and `GaiaA`
        msp             -max softmax(S)
        energy          -log(sum of exp(S))
        max_logit       -max S

    The compiled engine makes one program of them all; hooks share the forward pass and take a backward pass for each
    GAIA score; the reference measures one after the other. What one score cannot be told for (GAIA-A's output component
    is zero, say) is refused for all, as `GaiaA` refuses it.

    Args:
        model, p, engine, backend, runtime, on_unprepared: as in `GaiaZ`.
        scores: at least one of the five, each once.
        layers: as in `GaiaZ`, for each GAIA score; or a mapping of GAIA scores to that, where one that is left out has
            every normalisation layer.
        head, fusion, statistic: of GAIA-A, as in `GaiaA`.

    Attributes:
        scores: the scores' names, in order.
        methods: by GAIA score, its options.
        thresholds: by score, once there are any.
        calibrations: by score, what its threshold was taken from.

    Raises:
        ArgumentError: a score that does not exist, none, or one twice; an option of a score that is not asked for.
        LayerError, ModelError, BackendError: see the messages.

    Example:
        >>> from gaia_fast import Gaia
        >>> from gaia_fast.data.digits import held_out_digits
        >>> from gaia_fast.models import digits_resnet
        >>> model, (x, labels) = digits_resnet(pretrained=True), held_out_digits()
        >>> detector = Gaia(model, scores=("gaia-z", "gaia-a", "msp"), layers={"gaia-a": ["layer3", "layer4"]})
        >>> out = detector.score(x[:8])
        >>> out.logits.shape, {name: tuple(score.shape) for name, score in out.scores.items()}
        (torch.Size([8, 10]), {'gaia-z': (8,), 'gaia-a': (8,), 'msp': (8,)})
        >>> noise = torch.rand_like(x[:8])
        >>> bool(detector(noise)["gaia-z"].mean() > out.scores["gaia-z"].mean())
        True
    """

    _kind = "Gaia"

    def __init__(
        self,
        model: nn.Module,
        *,
        scores: Sequence[ScoreOption] = ("gaia-z", "gaia-a"),
        layers: Layers | Mapping[str, Layers] = None,
        head: str | nn.Module | None = None,
        fusion: FusionOption = "division",
        statistic: StatisticOption = "abs_mean",
        p: float = 2.0,
        engine: EngineOption = "auto",
        backend: BackendOption = "auto",
        runtime: RuntimeOption = "auto",
        on_unprepared: UnpreparedOption = "warn",
    ) -> None:
        self.scores = _parsed(scores)
        self.thresholds: dict[str, float] = {}
        self.calibrations: dict[str, Calibration] = {}
        self._p = p
        measures = [name for name in self.scores if name in Measure.values()]
        of_gaia_a = {"head": head is not None, "fusion": fusion != Fusion.DIVISION}
        of_gaia_a["statistic"] = statistic != Statistic.ABS_MEAN
        for option, given in of_gaia_a.items():
            if given and Measure.GAIA_A not in measures:
                raise ArgumentError(f"{option} belongs to 'gaia-a', which is not among the scores {self.scores}")
        methods = {
            _output_name(name): Method(name, fusion, statistic, p) if name == Measure.GAIA_A else Method(name, p=p)
            for name in measures
        }
        of_layers = _by_measure(layers, measures)
        super().__init__(model, methods, Options(of_layers, head, engine, backend, runtime, on_unprepared))

    @property
    def methods(self) -> dict[str, Method]:
        return {str(method.name): method for method in self._methods.values()}

    def score(self, x: Tensor, *, return_matrix: bool = False) -> GaiaScores:
        """Predicts and scores a batch in one call.

        Args:
            x: (N, C, H, W) images, prepared as in training, of the model's dtype and device; N may be 0.
            return_matrix: also return Lambda, for each GAIA score.

        Returns:
            GaiaScores: logits (N, C), and by name scores (N,) float32, detached; larger = more out of distribution.

        Raises:
            GaiaError: of the kind that fits. The model is left as it was, whatever happens.

        Example:
            >>> from gaia_fast import Gaia, GaiaZ
            >>> from gaia_fast.data.digits import held_out_digits
            >>> from gaia_fast.models import digits_resnet
            >>> model, (x, labels) = digits_resnet(pretrained=True), held_out_digits()
            >>> found = Gaia(model, scores=("gaia-z", "energy")).score(x[:4])
            >>> torch.allclose(found.scores["gaia-z"], GaiaZ(model)(x[:4]))
            True
            >>> torch.allclose(found.scores["energy"], -found.logits.logsumexp(1))
            True
        """
        measured = self._measure(x)
        results = dict(zip(self._methods, measured.results, strict=True))
        scores = {}
        for name in self.scores:
            result = results.get(_output_name(name))
            scores[name] = logit_score(name, measured.logits) if result is None else result.score
            if result is None and measured.logits.dtype == torch.float64:  # finite there, and perhaps not in float32
                checks.check_score(scores[name])
        matrices = {}
        if return_matrix:
            matrices = {method.name: results[name].matrix() for name, method in self._methods.items()}
        return GaiaScores(measured.logits, scores, matrices, self._known_thresholds())

    def export(
        self, path: str | Path, example: Tensor | Sequence[Tensor], *, preset: Preset | str | None = None
    ) -> Path:
        """Writes prediction and scores as one program to a file that runs without this package, and without Python.

        As `GaiaZ.export` does, with one output for each score, in their order, called by its name with "_" for "-":
        "gaia_z"; and behind them one for each score with a threshold, "is_ood_gaia_z". The metadata's "scores" is JSON:
        for each score its "output", its "threshold" or null, with a threshold the output "decision", and for a GAIA
        score "method", its options, and "layers". A GAIA-Z that a precondition makes unknown is NaN; the others hold.

        Args:
            path, example, preset: as in `GaiaZ.export`.

        Returns:
            The path.

        Raises:
            ModelError, BackendError, ArgumentError: see the messages.

        Example:
            >>> from gaia_fast import Gaia, load
            >>> from gaia_fast.data.digits import held_out_digits
            >>> from gaia_fast.models import digits_resnet
            >>> model, (x, labels) = digits_resnet(pretrained=True), held_out_digits()
            >>> from tempfile import TemporaryDirectory
            >>> detector = Gaia(model, scores=("gaia-z", "msp"))
            >>> with TemporaryDirectory() as folder:
            ...     path = detector.export(f"{folder}/model.onnx", x[:4])
            ...     logits, scores = load(path).score(x[:2])
            >>> torch.allclose(scores["gaia-z"], detector(x[:2])["gaia-z"])
            True
        """
        examples = self._examples(example)
        of_layers = dict(zip(self._methods, self._layer_names(), strict=True))
        described: dict[str, dict[str, Any]] = {}
        known = self._known_thresholds()
        for name in self.scores:
            output = _output_name(name)
            described[name] = {"output": output, "threshold": known.get(name)}
            if name in known:
                described[name]["decision"] = decision_name(output)
            if output in self._methods:
                described[name] |= {"method": asdict(self._methods[output]), "layers": of_layers[output]}
        outputs = [_output_name(name) for name in self.scores]
        thresholds = {_output_name(name): known[name] for name in self.scores if name in known}
        return self._export(path, examples, preset, outputs, thresholds, {"scores": json.dumps(described)})

    def plan(self, x: Tensor) -> JointPlan:
        """Returns what will be done on batches like `x`: engine, backend, and each GAIA score's own plan; print it.

        Example:
            >>> from gaia_fast import Gaia
            >>> from gaia_fast.data.digits import held_out_digits
            >>> from gaia_fast.models import digits_resnet
            >>> model, (x, labels) = digits_resnet(pretrained=True), held_out_digits()
            >>> plan = Gaia(model).plan(x[:1])
            >>> plan.engine.name, len(plan.plans["gaia-z"].maps)
            ('hooks', 12)
        """
        found, plans = self._plans(x)
        return JointPlan(
            type(self.model).__name__,
            tuple(x.shape),
            found.engine,
            found.backend,
            found.runtime,
            found.programs,
            self.scores,
            {plan.method.name: plan for plan in plans},
        )

    def _arguments(self) -> dict[str, Any]:
        asked = zip(self.methods, self._options.layers, strict=True)
        plain = {name: list(each) if isinstance(each, (list, tuple)) else each for name, each in asked}
        own: dict[str, Any] = {"scores": list(self.scores), "layers": plain or None, "p": self._p}
        gaia_a = self.methods.get(Measure.GAIA_A)
        if gaia_a is not None:
            own |= {"head": self._head_name(), "fusion": str(gaia_a.fusion), "statistic": str(gaia_a.statistic)}
        return {**own, **super()._arguments()}

    def _saved_thresholds(self) -> dict[str, float]:
        return self._known_thresholds()

    def _saved_calibrations(self) -> dict[str, Calibration]:
        return self.calibrations

    def _restore(self, saved: SavedDetector) -> None:
        super()._restore(saved)
        self.thresholds, self.calibrations = dict(saved.thresholds), dict(saved.calibrations)

    def __repr__(self) -> str:
        options = [*self._methods.values()]
        return f"Gaia({type(self.model).__name__}, {self.scores}, {options}, thresholds={self.thresholds})"


def _output_name(score: str) -> str:
    """What a score is called where "-" means minus."""
    return score.replace("-", "_")


def _parsed(scores: Iterable[str]) -> tuple[str, ...]:
    if not isinstance(scores, Iterable):
        raise ArgumentError(f"scores={scores!r} names no scores; choose from {SCORES}")
    names = (scores,) if isinstance(scores, str) else tuple(scores)
    for name in names:
        if name not in SCORES:
            raise ArgumentError(f"the score {name!r} does not exist; choose from {SCORES}")
    if not names:
        raise ArgumentError(f"scores=() asks for nothing; choose from {SCORES}")
    if len(set(names)) < len(names):
        raise ArgumentError(f"scores={names} has a score twice; name each once")
    return tuple(str(name) for name in names)


def _by_measure(layers: Layers | Mapping[str, Layers], measures: Sequence[str]) -> tuple[Layers, ...]:
    """The layers of each GAIA score asked for."""
    given = dict(layers) if isinstance(layers, Mapping) else dict.fromkeys(measures, layers)
    for name in given:
        if name not in measures:
            raise ArgumentError(
                f"layers are named for {name!r}, which is none of the GAIA scores asked for, {measures}"
            )
    if not (layers is None or isinstance(layers, Mapping) or measures):
        raise ArgumentError("layers are inspected for GAIA scores, and none is asked for; leave layers out")
    return tuple(given.get(name) for name in measures)
