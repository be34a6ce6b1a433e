from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gaia_fast.reproduction.score_cache import Arrays, ScoreCache, code_digest, model_digest


class Computation:
    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> Arrays:
        self.times += 1
        return {"scores": np.arange(3.0), "unreadable": np.array(["a: b"])}


@pytest.fixture
def compute() -> Computation:
    return Computation()


def test_what_is_kept_is_not_computed_again(tmp_path: Path, compute: Computation) -> None:
    first = ScoreCache(tmp_path / "cache").get({"what": "msp"}, compute)
    again = ScoreCache(tmp_path / "cache").get({"what": "msp"}, compute)
    assert compute.times == 1
    np.testing.assert_array_equal(first["scores"], again["scores"])
    assert again["unreadable"].tolist() == ["a: b"]


def test_another_key_is_another_result(tmp_path: Path, compute: Computation) -> None:
    cache = ScoreCache(tmp_path)
    cache.get({"what": "msp", "images": "a"}, compute)
    cache.get({"what": "msp", "images": "b"}, compute)
    assert compute.times == 2


def test_other_code_is_another_result(tmp_path: Path, compute: Computation, monkeypatch: pytest.MonkeyPatch) -> None:
    ScoreCache(tmp_path).get({"what": "msp"}, compute)
    monkeypatch.setattr("gaia_fast.reproduction.score_cache.code_digest", lambda parts: "changed")
    ScoreCache(tmp_path).get({"what": "msp"}, compute)
    assert compute.times == 2


def test_a_damaged_file_is_computed_again(tmp_path: Path, compute: Computation) -> None:
    ScoreCache(tmp_path).get({"what": "msp"}, compute)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:50])
    found = ScoreCache(tmp_path).get({"what": "msp"}, compute)
    assert compute.times == 2
    assert found["scores"].shape == (3,)


def test_without_a_folder_nothing_is_kept(compute: Computation) -> None:
    cache = ScoreCache(None)
    cache.get({"what": "msp"}, compute)
    cache.get({"what": "msp"}, compute)
    assert compute.times == 2


def test_a_computation_that_is_stopped_leaves_nothing(tmp_path: Path) -> None:
    def stopped() -> Arrays:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ScoreCache(tmp_path / "cache").get({"what": "msp"}, stopped)
    assert not (tmp_path / "cache").exists()


def test_digests_tell_models_and_code_apart() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = model_digest(model)
    assert model_digest(model) == before
    model[1].running_mean[2] += 1e-6  # type: ignore[index, operator]
    assert model_digest(model) != before
    assert len({code_digest(), code_digest(("baselines",)), code_digest(("data",))}) == 3
