from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from gaia_fast.compiler.package.writing import read_metadata

from triton_config import read_config

DIGITS = ("--arch", "digits_resnet", "--preset", "digits")


def test_a_model_repository_and_its_next_version(run: Callable[..., Result], digits_npz: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    options = (*DIGITS, "--preprocess", "--calibrate-on", digits_npz, "--method", "gaia-z", "--method", "msp")
    for version in ("1", "2"):
        found = run("export", "--triton", models, "--name", "digits", *options)
        assert found.exit_code == 0, found.output
        path = models / "digits" / version / "model.onnx"
        assert found.stdout.startswith(f"{path}: ")
        assert "takes uint8 RGB pictures" in found.stderr
        assert read_metadata(path)["preprocessing"]
        assert path.with_name("model.py").is_file()
    config = read_config(models / "digits" / "config.pbtxt")
    assert config["name"] == "digits"
    assert config["input"][0]["dims"] == [3, -1, -1]
    assert [each["name"] for each in config["output"]] == ["logits", "gaia_z", "msp", "is_ood_gaia_z", "is_ood_msp"]


def test_a_package_in_it(run: Callable[..., Result], tmp_path: Path) -> None:
    found = run("export", "--triton", tmp_path / "models", "--format", "pt2", *DIGITS, "--size", "8")
    assert found.exit_code == 0, found.output
    assert found.stdout.startswith(str(tmp_path / "models" / "gaia" / "1" / "model.pt2"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give FILE, or --triton DIR"),
        (("model.onnx", "--triton", "models"), "not both"),
        (("model.onnx", "--name", "a"), "--name needs --triton"),
        (("model.onnx", "--format", "pt2"), "--format needs --triton"),
        (("--triton", "models", "--format", "trt"), "trt"),
    ],
)
def test_wrong_usage(run: Callable[..., Result], arguments: tuple[str, ...], message: str) -> None:
    found = run("export", *arguments, *DIGITS)
    assert found.exit_code == 2
    assert message in found.output


def test_a_repository_that_cannot_be_is_told_first(
    run: Callable[..., Result], digits_npz: Path, tmp_path: Path
) -> None:
    found = run("export", "--triton", tmp_path / "none" / "models", *DIGITS, "--calibrate-on", digits_npz)
    assert found.exit_code == 1
    assert "none does not exist" in found.stderr
    assert "threshold" not in found.stderr
