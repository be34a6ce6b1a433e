"""A table for one network: its rows scored on all image sets that are there, and compared."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from gaia_fast.baselines import BASELINES
from gaia_fast.data import ImageSource
from gaia_fast.errors import DataError, GaiaError
from gaia_fast.evaluation.combinations import COMBINATIONS, cross_fitted
from gaia_fast.evaluation.image_sets import model_input
from gaia_fast.evaluation.metrics import OodMetrics, average, ood_metrics
from gaia_fast.reproduction.paper import AVERAGE, Figure
from gaia_fast.reproduction.scoring import GaiaScore, NetworkScores
from gaia_fast.reproduction.tables import Combined, Row, Table

_ALONE, _BATCH = 16, 32  # images that are timed, one by one and together
_ROUNDS = 3


@dataclass(frozen=True)
class Speed:
    """Images a second, prediction included: one by one, and in batches of `_BATCH`."""

    one_by_one: float
    in_batches: float


@dataclass(frozen=True)
class RowResult:
    """A row, computed.

    Attributes:
        row: what it is.
        metrics: by OOD set.
        missing: why there are none; "" where there are.
        speed: where it was measured.
    """

    row: Row
    metrics: Mapping[str, OodMetrics] = field(default_factory=dict)
    missing: str = ""
    speed: Speed | None = None

    def average(self, sets: Sequence[str]) -> Figure | None:
        """FPR95 (ID positive) and AUROC in per cent, averaged over those of the sets that there are."""
        there = {name: self.metrics[name] for name in sets if name in self.metrics}
        if not there:
            return None
        return Figure(100 * average(there, "fpr95_id_positive"), 100 * average(there, "auroc"))

    def paper(self, where: str, sets: Sequence[str], every: Sequence[str]) -> Figure | None:
        """The paper's figure on a set; for `AVERAGE`, over `sets`. Where it prints an average alone, that is given if
        these are `every` set it has."""
        of = self.row.paper
        if where != AVERAGE:
            return of.get(where)
        if AVERAGE in of:
            return of[AVERAGE] if set(sets) == set(every) else None
        there = [of[name] for name in sets if name in of]
        if not there or len(there) < len(sets):
            return None
        fpr95 = [each.fpr95 for each in there if each.fpr95 is not None]
        mean = sum(fpr95) / len(fpr95) if len(fpr95) == len(there) else None
        return Figure(mean, sum(each.auroc for each in there) / len(there))


@dataclass(frozen=True)
class TableResult:
    """A table for one network.

    Attributes:
        table: what it is.
        scores: of its network.
        rows: computed.
        n_id: images of the ID set; n_ood: of each OOD set.
        averaged: the sets that averages are over: those of the paper that are there; all, where there is none.
        accuracy: on the ID images, where they have labels.
        unusable: sets of which no image can be read, with the reason.
    """

    table: Table
    scores: NetworkScores
    rows: Sequence[RowResult]
    n_id: int
    n_ood: Mapping[str, int]
    averaged: Sequence[str]
    accuracy: float | None
    unusable: Sequence[str] = ()


def passes(rows: Sequence[Row]) -> tuple[int, bool]:
    """How often the images go through the network for rows, and whether images to fit on do, too."""
    of_images = {row.score for row in rows if isinstance(row.score, str) and BASELINES[row.score].of_images}
    scores = [
        each for row in rows for each in (row.score.of.values() if isinstance(row.score, Combined) else [row.score])
    ]
    gaia = {(each.method, each.fusion) for each in scores if isinstance(each, GaiaScore)}
    fitted = any(isinstance(row.score, str) and BASELINES[row.score].fitted for row in rows)
    return len(of_images) + len(gaia) + 1, fitted


def compute(
    table: Table,
    rows: Sequence[Row],
    scores: NetworkScores,
    id_source: ImageSource,
    ood_sources: Mapping[str, ImageSource],
) -> TableResult:
    """Computes a table. A row that cannot be computed says why, and the others go on.

    Args:
        table: what is asked for.
        rows: its rows.
        scores: of the network.
        id_source, ood_sources: the images; at least one OOD set.

    Raises:
        GaiaError: the network cannot score the ID set at all.
    """
    found, labels = scores.representation(id_source)
    accuracy = None if labels is None else float((found.logits.argmax(1).numpy() == labels).mean())
    there, unusable = {}, []
    for name, source in ood_sources.items():
        try:
            source.first(1)
            there[name] = source
        except DataError as error:
            unusable.append(f"{name}: {error}")
    if not there:
        raise DataError(f"no OOD set can be used: {'; '.join(unusable)}")
    results = [_computed(scores, row, id_source, there, table.speed) for row in rows]
    averaged = [name for name in scores.network.paper_sets if name in there] or list(there)
    counts = next((row.metrics for row in results if row.metrics), {})
    return TableResult(
        table,
        scores,
        results,
        len(found.logits),
        {name: each.n_ood for name, each in counts.items()},
        averaged,
        accuracy,
        unusable,
    )


def _computed(
    scores: NetworkScores, row: Row, id_source: ImageSource, ood: Mapping[str, ImageSource], timed: bool
) -> RowResult:
    try:
        inside, outside = _scores(scores, row, id_source, ood)
        metrics = {name: ood_metrics(inside, each) for name, each in outside.items()}
        return RowResult(row, metrics, speed=_speed(scores, row, id_source) if timed else None)
    except GaiaError as error:
        return RowResult(row, missing=str(error))


def _scores(
    scores: NetworkScores, row: Row, id_source: ImageSource, ood: Mapping[str, ImageSource]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Scores of the ID set and of each OOD set."""

    def of(score: str | GaiaScore, source: ImageSource) -> np.ndarray:
        return scores.baseline(score, source) if isinstance(score, str) else scores.gaia(score, source)

    if not isinstance(row.score, Combined):
        score = row.score
        return of(score, id_source), {name: of(score, source) for name, source in ood.items()}
    single = row.score.of
    inside = {method: of(score, id_source) for method, score in single.items()}
    outside = {name: {m: of(score, source) for m, score in single.items()} for name, source in ood.items()}
    return cross_fitted(COMBINATIONS[row.score.combination], inside, outside)


def _speed(scores: NetworkScores, row: Row, source: ImageSource) -> Speed:
    """Prediction and score of images, by the fastest of some rounds."""
    images = model_input(scores.model, source.first(_BATCH).images)
    score: Callable[[Tensor], Tensor]
    assert not isinstance(row.score, Combined)  # no such row is timed
    score = scores.on_images(row.score) if isinstance(row.score, str) else scores.detector_of(row.score, images).predict
    one = [images[index : index + 1] for index in range(min(_ALONE, len(images)))]
    score(one[0]), score(images)
    alone = min(_time(score, one) for _ in range(_ROUNDS))
    together = min(_time(score, [images]) for _ in range(_ROUNDS))
    return Speed(len(one) / alone, len(images) / together)


def _time(score: Callable[[Tensor], Tensor], batches: Sequence[Tensor]) -> float:
    start = time.perf_counter()
    for images in batches:
        score(images).cpu()
    return time.perf_counter() - start
