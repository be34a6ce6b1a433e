"""Detectors saved and loaded: the same scores in another process, and refused for another model."""

import copy
import inspect
import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from gaia_fast import Gaia, GaiaA, GaiaZ, load
from gaia_fast.detector_file import SavedDetector
from gaia_fast.errors import ArgumentError, GaiaError, LayerError, ModelError

import zoo


def detectors(model: nn.Module) -> dict[str, GaiaA | GaiaZ | Gaia]:
    return {
        "gaia-z": GaiaZ(model, layers=["residual"], p=3.0, engine="hooks", on_unprepared="error"),
        "stage": GaiaZ(model, layers="last_stage", runtime="eager", p=float("inf")),
        "gaia-a": GaiaA(model, head=model.get_submodule("fc"), fusion="inner", statistic="mean_abs", backend="torch"),
        "several": Gaia(model, scores=("msp", "gaia-a", "gaia-z"), layers={"gaia-a": ["residual"]}, head="fc"),
        "logits": Gaia(model, scores=("energy", "max_logit")),
    }


KINDS = list(detectors(zoo.build("strided_shortcut")))


def scores(detector: GaiaA | GaiaZ | Gaia, x: Tensor) -> list[Tensor]:
    found = detector.predict(x)
    return list(found.values()) if isinstance(found, dict) else [found]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("calibrated", [False, True])
def test_a_loaded_detector_is_the_saved_one(tmp_path: Path, kind: str, calibrated: bool) -> None:
    model, x = zoo.build("strided_shortcut"), zoo.images(20)
    detector = detectors(model)[kind]
    if calibrated:
        detector.calibrate(x, 0.9)
    path = detector.save(tmp_path / "det.gaia")
    again = load(
        path, torch.nn.DataParallel(zoo.build("strided_shortcut")) if kind == "gaia-z" else copy.deepcopy(model)
    )
    assert type(again) is type(detector)
    assert repr(again) == repr(detector)
    assert again._arguments() == detector._arguments()
    assert again.inspected_layers == detector.inspected_layers
    for mine, theirs in zip(scores(again, x), scores(detector, x), strict=True):
        assert torch.equal(mine, theirs)
    if calibrated:
        assert again._saved_thresholds() == detector._saved_thresholds() != {}
        for one, other in zip(
            again._saved_calibrations().values(), detector._saved_calibrations().values(), strict=True
        ):
            assert (one.images, one.id_tpr) == (other.images, other.id_tpr) == (20, 0.9)
            assert torch.equal(one.quantiles, other.quantiles)


def test_all_that_a_detector_is_made_with_is_saved() -> None:
    model = zoo.build("strided_shortcut")
    for detector in (GaiaZ(model), GaiaA(model), Gaia(model)):
        parameters = list(inspect.signature(type(detector)).parameters)
        assert sorted(detector._arguments()) == sorted(set(parameters) - {"model"})


@pytest.mark.parametrize("images", [777, 100, 2])
def test_quantiles_are_scores_of_images(images: int) -> None:
    detector = GaiaZ(zoo.build("parallel"), engine="hooks")
    given = np.random.default_rng(0).normal(size=images)
    found = detector.calibrate(given, np.float32(0.95)).calibration
    assert found is not None
    assert found.images == images
    for share in (0.07, 0.14, 0.28, 0.56, 0.9, 1.0):
        assert float(found.quantiles[round(1000 * share)]) == detector.calibrate(given, share).threshold
    detector.calibrate(given, 0.95)
    assert set(found.quantiles.tolist()) <= set(given.tolist())
    assert float(found.quantiles[950]) == detector.threshold
    assert (float(found.quantiles[0]), float(found.quantiles[-1])) == (given.min(), given.max())


def _score_elsewhere(path: Path, x: Tensor, queue: Any) -> None:
    detector = load(path, zoo.build("strided_shortcut"))
    assert not isinstance(detector, Gaia)
    queue.put((detector(x).tolist(), detector.threshold))


def test_another_process_gives_the_same_bits(tmp_path: Path) -> None:
    model, x = zoo.build("strided_shortcut"), zoo.images(6)
    detector = GaiaA(model, engine="hooks").calibrate(x)
    path = detector.save(tmp_path / "det.gaia")
    context = multiprocessing.get_context("spawn")
    queue: Any = context.Queue()
    process = context.Process(target=_score_elsewhere, args=(path, x, queue))
    process.start()
    found, threshold = queue.get(timeout=300)
    process.join()
    assert found == detector(x).tolist()
    assert threshold == detector.threshold


def _predict(detector: GaiaZ, x: Tensor, queue: Any) -> None:
    queue.put(detector(x).tolist())


def test_a_detector_goes_to_a_spawned_process() -> None:
    x = zoo.images(3)
    detector = GaiaZ(zoo.build("vgg_like"), engine="hooks")
    context = multiprocessing.get_context("spawn")
    queue: Any = context.Queue()
    process = context.Process(target=_predict, args=(detector, x, queue))
    process.start()
    found = queue.get(timeout=300)
    process.join()
    assert found == detector(x).tolist()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda model: model.fc.weight.data[0, 0].add_(1), r"tensor 'fc\.weight' is float32"),
        (lambda model: model.double(), r"tensor '.*' is float64 .*, and was float32"),
        (lambda model: setattr(model, "fc", nn.Identity().eval()), r"module 'fc' is Identity\(\), and was Linear\("),
        (lambda model: setattr(model, "more", nn.ReLU().eval()), r"module 'more' is ReLU\(\), and was not there"),
        (lambda model: model.get_buffer("shortcut.1.running_mean").add_(1), r"tensor 'shortcut\.1\.running_mean'"),
    ],
    ids=["weight", "dtype", "module", "new", "buffer"],
)
def test_another_model_is_refused_by_what_differs(tmp_path: Path, change: Any, named: str) -> None:
    path = GaiaZ(zoo.build("strided_shortcut")).calibrate([1.0, 2.0]).save(tmp_path / "det.gaia")
    model = zoo.build("strided_shortcut")
    change(model)
    with pytest.raises(ModelError, match=named):
        load(path, model)


def test_other_defaults_of_a_later_release_are_refused(tmp_path: Path) -> None:
    model = zoo.build("strided_shortcut")
    path = GaiaZ(model).save(tmp_path / "det.gaia")
    with safe_open(path, "pt") as file:
        header = file.metadata()
    ((key, text),) = header.items()
    written = json.loads(text)
    gone = written["inspected"]["score"].pop()
    save_file({}, path, {key: json.dumps(written)})
    with pytest.raises(LayerError, match=f"other layers than it would inspect here: '{gone}'"):
        load(path, model)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as a saved detector"),
        (b"0" * 100, "cannot be read as a saved detector"),
        (None, "is not a file"),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "det.gaia"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArgumentError, match=message):
        load(path, zoo.build("parallel"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2, "version": "9.9"}, "written by gaia_fast 9.9, in a form that"),
        ({"kind": "GaiaQ"}, "is a GaiaQ"),
        ({"arguments": {"colour": "red"}}, "cannot be made of"),
        ({"arguments": {"engine": "warp"}}, "engine='warp' does not exist"),
        ({"thresholds": {"score": float("nan")}}, "threshold"),
        ({"fingerprint": {}}, "fingerprint"),
    ],
    ids=["later", "kind", "unknown argument", "option", "threshold", "fingerprint"],
)
def test_files_that_say_what_cannot_be(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    model = zoo.build("parallel")
    path = GaiaZ(model).save(tmp_path / "det.gaia")
    with safe_open(path, "pt") as file:
        header = file.metadata()
    ((key, text),) = header.items()
    save_file({}, path, {key: json.dumps({**json.loads(text), **change})})
    with pytest.raises(GaiaError, match=message):
        load(path, model)


def test_endings_and_folders(tmp_path: Path) -> None:
    model = zoo.build("parallel")
    detector = GaiaZ(model)
    with pytest.raises(ArgumentError, match=r"does not end in '\.gaia'"):
        detector.save(tmp_path / "det.bin")
    with pytest.raises(ArgumentError, match="does not exist"):
        detector.save(tmp_path / "nowhere" / "det.gaia")
    path = detector.save(tmp_path / "det.gaia")
    with pytest.raises(ArgumentError, match="without its model"):
        load(path)
    with pytest.raises(ArgumentError, match="holds its own model"):
        load(tmp_path / "model.onnx", model)
    with pytest.raises(ArgumentError, match="ends in none of"):
        load(tmp_path / "model.bin", model)
    assert [each.name for each in tmp_path.iterdir()] == ["det.gaia"]


def test_a_model_whose_bytes_cannot_be_told_is_named(tmp_path: Path) -> None:
    model = zoo.build("parallel")
    model.register_buffer("sparse", torch.eye(3).to_sparse())
    with pytest.raises(ModelError, match="tensor 'sparse' cannot be read"):
        GaiaZ(model).save(tmp_path / "det.gaia")
    assert not list(tmp_path.iterdir())


def test_nothing_is_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = zoo.build("parallel")
    path = GaiaZ(model).save(tmp_path / "det.gaia")
    before = path.read_bytes()

    def fail(self: Path, data: bytes) -> int:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="no space"):
        GaiaZ(model, p=3.0).save(path)
    assert path.read_bytes() == before
    assert SavedDetector.read(path).arguments["p"] == 2.0


class Other(nn.Module):
    """Another model where an attribute is another."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.inner, self.factor, self.calls = zoo.build("parallel"), factor, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.inner(x) * self.factor


def test_an_attribute_makes_another_model_and_a_counter_does_not(tmp_path: Path) -> None:
    x = zoo.images(4)
    path = GaiaZ(Other(1.0).eval(), engine="hooks").calibrate(x).save(tmp_path / "det.gaia")
    load(path, Other(1.0).eval())
    with pytest.raises(ModelError, match=r"factor=2\.0"):
        load(path, Other(2.0).eval())


def test_what_cannot_be_loaded_is_not_saved(tmp_path: Path) -> None:
    class Mine(GaiaZ):
        pass

    with pytest.raises(ArgumentError, match="a Mine cannot be loaded again"):
        Mine(zoo.build("parallel")).save(tmp_path / "det.gaia")
    with pytest.raises(LayerError, match="the head, a Linear, is no module of Parallel"):
        GaiaA(zoo.build("parallel"), head=nn.Linear(2, 2)).save(tmp_path / "det.gaia")
    assert not list(tmp_path.iterdir())


def test_thresholds_that_are_set_by_hand() -> None:
    detector = GaiaZ(zoo.build("parallel"), engine="hooks").calibrate([1.0, 2.0, 3.0])
    detector.threshold = 2.5
    assert detector.calibration is None
    several = Gaia(zoo.build("parallel"), scores=("msp", "energy"), engine="hooks")
    several.thresholds = {"msp": None, "energy": 1.0}  # type: ignore[dict-item]
    assert list(several.score(zoo.images(2)).is_ood) == ["energy"]
