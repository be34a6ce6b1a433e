"""Exported files as detectors: scores, thresholds, decisions."""

import json
import zipfile
from pathlib import Path

import pytest
import torch

from gaia_fast import Gaia, GaiaOutput, GaiaScores, GaiaZ, load
from gaia_fast.compiler.package.metadata import FORMATS
from gaia_fast.compiler.program import with_decisions
from gaia_fast.errors import ArgumentError, CalibrationError, CompilationError
from gaia_fast.method import Method

import zoo
from exported import load_one, load_several


def test_a_file_of_one_score(tmp_path: Path) -> None:
    detector, x = GaiaZ(zoo.build("parallel"), engine="hooks"), zoo.images(6)
    path = detector.export(tmp_path / "model.onnx", x[:3])
    exported = load_one(str(path))
    out = exported.score(x)
    assert isinstance(out, GaiaOutput)
    assert (out.threshold, out.is_ood, exported.threshold) == (None, None, None)
    with pytest.raises(CalibrationError, match=r"call calibrate\(...\)"):
        exported.is_ood(x)
    assert torch.equal(exported(x), out.score)
    assert torch.equal(exported.predict(x), out.score)
    assert exported.calibrate(x, 0.5) is exported
    assert exported.threshold == out.score.sort().values[2]
    assert exported.is_ood(x).sum() == 3
    exported.threshold = torch.tensor(2.5)  # type: ignore[assignment]
    assert exported.threshold == 2.5
    for wrong in ("high", float("nan")):
        with pytest.raises(ArgumentError, match="threshold"):
            exported.threshold = wrong  # type: ignore[assignment]
    assert exported.calibrate([1.0, 2.0]).threshold == 2.0
    assert exported.method == Method("gaia-z")
    assert exported.layers == [each.layer for each in detector.plan(x).maps]
    assert exported.metadata["dtype"] == "float32"
    assert "model.onnx" in repr(exported)


def test_a_file_of_several_scores(tmp_path: Path) -> None:
    x = zoo.images(6)
    detector = Gaia(zoo.build("parallel"), scores=("msp", "gaia-a"), layers={"gaia-a": "right"}, p=3.0)
    detector.thresholds = {"gaia-a": 1.5}
    exported = load_several(detector.export(tmp_path / "model.onnx", x[:3]))
    out = exported.score(x)
    assert isinstance(out, GaiaScores)
    assert tuple(out.scores) == exported.scores == ("msp", "gaia-a")
    assert out.thresholds == {"gaia-a": 1.5}
    assert out.is_ood["gaia-a"].tolist() == (out.scores["gaia-a"] > 1.5).tolist()
    with pytest.raises(CalibrationError, match="no threshold yet for msp"):
        exported.is_ood(x)
    assert exported.calibrate({"msp": [0.0, 0.5], "gaia-a": [1.0, 2.0]}).thresholds == {"msp": 0.5, "gaia-a": 2.0}
    assert exported.is_ood(x).keys() == {"msp", "gaia-a"}
    assert exported.methods == {"gaia-a": Method("gaia-a", p=3.0)}
    assert exported.layers == {"gaia-a": ["right.1"]}


def test_outputs_are_the_files_own_by_their_names(tmp_path: Path) -> None:
    x = zoo.images(6)
    several = Gaia(zoo.build("parallel"), scores=("msp", "gaia-a", "gaia-z"))
    several.thresholds = {"gaia-z": 2.0, "msp": -0.5}
    exported = load_several(several.export(tmp_path / "several.onnx", x[:3]))
    found, out = exported.outputs(x), exported.score(x)
    assert list(found) == ["logits", "msp", "gaia_a", "gaia_z", "is_ood_msp", "is_ood_gaia_z"]
    assert torch.equal(found["logits"], out.logits)
    assert torch.equal(found["gaia_a"], out.scores["gaia-a"])
    assert torch.equal(found["is_ood_msp"], out.is_ood["msp"])
    one = GaiaZ(zoo.build("parallel"), engine="hooks")
    assert list(load_one(one.export(tmp_path / "one.onnx", x[:3])).outputs(x)) == ["logits", "score"]
    one.threshold = float(found["gaia_z"].median())
    again = load_one(one.export(tmp_path / "one.onnx", x[:3]))
    again.threshold = 1e9
    found = again.outputs(x)
    assert list(found) == ["logits", "score", "is_ood"]
    assert torch.equal(found["is_ood"], found["score"] > one.threshold)
    assert set(found["is_ood"].tolist()) == {True, False}


@pytest.mark.parametrize("ending", FORMATS)
def test_loaded_and_asked_inside_any_grad_mode(tmp_path: Path, ending: str) -> None:
    x = zoo.images(6)
    detector = GaiaZ(zoo.build("small_bit"), engine="hooks")
    detector.threshold = 2.0
    path = detector.export(tmp_path / f"model{ending}", x[:3])
    expected = load(path).outputs(x)
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            exported = load_one(path)
            for name, found in exported.outputs(x.clone()).items():
                assert torch.equal(found, expected[name])
            assert torch.equal(exported.is_ood(x.clone()), expected["is_ood"])


@pytest.mark.parametrize("ending", FORMATS)
def test_what_cannot_be_scored_is_flagged_by_object_and_file(tmp_path: Path, ending: str) -> None:
    model, good, bad = zoo.sometimes_closed()
    detector = GaiaZ(model, engine="hooks")
    detector.calibrate(detector(good), 0.5)
    assert detector.threshold is not None
    detector.threshold *= 1 + 1e-4  # not a score itself, which rounding would put on either side
    exported = load_one(detector.export(tmp_path / f"model{ending}", good[:3]))
    x = torch.cat([good, bad])
    out = exported.score(x)
    expected = [*detector.is_ood(good).tolist(), *[True] * len(bad)]
    assert False in expected
    assert out.score.isnan().tolist() == [False] * len(good) + [True] * len(bad)
    assert out.is_ood is not None
    assert out.is_ood.tolist() == exported.is_ood(x).tolist() == expected
    *_, decided = exported._program(x)  # the file's own
    assert decided.dtype == torch.bool
    assert decided.tolist() == expected
    with pytest.raises(CalibrationError, match=f"{len(bad)} of {len(x)} calibration scores are not finite"):
        exported.calibrate(x)


def test_decisions_stand_behind_all_scores(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    detector = Gaia(zoo.build("parallel"), scores=("msp", "gaia-z", "energy"))
    detector.thresholds = {"energy": 0.0, "msp": -0.5}
    path = detector.export(tmp_path / "model.onnx", zoo.images(3))
    outputs = [each.name for each in onnx.load(path).graph.output]
    assert outputs == ["logits", "msp", "gaia_z", "energy", "is_ood_msp", "is_ood_energy"]
    described = json.loads(load_several(path).metadata["scores"])
    assert {name: each.get("decision") for name, each in described.items()} == {
        "msp": "is_ood_msp", "gaia-z": None, "energy": "is_ood_energy",
    }  # fmt: skip


def test_a_file_that_decides_otherwise_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "gaia_fast.engines.compiled.with_decisions",
        lambda program, thresholds: with_decisions(program, dict.fromkeys(thresholds, -1.0)),
    )
    detector = GaiaZ(zoo.build("parallel"))
    detector.threshold = 1e6
    with pytest.raises(CompilationError, match="would not decide by its own score"):
        detector.export(tmp_path / "model.onnx", zoo.images(3))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "about",
    [
        {}, {"method": "{}"}, {"method": "{", "layers": "[]", "threshold": ""}, {"scores": "[]"}, {"scores": "3"},
        {"method": '{"name": "gaia-z"}', "layers": "[]", "threshold": "nan"},
        {"method": '{"name": "gaia-q"}', "layers": "[]", "threshold": ""}, {"scores": '{"msp": {}}'},
        {"scores": '{"msp": 3}'}, {"scores": "[" * 100_000},
    ],
    ids=lambda about: str(about)[:60],
)  # fmt: skip
def test_metadata_that_name_no_scores(tmp_path: Path, about: dict[str, str]) -> None:
    own = {"images": "[null, 3, 16, 16]", "dtype": "float32", **about}
    path = tmp_path / "a.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data/aotinductor/model/a.wrapper.so", b"\x7fELF no library")
        record = {"gaia_fast": json.dumps(own), "AOTI_DEVICE_KEY": "cpu"}
        archive.writestr("model/data/aotinductor/model/a.wrapper_metadata.json", json.dumps(record))
    with pytest.raises(ArgumentError, match=r"a\.pt2 does not say which scores it gives.*export it again"):
        load(path)


@pytest.mark.parametrize("ending", [".onnx", ".pt2"])
def test_an_image_whose_pixels_are_not_finite_has_no_score(tmp_path: Path, ending: str) -> None:
    model, x = zoo.build("parallel"), zoo.images(3)
    detector = Gaia(model, scores=("gaia-z", "gaia-a", "msp"))
    detector.thresholds = dict.fromkeys(detector.scores, 1e9)
    run = load_several(detector.export(tmp_path / f"model{ending}", x))
    x[1, 0, 3, 5] = float("nan")
    x[2, 1, 0, 0] = float("inf")
    found = run.score(x)
    for name, score in found.scores.items():
        assert score.isnan().tolist() == [False, True, True], name
        assert found.is_ood[name].tolist() == [False, True, True]
