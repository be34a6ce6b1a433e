import numpy as np

from gaia_fast.evaluation.image_rows import image_columns, image_rows
from gaia_fast.evaluation.image_sets import ScoredSet, compare


def scored(scores: dict[str, np.ndarray], labels: np.ndarray | None = None) -> ScoredSet:
    count = scores["gaia-z"].size
    return ScoredSet([f"{index}.png" for index in range(count)], labels, np.arange(count), scores, [])


def test_a_row_for_each_image_of_each_set() -> None:
    z = np.array([1, 2, 3, 5], dtype=np.float32)
    id_set = scored({"gaia-z": z, "msp": -z.astype(np.float64)}, labels=np.array([7, 1, 2, 9]))
    found = compare(id_set, {"far": scored({"gaia-z": z[:2] + 9, "msp": np.zeros(2)})})
    assert image_columns(found) == {
        "set": "string", "image": "string", "label": "int64", "predicted": "int64", "gaia-z": "float32",
        "msp": "float64",
    }  # fmt: skip
    rows = list(image_rows(found))
    assert rows[3] == {"set": "id", "image": "3.png", "label": 9, "predicted": 3, "gaia-z": 5.0, "msp": -5.0}
    assert rows[5] == {"set": "far", "image": "1.png", "label": None, "predicted": 1, "gaia-z": 11.0, "msp": 0.0}
    assert len(rows) == 6
    assert all(list(row) == list(image_columns(found)) for row in rows)


def test_combinations_are_columns_too() -> None:
    random = np.random.default_rng(0)
    sets = [scored({each: random.normal(size=size) for each in ("gaia-z", "gaia-a", "msp")}) for size in (8, 3)]
    found = compare(sets[0], {"far": sets[1]})
    rows = list(image_rows(found))
    assert list(rows[0]) == list(image_columns(found))
    for name, each in found.combinations.items():
        assert image_columns(found)[name] == "float64"
        assert [row[name] for row in rows] == [*each.id_scores, *each.ood_scores["far"]]
