"""What was found of each image, one row an image, for tables and further analysis."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from gaia_fast.evaluation.image_sets import Evaluation

ID = "id"  # the in-distribution set, where sets have names


def image_columns(evaluation: Evaluation) -> dict[str, str]:
    """Returns the dtype of each column of `image_rows`, by its name, in order; labels may be missing."""
    scores = {method: str(each.dtype) for method, each in evaluation.id_set.scores.items()}
    return {
        "set": "string",
        "image": "string",
        "label": "int64",
        "predicted": "int64",
        **scores,
        **dict.fromkeys(evaluation.combinations, "float64"),
    }


def image_rows(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    """Yields a row for each image that could be read, the ID set first, in the order of the sources.

    Each has "set" (`ID`, or the name of the OOD set), "image" (as in `gaia_fast.data.Batch`), "label" (or None),
    "predicted", and a score for each method and combination by its name: larger = more OOD. Those of combinations are
    of one evaluation, which fitted them on its ID images, and not the paper's.
    """
    for name, scored in ((ID, evaluation.id_set), *evaluation.ood_sets.items()):
        scores: dict[str, np.ndarray] = dict(scored.scores)
        for key, each in evaluation.combinations.items():
            scores[key] = each.id_scores if scored is evaluation.id_set else each.ood_scores[name]
        labels = [None] * len(scored.names) if scored.labels is None else scored.labels.tolist()
        columns = (scored.names, labels, scored.predicted.tolist(), *(each.tolist() for each in scores.values()))
        for image, label, predicted, *values in zip(*columns, strict=True):
            found = dict(zip(scores, values, strict=True))
            yield {"set": name, "image": image, "label": label, "predicted": predicted, **found}
