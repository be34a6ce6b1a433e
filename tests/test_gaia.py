"""Several scores from one program: each is what its own detector gives, on every engine."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gaia_fast import Gaia, GaiaA, GaiaScores, GaiaZ, read_metadata, reference
from gaia_fast.engines import hooks
from gaia_fast.errors import (
    ArgumentError,
    CalibrationError,
    CompilationError,
    GaiaError,
    InputError,
    LayerError,
    ModelError,
    NonFiniteError,
)
from gaia_fast.logit_scores import logit_score
from gaia_fast.options import RuntimeOption, ScoreOption

import zoo
from exported import load_several

ALL: tuple[ScoreOption, ...] = ("gaia-z", "gaia-a", "msp", "energy", "max_logit")
ENGINES: list[dict[str, Any]] = [
    {"engine": "reference"},
    {"engine": "hooks", "backend": "torch"},
    {"engine": "hooks"},
    {"engine": "compiled", "runtime": "eager"},
    {"engine": "compiled", "runtime": "native"},
    {"engine": "compiled", "runtime": "onnxruntime"},
]
EAGER: dict[str, Any] = {"engine": "compiled", "runtime": "eager"}


def of_logits(logits: Tensor) -> dict[str, Tensor]:
    wide = logits.double()
    return {
        "msp": -wide.softmax(1).max(1).values,
        "energy": -wide.exp().sum(1).log(),
        "max_logit": -wide.max(1).values,
    }


def alone(model: nn.Module, x: Tensor, **options: Any) -> GaiaScores:
    """What one detector after the other gives."""
    z = GaiaZ(model, **options).score(x, return_matrix=True)
    a = GaiaA(model, **options).score(x, return_matrix=True)
    assert z.matrix is not None
    assert a.matrix is not None
    return GaiaScores(z.logits, {"gaia-z": z.score, "gaia-a": a.score}, {"gaia-z": z.matrix, "gaia-a": a.matrix})


@pytest.mark.parametrize("options", ENGINES, ids=str)
@pytest.mark.parametrize("name", ["strided_shortcut", "vgg_like", "parallel", "dense_like", "group_norm", "smooth"])
def test_each_score_is_that_of_its_own_detector(name: str, options: dict[str, Any]) -> None:
    model, x = zoo.build(name), zoo.images(3, zoo.image_size(name))
    out = Gaia(model, scores=ALL, **options).score(x, return_matrix=True)
    expected = alone(model, x, **options)
    assert list(out.scores) == list(ALL)
    torch.testing.assert_close(out.logits, expected.logits, rtol=1e-5, atol=1e-6)
    for score, matrix in expected.matrices.items():
        torch.testing.assert_close(out.scores[score], expected.scores[score], rtol=1e-5, atol=0)
        torch.testing.assert_close(out.matrices[score], matrix, rtol=1e-3, atol=1e-6)
    for score, value in of_logits(out.logits).items():
        assert out.scores[score].dtype == torch.float32
        torch.testing.assert_close(out.scores[score].double(), value, rtol=1e-5, atol=1e-6)
    assert Gaia(model, scores=ALL, **options).score(x).matrices == {}


@pytest.mark.parametrize("options", [{"engine": "hooks"}, EAGER, {"engine": "compiled", "runtime": "native"}], ids=str)
def test_sharing_a_forward_pass_changes_no_bit(options: dict[str, Any]) -> None:
    model, x = zoo.build("resnet34"), zoo.images(2, 32)
    out, expected = Gaia(model, **options).score(x), alone(model, x, **options)
    assert torch.equal(out.logits, expected.logits)
    for score, value in expected.scores.items():
        assert torch.equal(out.scores[score], value)


@pytest.mark.parametrize("options", ENGINES[1:5], ids=str)
@pytest.mark.parametrize(
    ("of_z", "of_a"),
    [(None, ["residual"]), (["stem.1", "shortcut"], ["residual.4"]), (["residual.4"], None), (None, "last_stage")],
    ids=str,
)
def test_each_score_has_layers_of_its_own(of_z: Any, of_a: Any, options: dict[str, Any]) -> None:
    model, x = zoo.build("strided_shortcut"), zoo.images(3)
    detector = Gaia(model, layers={"gaia-z": of_z, "gaia-a": of_a}, **options)
    out = detector.score(x, return_matrix=True)
    for score, single in (
        ("gaia-z", GaiaZ(model, layers=of_z, **options)),
        ("gaia-a", GaiaA(model, layers=of_a, **options)),
    ):
        expected = single.score(x, return_matrix=True)
        torch.testing.assert_close(out.scores[score], expected.score, rtol=1e-5, atol=0)
        assert out.matrices[score].shape == expected.matrix.shape  # type: ignore[union-attr]
        assert detector.plan(x).plans[score].maps == single.plan(x).maps


@pytest.mark.parametrize(
    "of_gaia_a",
    [
        {"fusion": "inner"},
        {"fusion": "output"},
        {"fusion": "top1"},
        {"statistic": "mean_abs"},
        {"p": 3.0},
        {"head": "fc"},
    ],
    ids=str,
)
@pytest.mark.parametrize("options", [{"engine": "hooks"}, EAGER], ids=str)
def test_options_of_gaia_a(of_gaia_a: dict[str, Any], options: dict[str, Any]) -> None:
    model, x = zoo.build("strided_shortcut"), zoo.images(3)
    found = Gaia(model, scores=("gaia-a", "gaia-z"), **of_gaia_a, **options)(x)
    p = {"p": of_gaia_a["p"]} if "p" in of_gaia_a else {}
    torch.testing.assert_close(found["gaia-a"], GaiaA(model, **of_gaia_a, **options)(x), rtol=1e-6, atol=0)
    torch.testing.assert_close(found["gaia-z"], GaiaZ(model, **p, **options)(x), rtol=1e-6, atol=0)


def test_in_float64_against_the_reference() -> None:
    for name in ("strided_shortcut", "parallel", "smooth"):
        model, x = zoo.build(name, torch.float64), zoo.images(3, dtype=torch.float64)
        found = Gaia(model, **EAGER)(x)
        torch.testing.assert_close(found["gaia-z"], reference.gaia_z(model, x).score.float(), rtol=1e-6, atol=0)
        torch.testing.assert_close(found["gaia-a"], reference.gaia_a(model, x).score.float(), rtol=1e-6, atol=0)


def test_one_forward_pass() -> None:
    """As many convolutions as GAIA-A's program, which has the forward pass; GAIA-Z adds none."""
    model, x = zoo.build("resnet34"), zoo.images(2, 32)

    def convolutions(detector: Gaia | GaiaA) -> int:
        prepared = detector.prepare(x).program(x)
        assert prepared is not None
        return sum("convolution" in str(node.target) for node in prepared.program.graph.graph.nodes)

    both = Gaia(model, **EAGER)
    assert set(both.plan(x).plans["gaia-z"].derivations) == {"active units"}
    assert convolutions(both) == convolutions(GaiaA(model, **EAGER))
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    detector = Gaia(model, engine="hooks")
    detector(x)
    calls.clear()
    detector(x)
    assert len(calls) == 1


def test_a_backward_pass_goes_no_further_than_its_own_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = zoo.build("resnet34"), zoo.images(2, 32)
    reached: list[int] = []

    def noting(kept: Any) -> Any:
        def seen(self: Any, index: int, *rest: Any) -> Any:
            reached.append(index)
            return kept(self, index, *rest)

        return seen

    for name in ("record", "record_and_scale"):
        monkeypatch.setattr(hooks._Sink, name, noting(getattr(hooks._Sink, name)))
    Gaia(model, layers={"gaia-a": ["layer4"]}, engine="hooks")(x)
    maps = len(GaiaZ(model).plan(x).maps)
    counts = np.bincount(reached, minlength=maps)
    assert counts.tolist() == [1] * (maps - 7) + [2] * 7  # layer4 has seven norms


# ---- what one score cannot be told for


@pytest.mark.parametrize("runtime", ["eager", "native"])
def test_images_that_violate_a_precondition_are_scored_again_for_gaia_z_alone(
    monkeypatch: pytest.MonkeyPatch, runtime: RuntimeOption
) -> None:
    model, good, bad = zoo.sometimes_closed()
    detector = Gaia(model, scores=ALL, engine="compiled", runtime=runtime).prepare(good)
    assert set(detector.plan(good).plans["gaia-z"].derivations) == {"active units"}
    again: list[tuple[int, list[str]]] = []

    def measure(model: nn.Module, x: Tensor, requests: Any, *rest: Any) -> object:
        again.append((x.shape[0], [each.method.name for each in requests]))
        return hooks_measure(model, x, requests, *rest)

    hooks_measure = hooks.measure
    monkeypatch.setattr(hooks, "measure", measure)
    x = torch.cat([good[:1], bad, good[1:]])
    out = detector.score(x, return_matrix=True)
    assert again == [(2, ["gaia-z"])]
    for score, truth in (("gaia-z", reference.gaia_z(model, x)), ("gaia-a", reference.gaia_a(model, x))):
        torch.testing.assert_close(out.scores[score], truth.score, rtol=1e-5, atol=0)
        for index, expected in enumerate(truth.abnormality):
            torch.testing.assert_close(out.matrices[score][:, index], expected, rtol=1e-4, atol=1e-6)


class TwoNorms(nn.Module):
    """The second norm's maps are too sparse for the first one's gradients to be told from its own units."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.b1 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second, self.b2 = nn.Conv2d(4, 2, 3, padding=1), nn.BatchNorm2d(2)
        self.fc = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.b1(self.first(x)))
        return self.fc(torch.relu(self.b2(self.second(x))).mean((2, 3)))


def test_gaia_z_hangs_on_no_precondition_of_layers_that_another_score_inspects(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TwoNorms().eval()
    x = torch.randn(4, 3, 12, 12)
    with torch.no_grad():
        before = model.second(torch.relu(model.b1(model.first(x)))).transpose(0, 1).flatten(1)
        model.b2.bias.copy_(-before.quantile(0.85, dim=1))
    alone = GaiaZ(model, layers=["b2"], **EAGER).prepare(x)
    both = Gaia(model, layers={"gaia-z": ["b2"]}, **EAGER).prepare(x)
    kept = [each.program(x) for each in (alone, both)]
    assert all(each is not None for each in kept)
    assert len(kept[1].program.preconditions) == len(kept[0].program.preconditions)  # type: ignore[union-attr]
    scores = load_several(both.export(tmp_path / "model.onnx", x))(x)
    torch.testing.assert_close(scores["gaia-z"], alone(x))


@pytest.mark.parametrize("ending", [".onnx", ".pt2"])
def test_in_a_file_an_image_without_finite_logits_has_no_score(tmp_path: Path, ending: str) -> None:
    model, x = zoo.build("strided_shortcut"), zoo.images(4)
    run = load_several(Gaia(model, scores=ALL).export(tmp_path / f"model{ending}", x))
    bad = x.clone()
    bad[1] = torch.nan
    bad[2] *= 1e38
    logits, scores = run.score(bad)
    # Of images as well: what a compiler makes of a ReLU may take NaN for zero.
    lost = (~logits.isfinite()).any(1) | (~bad.isfinite()).flatten(1).any(1)
    assert lost.any()
    assert not lost.all()
    for score in scores.values():
        assert torch.equal(score.isnan(), lost)


def test_a_score_of_the_logits_that_float32_cannot_hold_is_refused() -> None:
    model, x = zoo.build("strided_shortcut").double(), zoo.images(2).double()
    with torch.no_grad():
        for parameter in list(model.parameters())[-1:]:
            parameter.add_(1e39)
    with pytest.raises(NonFiniteError):
        Gaia(model, scores=("max_logit",), engine="hooks").score(x)


@pytest.mark.parametrize("threshold", [torch.tensor(-0.5), np.float32(-0.5)])
def test_a_threshold_of_any_kind_of_number_goes_into_a_file(tmp_path: Path, threshold: Any) -> None:
    detector = Gaia(zoo.build("strided_shortcut"), scores=("msp",), engine="compiled", runtime="eager")
    detector.thresholds["msp"] = threshold
    path = detector.export(tmp_path / "model.onnx", zoo.images(2))
    assert json.loads(read_metadata(path)["scores"])["msp"]["threshold"] == -0.5
    detector.thresholds["msp"] = float("inf")
    with pytest.raises(ArgumentError, match="finite"):
        detector.export(tmp_path / "other.onnx", zoo.images(2))


@pytest.mark.parametrize("ending", [".onnx", ".pt2"])
def test_in_a_file_such_an_image_has_no_gaia_z_and_all_other_scores(tmp_path: Path, ending: str) -> None:
    model, good, bad = zoo.sometimes_closed()
    run = load_several(Gaia(model, scores=("msp", "gaia-z", "gaia-a")).export(tmp_path / f"model{ending}", good))
    x = torch.cat([good[:1], bad])
    logits, scores = run.score(x)
    assert scores["gaia-z"].isnan().tolist() == [False, True, True]
    torch.testing.assert_close(scores["gaia-a"], reference.gaia_a(model, x).score, rtol=1e-5, atol=0)
    torch.testing.assert_close(scores["msp"].double(), of_logits(logits)["msp"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("options", ENGINES[:5], ids=str)
def test_what_means_nothing_is_refused(options: dict[str, Any]) -> None:
    model: Any = zoo.build("strided_shortcut")
    detector, x = Gaia(model, scores=("gaia-z", "gaia-a", "msp"), **options), zoo.images(4)
    assert detector(x)["msp"].shape == (4,)
    x[2, 1, 3, 3] = torch.nan
    with pytest.raises(InputError, match="images 2 of the batch"):
        detector(x)
    with torch.no_grad():
        model.fc.weight.zero_()
    with pytest.raises((NonFiniteError, ModelError), match=r"output component of images 0, 1|off by"):
        detector(zoo.images(2))


@pytest.mark.parametrize("scores", [("gaia-z", "gaia-a"), ("gaia-a", "gaia-z")], ids=str)
@pytest.mark.parametrize("runtime", ["eager", "native"])
def test_a_prepared_program_checks_every_score(runtime: RuntimeOption, scores: tuple[ScoreOption, ...]) -> None:
    """A blank image has equal logits, so that GAIA-A has nothing to divide by."""
    torch.manual_seed(0)
    model = zoo.Pooled(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()), 8).eval()
    nn.init.zeros_(model.get_parameter("fc.bias"))
    x = zoo.images(3)
    detector = Gaia(model, scores=scores, engine="compiled", runtime=runtime).prepare(x)
    assert detector(x)["gaia-a"].isfinite().all()
    with pytest.raises(NonFiniteError, match="output component of images 3 "):
        detector(torch.cat([x, torch.zeros_like(x[:1])]))


def test_a_changed_model_is_scored_as_it_is() -> None:
    model: Any = zoo.build("strided_shortcut")
    detector, x = Gaia(model, **EAGER).prepare(zoo.images(3)), zoo.images(3)
    before = detector(x)
    with torch.no_grad():
        model.fc.weight.mul_(torch.linspace(0.5, 2, model.fc.weight.shape[1]))
    after = detector(x)
    assert not torch.allclose(before["gaia-a"], after["gaia-a"])
    torch.testing.assert_close(after["gaia-a"], reference.gaia_a(model, x).score, rtol=1e-5, atol=0)


@pytest.mark.parametrize("options", [{}, EAGER], ids=str)
def test_an_empty_batch(options: dict[str, Any]) -> None:
    out = Gaia(zoo.build("vgg_like"), scores=ALL, **options).score(zoo.images(0), return_matrix=True)
    assert out.logits.shape[0] == 0
    assert {name: tuple(score.shape) for name, score in out.scores.items()} == dict.fromkeys(ALL, (0,))
    assert out.matrices["gaia-a"].shape[:1] == (0,)


# ---- logits alone


@pytest.mark.parametrize("options", ENGINES, ids=str)
def test_scores_of_the_logits_alone_need_no_map(options: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)).eval()
    x = zoo.images(3)
    out = Gaia(model, scores=("max_logit", "msp"), **options).score(x, return_matrix=True)
    expected = of_logits(model(x).detach())
    assert out.matrices == {}
    for score, value in out.scores.items():
        torch.testing.assert_close(value.double(), expected[score], rtol=1e-4, atol=1e-5)
    x[1, 0, 0, 0] = torch.inf
    with pytest.raises(GaiaError, match="images 1 of the batch"):
        Gaia(model, scores=("msp",), **options)(x)


def test_half_precision_is_widened_for_the_scores_of_the_logits() -> None:
    model, x = zoo.build("vgg_like", torch.bfloat16), zoo.images(3, dtype=torch.bfloat16)
    out = Gaia(model, scores=("gaia-z", "energy")).score(x)
    assert (out.logits.dtype, out.scores["energy"].dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(out.scores["energy"].double(), of_logits(out.logits)["energy"], rtol=1e-6, atol=0)


# ---- arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scores": ()}, "asks for nothing"),
        ({"scores": ("gaia-z", "odin")}, "'odin' does not exist; choose from"),
        ({"scores": ("gaia-z", "msp", "gaia-z")}, "a score twice"),
        ({"scores": ("gaia-z",), "fusion": "inner"}, "fusion belongs to 'gaia-a'"),
        ({"scores": ("gaia-z",), "head": "fc"}, "head belongs to 'gaia-a'"),
        ({"scores": ("gaia-z",), "layers": {"gaia-a": ["fc"]}}, "named for 'gaia-a'"),
        ({"layers": {"msp": ["fc"]}, "scores": ALL}, "named for 'msp'"),
        ({"scores": ("msp",), "layers": ["stem.1"]}, "leave layers out"),
        ({"fusion": "none"}, "fusion='none' does not exist"),
        ({"p": 0.5}, "gives no norm"),
        ({"engine": "fast"}, "engine='fast' does not exist"),
        ({"scores": None}, "names no scores"),
        ({"scores": 7}, "names no scores"),
    ],
    ids=str,
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Gaia(zoo.build("strided_shortcut"), **options)


@pytest.mark.parametrize("layers", [5, {"gaia-z": 5}, iter(["stem.1"])])
def test_layers_of_another_kind(layers: Any) -> None:
    with pytest.raises(LayerError, match="names no modules"):
        Gaia(zoo.build("strided_shortcut"), layers=layers)


def test_a_layer_that_does_not_exist_or_gives_no_map() -> None:
    with pytest.raises(LayerError, match="no module named 'layer9'"):
        Gaia(zoo.build("strided_shortcut"), layers={"gaia-a": "layer9"})
    for options in ({"engine": "hooks"}, EAGER):
        with pytest.raises(LayerError, match="'fc' gives a .*leave it out"):
            Gaia(zoo.build("strided_shortcut"), layers={"gaia-a": ["fc"]}, **options)(zoo.images(2))


class Unused(nn.Module):
    """Has norms that it does not call, and a map that is none of a norm's."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv, self.fc = nn.BatchNorm2d(4), nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).relu().mean((2, 3)))


@pytest.mark.parametrize("options", [{"engine": "hooks"}, EAGER], ids=str)
def test_a_score_without_maps_is_refused_whatever_the_other_has(options: dict[str, Any]) -> None:
    with pytest.raises(LayerError, match="'norm' made no feature map"):
        Gaia(Unused().eval(), layers={"gaia-a": ["conv"]}, **options)(zoo.images(2))


def test_what_saturates_in_place_is_refused_where_one_score_counts() -> None:
    model = zoo.Pooled(nn.Sequential(*zoo.conv_norm(3, 8), nn.ELU(inplace=True)), 8).eval()
    with pytest.raises(CompilationError, match="in place"):
        Gaia(model, **EAGER).prepare(zoo.images(2))
    Gaia(model, scores=("gaia-a",), **EAGER).prepare(zoo.images(2))


# ---- thresholds, files, copies


def test_thresholds_of_each_score() -> None:
    detector, x = Gaia(zoo.build("strided_shortcut"), scores=ALL), zoo.images(40)
    with pytest.raises(CalibrationError, match="no threshold yet for gaia-z, gaia-a"):
        detector.is_ood(x)
    assert detector.calibrate([(x[:20], None), (x[20:], None)], 0.9) is detector
    scores = detector(x)
    for name, flagged in detector.is_ood(x).items():
        assert detector.thresholds[name] == float(scores[name].double().sort().values[35])
        assert int(flagged.sum()) == int((scores[name] > detector.thresholds[name]).sum()) <= 4
    other = Gaia(detector.model, scores=ALL).calibrate(scores, 0.9)
    assert other.thresholds == detector.thresholds


def test_what_cannot_be_calibrated_on_changes_no_threshold() -> None:
    detector = Gaia(zoo.build("strided_shortcut"), scores=("gaia-z", "msp"))
    detector.thresholds = {"gaia-z": 1.0, "msp": 2.0}
    good = torch.arange(4.0)
    for wrong, message in (
        ({"gaia-z": good}, "no calibration scores for .*msp"),
        ({"gaia-z": good, "msp": torch.ones(4)}, "score 'msp': all 4 calibration scores"),
        (good, "given by name"),
        (iter([]), "score 'gaia-z': calibration needs"),
    ):
        with pytest.raises(CalibrationError, match=message):
            detector.calibrate(wrong)
    assert detector.thresholds == {"gaia-z": 1.0, "msp": 2.0}


@pytest.mark.parametrize("ending", [".onnx", ".pt2"])
def test_a_file_has_an_output_for_each_score_and_says_which(tmp_path: Path, ending: str) -> None:
    model, x = zoo.build("strided_shortcut"), zoo.images(5)
    scores: tuple[ScoreOption, ...] = ("max_logit", "gaia-a", "msp", "gaia-z", "energy")
    detector = Gaia(model, scores=scores, layers={"gaia-a": ["residual"]})
    detector.thresholds = {"gaia-a": 2.5}
    path = detector.export(tmp_path / f"model{ending}", zoo.images(3))
    logits, found = load_several(path).score(x)
    expected = detector.score(x)
    torch.testing.assert_close(logits, expected.logits, rtol=1e-4, atol=1e-5)
    assert tuple(found) == scores
    for name, score in found.items():
        assert score.dtype == torch.float32
        torch.testing.assert_close(score, expected.scores[name], rtol=1e-4, atol=1e-5)
    described = json.loads(read_metadata(path)["scores"])
    assert [each["output"] for each in described.values()] == ["max_logit", "gaia_a", "msp", "gaia_z", "energy"]
    assert described["gaia-a"]["threshold"] == 2.5
    assert described["msp"] == {"output": "msp", "threshold": None}
    assert described["gaia-a"]["layers"] == ["residual.1", "residual.4"]
    assert described["gaia-z"]["method"]["name"] == "gaia-z"
    if ending == ".onnx":
        onnx = pytest.importorskip("onnx", reason="onnx is not installed")
        outputs = [each.name for each in onnx.load(path).graph.output]
        assert outputs == ["logits", "max_logit", "gaia_a", "msp", "gaia_z", "energy", "is_ood_gaia_a"]


def test_a_file_that_is_wrong_in_one_score_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(name: str, logits: Tensor) -> Tensor:
        return logit_score(name, logits) + 0.1 * (name == "energy")

    monkeypatch.setattr("gaia_fast.compiler.program.logit_score", wrong)
    detector = Gaia(zoo.build("strided_shortcut"), scores=("gaia-z", "msp", "energy"))
    with pytest.raises(CompilationError, match="it would be off by"):
        detector.export(tmp_path / "model.onnx", zoo.images(3))
    assert not list(tmp_path.iterdir())


def test_pickling_keeps_what_was_asked_for_and_the_thresholds() -> None:
    x = zoo.images(3)
    detector = Gaia(zoo.build("strided_shortcut"), scores=("gaia-a", "energy"), layers="last_stage", fusion="inner")
    expected = detector(x)
    detector.thresholds = {"gaia-a": 1.0, "energy": 2.0}
    again = pickle.loads(pickle.dumps(detector))
    assert repr(again) == repr(detector)
    assert all(torch.equal(score, expected[name]) for name, score in again(x).items())


def test_the_plan_names_every_score() -> None:
    x = zoo.images(2)
    detector = Gaia(zoo.build("strided_shortcut"), scores=("gaia-z", "gaia-a", "msp"), layers={"gaia-a": "last_stage"})
    plan = detector.prepare(x).plan(x) if detector.plan(x).engine.name == "hooks" else None
    assert plan is not None
    assert set(plan.plans) == {"gaia-z", "gaia-a"}
    assert (len(plan.plans["gaia-z"].maps), len(plan.plans["gaia-a"].maps)) == (4, 3)
    assert set(plan.plans["gaia-a"].derivations) <= {"adjoint"}
    for line in ("gaia-z, gaia-a, msp on ", "gaia-a, fusion division", "layers   last_stage", "msp: of the logits"):
        assert line in str(plan)
