"""What a replica makes of batches, and of itself."""

from pathlib import Path

import numpy as np
import pytest
import torch

from gaia_fast import Gaia, GaiaA, GaiaOutput, GaiaZ
from gaia_fast.data.digits import held_out_digits
from gaia_fast.errors import NonFiniteError
from gaia_fast.models import digits_resnet
from gaia_fast.scorers import calibrations_of, score_names, set_thresholds, thresholds_of
from gaia_fast.serving.errors import ReplicaError, RequestError
from gaia_fast.serving.replica import ImageScores, Replica

from served import digits_detector

EXAMPLE = held_out_digits()[0][:2].numpy()


@pytest.fixture(autouse=True)
def same_threads() -> None:
    """A replica sets the process's number of threads."""
    torch.set_num_threads(torch.get_num_threads())


def replica(detector: GaiaA | GaiaZ | Gaia, cache_dir: Path | None = None) -> Replica:
    return Replica(detector, EXAMPLE, torch.get_num_threads(), 16, cache_dir)


def test_a_batch_is_scored_as_the_detector_scores_it(tmp_path: Path) -> None:
    detector, images = digits_detector(), held_out_digits()[0][10:17]
    made = replica(detector, tmp_path / "programs")
    assert list((tmp_path / "programs").iterdir())
    found = made.score(images.numpy())
    out = detector.score(images)
    assert detector.program(images) is not None
    assert found.predicted.tolist() == out.logits.argmax(1).tolist()
    assert np.array_equal(found.scores["gaia-z"], out.score.double().numpy())
    assert [type(each) for each in found.answers()] == [ImageScores] * 7


def test_several_scores() -> None:
    detector = Gaia(digits_resnet(pretrained=True), scores=("msp", "gaia-z"), engine="hooks")
    found = replica(detector).score(EXAMPLE).answers()[1]
    assert isinstance(found, ImageScores)
    assert list(found.scores) == ["msp", "gaia-z"]


def test_images_that_cannot_be_scored_take_no_other_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = GaiaZ(digits_resnet(pretrained=True), engine="hooks")
    made, score = replica(detector), GaiaZ.score

    def no_darkness(self: GaiaZ, x: torch.Tensor) -> GaiaOutput:
        if (x == -1).flatten(1).all(1).any():
            raise NonFiniteError("an image is dark")
        return score(self, x)

    monkeypatch.setattr(GaiaZ, "score", no_darkness)
    images = held_out_digits()[0][:5].clone()
    images[[1, 4]] = -1
    answers = made.score(images.numpy()).answers()
    refused = [each for each in answers if isinstance(each, RequestError)]
    assert [isinstance(each, RequestError) for each in answers] == [False, True, False, False, True]
    assert {(str(each), each.status) for each in refused} == {("an image is dark", 422)}
    monkeypatch.undo()
    expected = detector.score(images)
    for place in (0, 2, 3):
        answer = answers[place]
        assert isinstance(answer, ImageScores)
        assert answer.scores["gaia-z"] == pytest.approx(float(expected.score[place]), rel=1e-6)


def test_a_fault_of_the_replica_is_not_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    made = replica(GaiaZ(digits_resnet(pretrained=True), engine="hooks"))

    def fail(self: GaiaZ, x: torch.Tensor) -> GaiaOutput:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(GaiaZ, "score", fail)
    answers = made.score(EXAMPLE).answers()
    assert [(str(each), each.status) for each in answers if isinstance(each, ReplicaError)] == [
        ("the replica failed: OutOfMemoryError: no memory", 500)
    ] * 2
    with pytest.raises(RuntimeError, match="has changed since"):
        made.check()
    with pytest.raises(ReplicaError, match="no memory"):
        replica(GaiaZ(digits_resnet(pretrained=True), engine="hooks"))


def test_a_replica_whose_model_has_changed_says_so() -> None:
    detector = digits_detector()
    made = replica(detector)
    made.check()
    with torch.no_grad():
        next(each for each in detector.model.modules() if isinstance(each, torch.nn.BatchNorm2d)).bias.add_(0.3)
    with pytest.raises(RuntimeError, match="gaia-z of the images .* has changed"):
        made.check()


@pytest.mark.parametrize("engine", ["hooks", "reference"])
def test_engines_with_nothing_to_prepare(engine: str) -> None:
    detector = GaiaZ(digits_resnet(pretrained=True), engine=engine)  # type: ignore[arg-type]
    assert len(replica(detector).score(EXAMPLE).answers()) == 2


def test_thresholds_and_calibrations_by_name() -> None:
    one, several = digits_detector(), Gaia(digits_resnet(pretrained=True), scores=("gaia-z", "energy"))
    assert score_names(one) == ("gaia-z",)
    assert thresholds_of(one) == {"gaia-z": one.threshold}
    assert calibrations_of(one)["gaia-z"].images == 300
    assert thresholds_of(several) == {"gaia-z": None, "energy": None}
    set_thresholds(several, {"energy": 2.0})
    assert thresholds_of(several) == {"gaia-z": None, "energy": 2.0}
    set_thresholds(one, {"gaia-z": 3.0})
    assert (one.threshold, calibrations_of(one)) == (3.0, {})
