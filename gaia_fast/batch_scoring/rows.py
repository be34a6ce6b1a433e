"""What a table says of each image: its class, its scores, and whether they are above a threshold."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gaia_fast.evaluation.image_sets import ScoredBatch

Row = dict[str, Any]

_FIRST = {"image": "string", "predicted": "int64"}


class Column(NamedTuple):
    """A method's scores; with a threshold, whether they are above it."""

    name: str
    method: str
    threshold: float | None = None


def columns(methods: Sequence[str], thresholds: Mapping[str, float]) -> tuple[Column, ...]:
    """What a row holds beside the image and its class."""
    alone = len(methods) == 1
    found = []
    for method in methods:
        found.append(Column("score" if alone else method, method))
        if method in thresholds:
            found.append(Column("is_ood" if alone else f"is_ood_{method}", method, thresholds[method]))
    return tuple(found)


def types(columns: Sequence[Column]) -> dict[str, str]:
    """The type of each column of a row by its name, in order."""
    return _FIRST | {each.name: "float32" if each.threshold is None else "bool" for each in columns}


def rows(batch: ScoredBatch, columns: Sequence[Column]) -> list[Row]:
    """A row for each image of a batch."""
    values = {each.method: batch.scores[each.method].tolist() for each in columns}
    found = []
    for place, (name, predicted) in enumerate(zip(batch.names, batch.predicted.tolist(), strict=True)):
        row: Row = {"image": name, "predicted": predicted}
        for each in columns:
            value = values[each.method][place]
            row[each.name] = value if each.threshold is None else value > each.threshold
        found.append(row)
    return found
