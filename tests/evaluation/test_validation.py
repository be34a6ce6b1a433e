from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gaia_fast import GaiaOutput, GaiaZ, backends, reference
from gaia_fast.compiler.package.writing import FORMATS
from gaia_fast.data.digits import held_out_digits
from gaia_fast.detector import GaiaA
from gaia_fast.errors import DataError, ModelError, NonFiniteError
from gaia_fast.evaluation import validation
from gaia_fast.evaluation.validation import validate
from gaia_fast.models import digits_resnet
from gaia_fast.models.resnet import ResNet
from gaia_fast.options import Runtime

import zoo

EAGER = ("reference", "hooks")  # what need not be compiled


@pytest.fixture(scope="module")
def model() -> ResNet:
    return digits_resnet(pretrained=True)


@pytest.fixture(scope="module")
def batches() -> list[Tensor]:
    return list(held_out_digits()[0][:5].split(3))


def find(found: validation.Validation, method: str, engine: str, backend: str) -> validation.Check:
    (check,) = [c for c in found.checks if (c.method, c.engine, c.backend) == (method, engine, backend)]
    return check


def test_every_engine_and_backend_passes_or_says_why_not(model: nn.Module, batches: list[Tensor]) -> None:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = validate(model, batches)
    assert found.passed
    assert (found.images, found.dtype, found.channels) == (5, "float32", 5 * 360)
    rows = {(check.engine, check.backend) for check in found.checks if check.method == "gaia-a"}
    compiled = {("compiled", runtime) for runtime in Runtime} | {("export", ending) for ending in FORMATS}
    assert rows == {("reference", "torch")} | {("hooks", name) for name in backends.available()} | compiled
    for check in found.checks:
        if check.passed is None:
            assert check.backend == "cudagraph" or not backends.available()[check.backend]
            assert check.backend in check.reason
            assert check.score_error is None
        else:
            assert check.reason == ""
            assert check.score_error is not None
            assert check.limit is not None
            assert 0 < check.score_error <= check.limit
            counted = check.method == "gaia-z" and check.engine != "export"
            if counted:
                assert check.wrong_counts is not None
                assert check.wrong_counts <= (check.engine == "compiled")
            else:
                assert check.wrong_counts is None
    assert find(found, "gaia-a", "hooks", "torch").passed
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_errors_are_those_of_the_references(model: nn.Module, batches: list[Tensor]) -> None:
    found = validate(model, batches, methods=("gaia-a",), layers={"gaia-a": ["layer4"]}, fusion="inner", engines=EAGER)
    double = digits_resnet(pretrained=True).double()
    errors = []
    for x in batches:
        truth = reference.gaia_a(double, x.double(), ["layer4"], fusion="inner").score
        own = reference.gaia_a(model, x, ["layer4"], fusion="inner").score
        errors.append(float(((own - truth) / truth).abs().max()))
    assert found.own_error["gaia-a"] == pytest.approx(max(errors), rel=1e-6)
    assert find(found, "gaia-a", "reference", "torch").score_error == pytest.approx(max(errors), rel=1e-6)
    assert (found.float64_counts, found.channels) == (None, None)


def distort(
    monkeypatch: pytest.MonkeyPatch, detector: type[GaiaA] | type[GaiaZ], change: Callable[[GaiaOutput], GaiaOutput]
) -> None:
    """Makes the torch backend of `detector` alone return `change(output)`."""
    right = detector.score

    def score(self: GaiaA | GaiaZ, x: Tensor, *, return_matrix: bool = False) -> GaiaOutput:
        out = right(self, x, return_matrix=return_matrix)
        return change(out) if (self._options.engine, self._options.backend) == ("hooks", "torch") else out

    monkeypatch.setattr(detector, "score", score)


def test_a_wrong_score_fails(monkeypatch: pytest.MonkeyPatch, model: nn.Module, batches: list[Tensor]) -> None:
    def off_in_the_last_image(out: GaiaOutput) -> GaiaOutput:
        score = out.score.clone()
        score[-1] *= 1 + 2e-5
        return out._replace(score=score)

    distort(monkeypatch, GaiaA, off_in_the_last_image)
    found = validate(model, batches, engines=EAGER)
    assert not found.passed
    failed = [check for check in found.checks if check.passed is False]
    assert [(c.method, c.engine, c.backend) for c in failed] == [("gaia-a", "hooks", "torch")]
    assert failed[0].score_error == pytest.approx(2e-5, rel=0.1)
    assert "the score is off by 2e-05, more than 1e-05" in failed[0].reason


def test_a_wrong_count_fails(monkeypatch: pytest.MonkeyPatch, model: nn.Module, batches: list[Tensor]) -> None:
    def one_more_in_one_channel(out: GaiaOutput) -> GaiaOutput:
        assert out.matrix is not None
        matrix = out.matrix.clone()
        matrix[0, 0, 3] += 1 / 1024  # one position of the first layer's 32x32 map
        return out._replace(matrix=matrix)

    distort(monkeypatch, GaiaZ, one_more_in_one_channel)
    found = validate(model, batches, methods=("gaia-z",), engines=EAGER)
    assert not found.passed
    assert find(found, "gaia-z", "hooks", "torch").wrong_counts == len(batches)
    assert f"{len(batches)} channels have a wrong count" in find(found, "gaia-z", "hooks", "torch").reason
    assert find(found, "gaia-z", "reference", "torch").passed


def test_an_engine_that_raises_fails_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, model: nn.Module, batches: list[Tensor]
) -> None:
    def refuse(out: GaiaOutput) -> GaiaOutput:
        raise NonFiniteError("no score today")

    distort(monkeypatch, GaiaA, refuse)
    found = validate(model, batches, methods=("gaia-a",), engines=EAGER)
    check = find(found, "gaia-a", "hooks", "torch")
    assert check.passed is False
    assert check.reason == "NonFiniteError: no score today"
    assert find(found, "gaia-a", "reference", "torch").passed
    assert not found.passed


def test_a_float64_model_runs_where_it_can(batches: list[Tensor]) -> None:
    found = validate(digits_resnet(pretrained=True).double(), [x.double() for x in batches], engines=EAGER)
    assert found.passed
    assert found.own_error["gaia-a"] == 0
    assert found.float64_counts == 0
    assert find(found, "gaia-z", "hooks", "cpu").passed is None
    assert "float64" in find(found, "gaia-z", "hooks", "cpu").reason


def test_half_precision_is_held_to_plain_pytorch(batches: list[Tensor]) -> None:
    half = digits_resnet(pretrained=True).bfloat16()
    found = validate(half, [x.bfloat16() for x in batches], engines=EAGER)
    check = find(found, "gaia-a", "hooks", "torch")
    assert found.dtype == "bfloat16"
    assert found.own_error["gaia-a"] > 1e-5
    assert check.limit == 2 * found.own_error["gaia-a"]
    assert check.passed
    assert found.float64_counts is not None
    assert found.float64_counts > 0


def test_no_images(model: nn.Module) -> None:
    with pytest.raises(DataError, match="no images"):
        validate(model, [])


def test_nothing_passes_where_nothing_ran() -> None:
    unavailable = validation.Check("gaia-z", "hooks", "cuda", None, "no GPU")
    assert not validation.Validation(1, "float32", {}, None, None, [unavailable]).passed


def test_a_model_that_cannot_be_copied(batches: list[Tensor]) -> None:
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = digits_resnet(pretrained=True)

        def __deepcopy__(self, memo: object) -> nn.Module:
            raise TypeError("there is only one of me")

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    with pytest.raises(ModelError, match=r"Single cannot be copied to torch.float64.*only one of me"):
        validate(Single().eval(), batches)


def test_images_that_a_file_leaves_without_a_score_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "FORMATS", (".onnx",))
    model, good, bad = zoo.sometimes_closed()
    (check,) = validate(model, [good, bad], methods=("gaia-z",), engines=("export",)).checks
    assert check.passed
    assert check.reason == "2 of 6 images got no score (NaN): a file cannot ask hooks"


def test_a_file_that_scores_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "FORMATS", (".onnx",))
    model, good, bad = zoo.sometimes_closed()
    file = GaiaZ(model, engine="compiled").export
    monkeypatch.setattr(GaiaZ, "export", lambda self, path, x: file(path, good))
    (check,) = validate(model, [bad], methods=("gaia-z",), engines=("export",)).checks
    assert check.passed is False
    assert check.score_error is None
    assert check.reason.startswith("2 of 2 images")
