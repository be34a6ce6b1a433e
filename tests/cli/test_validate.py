import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from torch import Tensor, nn

from gaia_fast import GaiaOutput, GaiaZ
from gaia_fast.cli import options
from gaia_fast.cli.loading import load_model
from gaia_fast.errors import InvariantError
from gaia_fast.evaluation import validation
from gaia_fast.evaluation.invariants import INVARIANTS, InvariantResult
from gaia_fast.models import digits_resnet

DIGITS = ("--arch", "digits_resnet", "--preset", "digits")
# The figures alone, of what need not be compiled.
EAGER = ("--engine", "reference", "--engine", "hooks", "--no-invariants")


def read() -> Any:
    with open("out.json") as file:
        return json.load(file)


def test_passes(run: Callable[..., Result], digits_npz: Path) -> None:
    few = ("--limit", "5", "--batch-size", "3", "--method", "gaia-z", "--no-invariants")
    found = run("validate", digits_npz, *DIGITS, *few, "--json", "out.json")
    assert found.exit_code == 0
    assert found.stdout.splitlines()[-1] == "passed"
    record = read()
    assert record["passed"] is True
    assert record["images"] == 5
    ran = [check for check in record["checks"] if check["passed"] is not None]
    assert {check["method"] for check in ran} == {"gaia-z"}
    assert {check["engine"] for check in ran} >= {"reference", "hooks", "compiled", "export"}
    assert all(check["score_error"] <= check["limit"] for check in ran)
    for check in record["checks"]:
        if check["passed"] is None:
            assert f"{check['method']}, {check['engine']}, {check['backend']}: {check['reason']}" in found.stdout
    assert record["invariants"] == []
    assert "plain PyTorch in float32 is itself off by" in found.stdout
    assert f"of {record['channels']} channel counts differ" in found.stdout


def test_a_stage_is_that_of_every_row(run: Callable[..., Result], digits_npz: Path) -> None:
    few = ("--limit", "4", "--layers", "last_stage")
    found = run("validate", digits_npz, *DIGITS, *EAGER, *few, "--json", "out.json")
    assert found.exit_code == 0, found.output
    channels = read()["channels"]
    assert run("validate", digits_npz, *DIGITS, *EAGER, "--limit", "4", "--json", "out.json").exit_code == 0
    assert 0 < channels < read()["channels"]


def test_limit_is_64_images_by_default(run: Callable[..., Result], digits_npz: Path) -> None:
    assert run("validate", digits_npz, *DIGITS, *EAGER, "--method", "gaia-z", "--json", "out.json").exit_code == 0
    assert read()["images"] == 40
    assert read()["options"]["limit"] == 64


@pytest.mark.parametrize("folder", ["digits_folder", "damaged_folder"])
def test_wrong_scores_fail(
    run: Callable[..., Result], folder: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = GaiaZ.score

    def score(self: GaiaZ, x: Tensor, **options: Any) -> GaiaOutput:
        out = right(self, x, **options)
        return out._replace(score=out.score * 1.001) if self._options.backend == "torch" else out

    monkeypatch.setattr(GaiaZ, "score", score)
    found = run("validate", request.getfixturevalue(folder), *DIGITS, *EAGER, "--json", "out.json")
    assert found.exit_code == 1  # also where images are unreadable: a failure weighs more
    assert found.stdout.splitlines()[-1] == "FAILED"
    assert "FAIL" in found.stdout
    assert read()["passed"] is False
    assert {check["method"] for check in read()["checks"] if check["passed"] is False} == {"gaia-z"}


def test_unreadable_images(run: Callable[..., Result], damaged_folder: Path) -> None:
    found = run(
        "validate", damaged_folder, *DIGITS, *EAGER, "--method", "gaia-a", "--layers", "layer4", "--json", "out.json"
    )
    assert found.exit_code == 3
    assert read()["images"] == 6
    assert read()["float64_counts"] is None
    assert "unreadable: a/broken.png" in found.stderr


def test_layers_and_options_reach_the_checks(run: Callable[..., Result], digits_folder: Path) -> None:
    arguments = ("validate", digits_folder, *DIGITS, *EAGER, "--json", "out.json", "--limit", "2")
    assert run(*arguments, "--layers", "gaia-z=layer4", "--fusion", "top1").exit_code == 0
    assert read()["channels"] == 2 * 3 * 64
    assert read()["options"]["fusion"] == "top1"
    found = run(*arguments, "--layers", "laier4")
    assert found.exit_code == 1
    assert "did you mean 'layer4'" in found.stderr


def test_what_is_checked_can_be_chosen(run: Callable[..., Result], digits_folder: Path) -> None:
    arguments = ("--method", "gaia-a", "--limit", "2", "--engine", "hooks", "--json", "out.json")
    assert run("validate", digits_folder, *DIGITS, *arguments).exit_code == 0
    for asked in ("checks", "invariants"):
        assert {check["engine"] for check in read()[asked]} == {"hooks"}
        assert {check["method"] for check in read()[asked]} == {"gaia-a"}
    assert run("validate", digits_folder, *DIGITS, "--engine", "fast").exit_code == 2


def test_invariants_are_asked_on_the_first_images(run: Callable[..., Result], digits_npz: Path) -> None:
    few = ("--limit", "5", "--batch-size", "3", "--method", "gaia-z", "--layers", "last_stage")
    engines = ("--engine", "reference", "--engine", "hooks")
    found = run("validate", digits_npz, *DIGITS, *engines, *few, "--json", "out.json")
    assert found.exit_code == 0, found.output
    asked = read()["invariants"]
    assert {(each["name"], each["engine"]) for each in asked} == {
        (name, engine) for name in INVARIANTS for engine in ("reference", "hooks")
    }
    assert {each["passed"] for each in asked} == {True, None}
    table = found.stdout[found.stdout.index("what must always hold of a detector") :]
    assert "training_mode_is_refused" in table
    for each in asked:
        if each["passed"] is None:
            assert f"{each['name']} (gaia-z {each['engine']}): {each['detail']}" in table
    assert found.stdout.splitlines()[-1] == "passed"


def test_an_invariant_that_does_not_hold_fails(
    run: Callable[..., Result], digits_npz: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = GaiaZ.score

    def score(self: GaiaZ, x: Tensor, **options: Any) -> GaiaOutput:
        out = right(self, x, **options)
        return out._replace(score=out.score * 1.01) if x.shape[0] == 1 else out

    monkeypatch.setattr(GaiaZ, "score", score)
    arguments = ("--engine", "hooks", "--limit", "4", "--method", "gaia-z", "--json", "out.json")
    found = run("validate", digits_npz, *DIGITS, *arguments)
    assert found.exit_code == 1
    assert found.stdout.splitlines()[-1] == "FAILED"
    assert "an_image_by_itself_scores_as_in_a_batch (gaia-z hooks): 1 of the images: scores are" in found.stdout
    record = read()
    assert record["passed"] is False
    assert all(check["passed"] is not False for check in record["checks"])  # in batches of 4, all is right
    assert [each["name"] for each in record["invariants"] if each["passed"] is False] == [
        "an_image_by_itself_scores_as_in_a_batch"
    ]
    assert run("validate", digits_npz, *DIGITS, *arguments, "--no-invariants").exit_code == 0


class Changing(nn.Module):
    """Its other way through is chosen by the values, so that no program of it can be made."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = digits_resnet(pretrained=True)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x)
        return logits if float(x.detach().sum()) > 1e9 else 2 * logits


def test_a_model_that_the_engine_does_not_take(
    run: Callable[..., Result], digits_npz: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason is in the table and in the JSON."""
    monkeypatch.setattr(options, "load_model", lambda *given: load_model(*given)._replace(model=Changing().eval()))
    arguments = ("--engine", "compiled", "--limit", "2", "--method", "gaia-z", "--json", "out.json")
    found = run("validate", digits_npz, *DIGITS, *arguments)
    assert found.exit_code == 1
    assert found.stdout.splitlines()[-1] == "FAILED"  # nothing ran
    record = read()
    assert record["passed"] is False
    (refusal,) = record["invariants"]
    assert (refusal["name"], refusal["passed"]) == ("images_are_scored_or_refused", None)
    assert f"images_are_scored_or_refused (gaia-z compiled): {refusal['detail']}" in found.stdout


def test_what_ends_the_asking_is_said_last(
    run: Callable[..., Result], digits_npz: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(*args: Any, callback: Callable[[InvariantResult], None], **options: Any) -> None:
        callback(InvariantResult("training_mode_is_refused", "gaia-z", "hooks", True, "seen"))
        raise InvariantError("the model could not be put back", [])

    monkeypatch.setattr("gaia_fast.cli.validate.check_detector", check)
    arguments = ("--engine", "hooks", "--limit", "2", "--method", "gaia-z", "--json", "out.json")
    found = run("validate", digits_npz, *DIGITS, *arguments)
    assert found.exit_code == 1
    assert "the model could not be put back" in found.stderr
    assert read()["passed"] is False
    assert [each["name"] for each in read()["invariants"]] == ["training_mode_is_refused"]


def test_files_alone_have_no_invariants(
    run: Callable[..., Result], digits_npz: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "FORMATS", (".onnx",))
    arguments = ("--engine", "export", "--limit", "2", "--method", "gaia-a", "--json", "out.json")
    found = run("validate", digits_npz, *DIGITS, *arguments)
    assert found.exit_code == 0, found.output
    assert read()["invariants"] == []
    assert "what must always hold" not in found.stdout
