"""Scores of whole image sets, and how well they separate OOD sets from the in-distribution (ID) one. Prints nothing."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from gaia_fast.calibration import threshold_for
from gaia_fast.data import Batch, ImageSource, SurrogateSource
from gaia_fast.detector import GaiaA, GaiaZ
from gaia_fast.errors import ArgumentError, CalibrationError, DataError, NonFiniteError
from gaia_fast.evaluation import combinations
from gaia_fast.evaluation.layer_sweep import GroupResult, sweep_layers
from gaia_fast.evaluation.metrics import Intervals, OodMetrics, average, bootstrap_intervals, ood_metrics
from gaia_fast.gaia import Gaia
from gaia_fast.options import BackendOption, EngineOption, FusionOption, RuntimeOption, StatisticOption
from gaia_fast.outputs import GaiaScores

Detector = GaiaA | GaiaZ
Detectors = Mapping[str, Detector] | Gaia  # by method; or one of several scores, which reads each image once
METHODS = ("gaia-a", "gaia-z")
BASELINE = "msp"  # maximum softmax probability: what the logits alone tell, and no GAIA


def make_detector(
    method: str,
    model: nn.Module,
    *,
    layers: Sequence[str] | None = None,
    engine: EngineOption = "auto",
    backend: BackendOption = "auto",
    runtime: RuntimeOption = "auto",
    head: str | None = None,
    fusion: FusionOption = "division",
    statistic: StatisticOption = "abs_mean",
) -> Detector:
    """The detector of a method by its name; `head`, `fusion` and `statistic` are gaia-a's alone.

    Raises:
        GaiaError: as `GaiaA` and `GaiaZ`; ArgumentError for a method that does not exist.
    """
    if method == "gaia-a":
        return GaiaA(
            model,
            layers=layers,
            head=head,
            fusion=fusion,
            statistic=statistic,
            engine=engine,
            backend=backend,
            runtime=runtime,
        )
    if method == "gaia-z":
        return GaiaZ(model, layers=layers, engine=engine, backend=backend, runtime=runtime)
    raise ArgumentError(f"method={method!r} does not exist; choose from {METHODS}")


@dataclass(frozen=True)
class ScoredBatch:
    """One batch of images with what was found.

    Attributes:
        names: one per image, as in `gaia_fast.data.Batch`.
        labels: int64 (B,), or None.
        predicted: int64 (B,), the class of the largest logit.
        scores: float32 or float64 (B,) by method; `BASELINE` is among them.
        rows: where they were asked for, float64 (B, L) by method: the norms of the rows of Lambda, one a layer.
    """

    names: list[str]
    labels: np.ndarray | None
    predicted: np.ndarray
    scores: dict[str, np.ndarray]
    rows: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class ScoredSet:
    """All readable images of a source, scored; the fields are those of `ScoredBatch`, end to end.

    Attributes:
        unreadable: (name, reason) of each image that was left out.
        surrogate: whether the images are stand-ins made from others; see `gaia_fast.data.surrogates`.
    """

    names: list[str]
    labels: np.ndarray | None
    predicted: np.ndarray
    scores: dict[str, np.ndarray]
    unreadable: list[tuple[str, str]]
    rows: dict[str, np.ndarray] = field(default_factory=dict)
    surrogate: bool = False

    @property
    def accuracy(self) -> float | None:
        """The share of images whose predicted class is their label; None without labels."""
        return None if self.labels is None else float((self.predicted == self.labels).mean())


@dataclass(frozen=True)
class MethodResult:
    """What one method does on all sets.

    Attributes:
        threshold: the smallest that accepts 95 % of the ID images.
        metrics: by the name of the OOD set.
        intervals: of these, where they were asked for.
    """

    threshold: float
    metrics: dict[str, OodMetrics]
    intervals: dict[str, Intervals] = field(default_factory=dict)

    def average(self, metric: str) -> float:
        """The mean over the OOD sets of a field of `OodMetrics`."""
        return average(self.metrics, metric)


@dataclass(frozen=True)
class CombinationResult:
    """What one combination of scores does on all sets; not in the paper.

    Attributes:
        title: what it is, in words.
        id_scores: float64 (N,) of the ID images, each by a fit that has not seen it; see `cross_fitted`.
        ood_scores: float64 (M,) of each OOD set by its name.
        result: of these scores.
    """

    title: str
    id_scores: np.ndarray
    ood_scores: dict[str, np.ndarray]
    result: MethodResult


@dataclass(frozen=True)
class Evaluation:
    """One ID set against several OOD sets.

    Attributes:
        id_set: the ID set.
        ood_sets: the OOD sets by name.
        results: by method; the `BASELINE` comes last.
        by_layers: where it was asked for, by method: what each group of layers does; see `sweep_layers`.
        combinations: by the names of `gaia_fast.evaluation.combinations.COMBINATIONS`, where both methods are there.
        not_combined: why there are none although both methods are there; else empty.
    """

    id_set: ScoredSet
    ood_sets: dict[str, ScoredSet]
    results: dict[str, MethodResult]
    by_layers: dict[str, dict[str, GroupResult]] = field(default_factory=dict)
    combinations: dict[str, CombinationResult] = field(default_factory=dict)
    not_combined: str = ""

    @property
    def on_surrogates(self) -> bool:
        """Whether the OOD sets are stand-ins made from in-distribution images, so that nothing here is of OOD data."""
        return any(each.surrogate for each in self.ood_sets.values())


def each_of(detectors: Detectors) -> list[Detector | Gaia]:
    """The detectors themselves, one or more, all of the same model."""
    return [detectors] if isinstance(detectors, Gaia) else list(detectors.values())


def model_input(model: nn.Module, images: Tensor) -> Tensor:
    """The images on the device and in the dtype of the model."""
    first = next((each for each in model.parameters() if each.is_floating_point()), None)
    return images if first is None else images.to(first.device, first.dtype)


def scored_batches(
    detectors: Detectors, source: ImageSource, batch_size: int = 64, rows: bool = False
) -> Iterator[ScoredBatch]:
    """The readable images of a source with their predictions and scores, batch by batch, in order.

    Args:
        detectors: at least one, by method, all of the same model; or one of several scores.
        source: the images. Those that cannot be read are noted in its `unreadable`.
        batch_size: images that go through the network together.
        rows: whether to give the norms of the rows of Lambda, too.

    Raises:
        GaiaError: as `score` of a detector.
    """
    for batch in source.batches(batch_size):
        yield scored_batch(detectors, batch, rows)


def scored_batch(detectors: Detectors, batch: Batch, rows: bool = False) -> ScoredBatch:
    """One batch of a source, as `scored_batches`."""
    try:
        found = _scored(detectors, batch.images, rows)
    except NonFiniteError as error:
        # The error counts within the batch; the reader knows names.
        raise NonFiniteError(f"{error} (the batch from {batch.names[0]} to {batch.names[-1]})") from error
    by_layer = {
        method: torch.linalg.vector_norm(matrix.double(), _order(detectors, method), dim=2).cpu().numpy()
        for method, matrix in found.matrices.items()
    }
    scores = {method: score.cpu().numpy() for method, score in found.scores.items()}
    logits = found.logits.double().cpu()
    if BASELINE not in scores:  # else as asked for, so that a threshold is of the numbers that it is compared with
        scores[BASELINE] = -torch.softmax(logits, dim=1).max(dim=1).values.numpy()
    labels = None if batch.labels is None else batch.labels.numpy()
    return ScoredBatch(batch.names, labels, logits.argmax(dim=1).numpy(), scores, by_layer)


def _scored(detectors: Detectors, images: Tensor, rows: bool) -> GaiaScores:
    """What all methods make of a batch, with their matrices where `rows`."""
    if isinstance(detectors, Gaia):
        return detectors.score(model_input(detectors.model, images), return_matrix=rows)
    found = {
        method: detector.score(model_input(detector.model, images), return_matrix=rows)
        for method, detector in detectors.items()
    }
    matrices = {method: each.matrix for method, each in found.items() if each.matrix is not None}
    *_, last = found.values()
    return GaiaScores(last.logits, {method: each.score for method, each in found.items()}, matrices)


def _order(detectors: Detectors, method: str) -> float:
    """The order of the norm that a method aggregates with."""
    return (detectors.methods[method] if isinstance(detectors, Gaia) else detectors[method].method).p


def score_set(
    detectors: Detectors,
    source: ImageSource,
    batch_size: int = 64,
    advance: Callable[[int], None] = lambda images: None,
    rows: bool = False,
) -> ScoredSet:
    """All readable images of a source with their predictions and scores.

    Args:
        detectors, source, batch_size, rows: as in `scored_batches`.
        advance: called with the number of images after each batch.

    Raises:
        DataError: not one image can be read. GaiaError: as `scored_batches`.
    """
    batches = []
    for batch in scored_batches(detectors, source, batch_size, rows):
        batches.append(batch)
        advance(len(batch.names))
    if not batches:
        first = "; ".join(f"{name}: {reason}" for name, reason in source.unreadable[:3])
        raise DataError(f"none of the {len(source)} images can be read ({first})")
    labels = [batch.labels for batch in batches if batch.labels is not None]
    return ScoredSet(
        names=[name for batch in batches for name in batch.names],
        labels=np.concatenate(labels) if labels else None,
        predicted=np.concatenate([batch.predicted for batch in batches]),
        scores={key: np.concatenate([batch.scores[key] for batch in batches]) for key in batches[0].scores},
        unreadable=source.unreadable,
        rows={key: np.concatenate([batch.rows[key] for batch in batches]) for key in batches[0].rows},
        surrogate=isinstance(source, SurrogateSource),
    )


def compare(id_set: ScoredSet, ood_sets: Mapping[str, ScoredSet], resamples: int = 0) -> Evaluation:
    """The metrics of every method on every OOD set, and of combinations of the methods' scores.

    Args:
        id_set, ood_sets: scored with the same methods.
        resamples: of the bootstrap, for intervals of the metrics; 0 for none.

    Raises:
        CalibrationError: as `ood_metrics`. ArgumentError: OOD sets of both kinds, images and surrogates.
    """
    if len({each.surrogate for each in ood_sets.values()}) > 1:
        raise ArgumentError("an average over OOD images and surrogates means nothing; compare them one after the other")
    results = {
        method: _result(id_scores, {name: each.scores[method] for name, each in ood_sets.items()}, resamples)
        for method, id_scores in id_set.scores.items()
    }
    combined, why_not = {}, ""
    if set(combinations.METHODS) <= results.keys():
        try:
            combined = _combined(id_set, ood_sets, resamples)
        except CalibrationError as error:  # of scores with which the methods themselves can be judged
            why_not = str(error)
    return Evaluation(id_set, dict(ood_sets), results, combinations=combined, not_combined=why_not)


def _result(id_scores: np.ndarray, ood_scores: Mapping[str, np.ndarray], resamples: int) -> MethodResult:
    return MethodResult(
        threshold_for(id_scores),
        {name: ood_metrics(id_scores, scores) for name, scores in ood_scores.items()},
        {name: bootstrap_intervals(id_scores, scores, resamples) for name, scores in ood_scores.items() if resamples},
    )


def _combined(id_set: ScoredSet, ood_sets: Mapping[str, ScoredSet], resamples: int) -> dict[str, CombinationResult]:
    def of_both(scored: ScoredSet) -> dict[str, np.ndarray]:
        return {method: scored.scores[method] for method in combinations.METHODS}

    found = {}
    for name, combination in combinations.COMBINATIONS.items():
        inside, outside = combinations.cross_fitted(
            combination, of_both(id_set), {ood_name: of_both(each) for ood_name, each in ood_sets.items()}
        )
        result = _result(inside, outside, resamples)
        found[name] = CombinationResult(combinations.title(name), inside, outside, result)
    return found


def evaluate(
    detectors: Detectors,
    id_source: ImageSource,
    ood_sources: Mapping[str, ImageSource],
    batch_size: int = 64,
    advance: Callable[[int], None] = lambda images: None,
    by_layers: bool = False,
    resamples: int = 0,
) -> Evaluation:
    """Scores an ID set and OOD sets, and compares them.

    Args:
        detectors, batch_size, advance: as in `score_set`.
        id_source, ood_sources: the images.
        by_layers: whether to compare all groups of layers, too; see `sweep_layers`.
        resamples: as in `compare`.

    Raises:
        GaiaError: as `score_set` and `compare`.
    """
    id_set = score_set(detectors, id_source, batch_size, advance, by_layers)
    ood_sets = {
        name: score_set(detectors, source, batch_size, advance, by_layers) for name, source in ood_sources.items()
    }
    compared = compare(id_set, ood_sets, resamples)
    if not by_layers:
        return compared
    example = next(id_source.batches(1)).images
    swept = {}
    if isinstance(detectors, Gaia):
        plans = detectors.plan(model_input(detectors.model, example)).plans
    else:
        plans = {method: each.plan(model_input(each.model, example)) for method, each in detectors.items()}
    for method, plan in plans.items():
        if not plan.method.needs_maps:  # the output component has no layers
            continue
        rows = {name: each.rows[method] for name, each in ood_sets.items()}
        swept[method] = sweep_layers(plan.maps, id_set.rows[method], rows, plan.method.p)
    return replace(compared, by_layers=swept)


def weak_spots(evaluation: Evaluation, below: float = 0.8) -> list[str]:
    """One sentence for each method and OOD set with an AUROC less than `below`, and for each OOD set on which the
    baseline beats every method."""
    methods = {method: result for method, result in evaluation.results.items() if method != BASELINE}
    what = "surrogates" if evaluation.on_surrogates else "OOD images"
    sentences = []
    for method, result in methods.items():
        for name, metrics in result.metrics.items():
            if metrics.auroc >= below:
                continue
            how = f"the wrong way round: {what} score lower than ID ones" if metrics.auroc < 0.5 else "badly"
            sentences.append(
                f"{method} separates '{name}' {how} (AUROC {metrics.auroc:.3f}, where 0.5 is chance; it accepts "
                f"{metrics.fpr95_id_positive:.0%} of its images)"
            )
    for name in evaluation.ood_sets:
        best = max(result.metrics[name].auroc for result in methods.values())
        baseline = evaluation.results[BASELINE].metrics[name].auroc
        if baseline > best:
            sentences.append(
                f"on '{name}' the maximum softmax probability alone does better (AUROC {baseline:.3f}) than every "
                f"method here (at best {best:.3f})"
            )
    return sentences
