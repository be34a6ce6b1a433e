"""The public classes: outputs, refusals, threshold, plan."""

import copy
import io
import pickle
from collections import UserDict
from typing import Any, TypeAlias

import pytest
import torch
from torch import Tensor, nn

import gaia_fast
from gaia_fast import GaiaA, GaiaError, GaiaOutput, GaiaZ, reference
from gaia_fast.errors import (
    ArgumentError,
    BackendError,
    CalibrationError,
    InputError,
    LayerError,
    ModelError,
    NonFiniteError,
)
from gaia_fast.options import BackendOption

from zoo import Pooled, build, conv_norm, images

DETECTORS = [GaiaA, GaiaZ]
Detector: TypeAlias = type[GaiaA] | type[GaiaZ]


@pytest.fixture(params=DETECTORS)
def detector(request: pytest.FixtureRequest) -> Detector:
    return request.param


def test_prediction_and_score_from_one_call(detector: Detector) -> None:
    model, x = build("strided_shortcut"), images(3)
    out = detector(model).score(x)
    with torch.no_grad():
        assert torch.allclose(out.logits, model(x), rtol=1e-5)
    assert isinstance(out, GaiaOutput)
    assert out.score.shape == (3,)
    assert out.score.dtype == torch.float32
    assert out.matrix is None
    logits, score = out
    assert torch.equal(logits, out.logits)
    assert torch.equal(score, out.score)


def test_predict_and_call_are_the_score_alone(detector: Detector) -> None:
    scorer, x = detector(build("strided_shortcut")), images(3)
    assert torch.equal(scorer.predict(x), scorer.score(x).score)
    assert torch.equal(scorer(x), scorer.score(x).score)


def test_the_score_is_the_norm_of_the_matrix(detector: Detector) -> None:
    for p in (1.0, 2.0, 3.0):
        out = detector(build("dense_like"), p=p).score(images(3), return_matrix=True)
        assert out.matrix is not None
        assert out.matrix.shape == (3, 4, 18)
        norm = torch.linalg.vector_norm(out.matrix.flatten(1).double(), ord=p, dim=1)
        assert torch.allclose(out.score.double(), norm, rtol=1e-6)


def test_identity_with_the_definition_of_the_authors(detector: Detector) -> None:
    """Mean of eps^2 over all channels = our score squared, over the number of channels."""
    scorer, x = detector(build("wrn_40_2")), images(3, 32)
    out = scorer.score(x, return_matrix=True)
    assert out.matrix is not None
    theirs = out.matrix.double().square().sum((1, 2)) / scorer.plan(x).channels
    assert torch.allclose(out.score.double() ** 2 / scorer.plan(x).channels, theirs, rtol=1e-6)


@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_engines_agree(detector: Detector, backend: BackendOption) -> None:
    model, x = build("vgg_like"), images(3)
    plain = detector(model, engine="reference").score(x, return_matrix=True)
    fast = detector(model, engine="hooks", backend=backend).score(x, return_matrix=True)
    assert torch.allclose(plain.score, fast.score, rtol=1e-5)
    assert plain.matrix is not None
    assert fast.matrix is not None
    assert torch.allclose(plain.matrix, fast.matrix, rtol=1e-3, atol=1e-6)
    assert torch.equal(plain.logits, fast.logits)


# ---- refusals: an exception with the fix in its message, never a number


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([[1.0]], "torch.Tensor, got list"),
        (torch.zeros(3, 16, 16), r"x.unsqueeze\(0\)"),
        (torch.zeros(2, 3), r"shape \(N, C, H, W\)"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), "normalise"),
        (torch.zeros(2, 3, 0, 16), "no pixels"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.float64), r"x.to\(torch.float32\)"),
        (torch.zeros(2, 3, 16, 16, device="meta"), "the model on cpu"),
    ],
)
def test_images_of_the_wrong_kind(detector: Detector, x: Tensor, message: str) -> None:
    scorer = detector(build("strided_shortcut"))
    for call in (scorer, scorer.plan):
        with pytest.raises(InputError, match=message):
            call(x)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_images_are_named(detector: Detector, bad: float) -> None:
    x = images(4)
    x[2, 1, 3, 3] = bad
    with pytest.raises(InputError, match="images 2 of the batch"):
        detector(build("strided_shortcut"))(x)


def test_a_model_in_training_mode(detector: Detector) -> None:
    model = build("vgg_like")
    scorer = detector(model)
    model.get_submodule("classifier.2").train()
    with pytest.raises(ModelError, match=r"'classifier.2' .* training mode.*model.eval\(\)"):
        scorer(images(2))
    with pytest.raises(ModelError, match="the model is in training mode"):
        detector(build("vgg_like").train())(images(2))


def test_a_norm_over_the_batch_even_in_eval_mode(detector: Detector) -> None:
    trunk = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU())
    with pytest.raises(ModelError, match=r"'trunk.1' .* no running statistics"):
        detector(Pooled(trunk, 4).eval())(images(2))


def test_scores_that_overflow_are_not_returned(detector: Detector) -> None:
    model = build("strided_shortcut")
    model.get_parameter("fc.weight").data.fill_(float("inf"))
    with pytest.raises(NonFiniteError, match="images 0, 1 of the batch"):
        detector(model)(images(2))


def test_an_output_component_of_zero_is_not_divided_by() -> None:
    model = build("strided_shortcut")
    nn.init.zeros_(model.get_parameter("fc.weight"))
    for engine in ("hooks", "reference"):
        with pytest.raises(NonFiniteError, match="output component of images 0, 1"):
            GaiaA(model, engine=engine)(images(2))
    assert GaiaA(model, fusion="inner")(images(2)).isfinite().all()


def test_what_the_model_returns() -> None:
    class Wrapped(nn.Module):
        def __init__(self, kind: str) -> None:
            super().__init__()
            self.inner, self.kind = build("strided_shortcut"), kind

        def forward(self, x: Tensor) -> object:
            logits = self.inner(x)
            return {
                "dict": {"logits": logits},
                "mapping": UserDict(logits=logits),
                "tuple": (logits,),
                "3-D": logits.unsqueeze(1),
            }[self.kind]

    x = images(2)
    for kind in ("dict", "mapping"):
        assert torch.equal(GaiaA(Wrapped(kind).eval())(x), GaiaA(build("strided_shortcut"))(x))
    with pytest.raises(ModelError, match="returned a tuple without `logits`"):
        GaiaZ(Wrapped("tuple").eval())(x)
    with pytest.raises(ModelError, match=r"logits of shape \(2, 1, 5\)"):
        GaiaZ(Wrapped("3-D").eval())(x)


def test_options_that_do_not_exist() -> None:
    model = build("strided_shortcut")
    for options in ({"fusion": "sum"}, {"statistic": "median"}, {"engine": "fast"}, {"backend": "gpu"}, {"p": 0.5}):
        with pytest.raises(ArgumentError, match=str(next(iter(options.values())))):
            GaiaA(model, **options)


def test_a_forced_backend_that_cannot_run_says_why() -> None:
    model = build("strided_shortcut")
    for backend in ("triton", "cuda"):
        with pytest.raises(BackendError, match=f"backend='{backend}' cannot run here: "):
            GaiaZ(model, backend=backend)
    with pytest.raises(BackendError, match="float64"):
        GaiaZ(model.double(), backend="cpu")
    with pytest.raises(ArgumentError, match="uses no kernels"):
        GaiaZ(build("strided_shortcut"), engine="reference", backend="cpu")(images(1))


def test_layers_that_never_ran_have_no_parameters(detector: Detector) -> None:
    trunk = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU())
    model = Pooled(trunk, 4).eval()
    for engine in ("hooks", "reference", "compiled"):
        with pytest.raises(ModelError, match=r"'trunk.0' is a LazyConv2d .* run one batch first: model\(x\)"):
            detector(model, engine=engine)
    with pytest.raises(ModelError, match="run one batch first"):
        reference.gaia_z(model, images(1))
    model(images(1))
    assert detector(model)(images(2)).isfinite().all()


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
def test_a_quantised_head_has_no_gradient(detector: Detector) -> None:
    model = Pooled(nn.Sequential(*conv_norm(3, 4), nn.ReLU()), 4).eval()
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}).eval()
    for engine in ("hooks", "reference"):
        with pytest.raises(LayerError, match=r"'fc' is quantised \(Linear\).*score the float model"):
            detector(quantised, engine=engine)(images(1))
        with pytest.raises(LayerError, match=r"'fc' is quantised \(Linear\).*score the float model"):
            GaiaA(quantised, head="fc", engine=engine)(images(1))
        inner = GaiaA(quantised, head="fc", fusion="inner", engine=engine)(images(2))
        assert torch.equal(inner, GaiaA(model, fusion="inner", engine=engine)(images(2)))


# ---- copies


@pytest.mark.parametrize("way", ["pickle", "deepcopy", "copy", "torch.save"])
@pytest.mark.parametrize("prepared", [False, True])
def test_a_detector_can_be_copied(detector: Detector, way: str, prepared: bool) -> None:
    model, x = build("strided_shortcut"), images(20)
    options: dict[str, Any] = (
        {"head": model.fc, "fusion": "inner", "statistic": "mean_abs"} if detector is GaiaA else {}
    )
    scorer = detector(model, layers=["residual", "shortcut"], p=3.0, runtime="eager", **options).calibrate(x)
    if prepared:
        scorer.prepare(x)
    if way == "torch.save":
        file = io.BytesIO()
        torch.save(scorer, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    else:
        twin = {
            "pickle": lambda each: pickle.loads(pickle.dumps(each)),
            "deepcopy": copy.deepcopy,
            "copy": copy.copy,
        }[way](scorer)
    assert repr(twin) == repr(scorer)
    assert twin.threshold == scorer.threshold
    assert (twin.model is model) == (way == "copy")
    assert twin.plan(x).engine.name == "hooks"  # programs are made again
    expected = detector(model, layers=["residual", "shortcut"], p=3.0, engine="hooks", **options)(x)
    assert torch.equal(twin(x), expected)
    if prepared:
        assert twin.prepare(x).plan(x).engine.name == "compiled"
    if way != "copy":  # nothing is shared
        nn.init.zeros_(model.get_parameter("fc.weight"))
        assert torch.equal(detector.predict(twin, x), twin(x))
        assert twin.model.fc.weight.any()


def test_a_model_set_to_training_is_no_detector_s_to_keep(detector: Detector) -> None:
    scorer = detector(build("vgg_like"))
    scorer.model.train()
    with pytest.raises(ModelError, match="eval"):
        pickle.dumps(scorer)


# ---- wrappers


def test_data_parallel_is_unwrapped(detector: Detector) -> None:
    model, x = build("strided_shortcut"), images(2)
    assert torch.equal(detector(nn.DataParallel(model))(x), detector(model)(x))


def test_compiled_models_are_unwrapped_or_refused(detector: Detector) -> None:
    model, x = build("strided_shortcut"), images(2)
    whole = torch.compile(model)
    assert isinstance(whole, nn.Module)
    assert torch.equal(detector(whole)(x), detector(model)(x))
    partly = build("strided_shortcut")
    part = torch.compile(partly.get_submodule("residual"))
    assert isinstance(part, nn.Module)
    partly.residual = part
    with pytest.raises(ModelError, match="'residual' was compiled in place"):
        detector(partly)
    in_place = build("strided_shortcut")
    in_place.compile()
    with pytest.raises(ModelError, match="the model was compiled in place"):
        detector(in_place)


def test_torchscript_and_functions_are_refused(detector: Detector) -> None:
    with pytest.raises(ModelError, match="TorchScript"):
        detector(torch.jit.trace(build("strided_shortcut"), images(1)))
    with pytest.raises(ModelError, match="must be a torch.nn.Module, got function"):
        detector(lambda x: x)  # type: ignore[arg-type]


def test_parameters_made_in_inference_mode_are_refused(detector: Detector) -> None:
    with torch.inference_mode():
        model = Pooled(nn.Sequential(*conv_norm(3, 4), nn.ReLU()), 4).eval()
    with pytest.raises(ModelError, match="inference_mode"):
        detector(model)(images(1))


# ---- the threshold


def test_calibrate_on_scores_and_on_images_agree(detector: Detector) -> None:
    scorer, x = detector(build("strided_shortcut")), images(20)
    scores = scorer(x)
    for source in (
        scores,
        scores.numpy(),
        scores.tolist(),
        x,
        [x[:12], x[12:]],
        [(x, torch.zeros(20))],
        iter([{"data": x}]),
        [UserDict(pixel_values=x)],
    ):
        threshold = scorer.calibrate(source, id_tpr=0.9).threshold
        assert threshold == pytest.approx(scores.sort().values[17].item(), rel=1e-5)


def test_decisions() -> None:
    scorer, x = GaiaZ(build("strided_shortcut")), images(20)
    with pytest.raises(CalibrationError, match="calibrate"):
        scorer.is_ood(x)
    scorer.calibrate(scorer(x))
    assert scorer.is_ood(x).dtype == torch.bool
    assert scorer.is_ood(x).sum() == 1  # 19 of 20 accepted, the threshold's own image among them


# ---- the plan


def test_the_plan_says_what_is_done_and_why() -> None:
    model, x = build("resnet34"), images(2, 32)
    plan = GaiaA(model, layers=["layer3", "layer4"]).plan(x)
    assert (plan.head, plan.last, plan.engine.name, plan.backend.name) == ("linear", "layer4", "hooks", "cpu")
    assert len(plan.maps) == 20
    assert plan.channels == 13 * 256 + 7 * 512
    text = str(plan)
    for part in ("layer3.0.shortcut.1", "256", "8x8", "layer4.2.bn2", "4x4", "engine", "backend", "head     linear"):
        assert part in text
    assert "head" not in str(GaiaZ(model).plan(x))
    forced = GaiaZ(model, engine="reference").plan(x)
    assert (forced.engine.name, forced.engine.why) == ("reference", "asked for")


def test_the_plan_of_an_empty_batch() -> None:
    assert len(GaiaA(build("vgg_like")).plan(images(0)).maps) == 2


# ---- the package


def test_public_names() -> None:
    for name in gaia_fast.__all__:
        assert hasattr(gaia_fast, name)
    raised = [
        each for each in vars(gaia_fast.errors).values() if isinstance(each, type) and issubclass(each, Exception)
    ]
    assert all(issubclass(each, (GaiaError, Warning)) for each in raised)


def test_the_detector_prints() -> None:
    assert "GaiaZ(StridedShortcut" in repr(GaiaZ(build("strided_shortcut")))
