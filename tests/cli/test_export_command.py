import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result

from gaia_fast import Gaia
from gaia_fast.compiler.package.reading import load
from gaia_fast.compiler.package.writing import read_metadata
from gaia_fast.data import load_images
from gaia_fast.evaluation.image_sets import make_detector, model_input
from gaia_fast.models import digits_resnet

DIGITS = ("--arch", "digits_resnet", "--preset", "digits")


@pytest.mark.parametrize("method", ["gaia-z", "gaia-a"])
def test_a_file_that_scores(run: Callable[..., Result], digits_npz: Path, tmp_path: Path, method: str) -> None:
    path = tmp_path / "model.onnx"
    arguments = ("--method", method, "--images", digits_npz, "--threshold", "2.5")
    found = run("export", path, *DIGITS, *arguments)
    assert found.exit_code == 0, found.output
    assert found.stdout.startswith(f"{path}: ")
    assert "checked on 8 images of" in found.stderr
    assert float(read_metadata(path)["threshold"]) == 2.5
    model = digits_resnet(pretrained=True)
    x = model_input(model, next(load_images(str(digits_npz), "digits").batches(40)).images)
    score = load(path)(x)
    torch.testing.assert_close(score, make_detector(method, model, engine="hooks")(x), rtol=1e-4, atol=0)


def test_one_file_of_several_methods(run: Callable[..., Result], digits_npz: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    methods = ("--method", "gaia-z", "--method", "gaia-a", "--method", "msp")
    found = run("export", path, *DIGITS, *methods, "--images", digits_npz, "--threshold", "gaia-a=2.5")
    assert found.exit_code == 0, found.output
    described = json.loads(read_metadata(path)["scores"])
    assert {name: (each["output"], each["threshold"]) for name, each in described.items()} == {
        "gaia-z": ("gaia_z", None),
        "gaia-a": ("gaia_a", 2.5),
        "msp": ("msp", None),
    }
    model = digits_resnet(pretrained=True)
    x = model_input(model, next(load_images(str(digits_npz), "digits").batches(40)).images)
    expected = Gaia(model, scores=("gaia-z", "gaia-a", "msp"))(x)
    torch.testing.assert_close(load(path)(x), expected, rtol=1e-4, atol=1e-6)


def test_noise_where_there_are_no_images(run: Callable[..., Result], tmp_path: Path) -> None:
    found = run("export", tmp_path / "model.onnx", *DIGITS, "--size", "8")
    assert found.exit_code == 0, found.output
    assert "checked on 8 images of noise" in found.stderr


def test_wrong_usage(run: Callable[..., Result], tmp_path: Path, digits_npz: Path) -> None:
    assert run("export", tmp_path / "model.pth", *DIGITS).exit_code == 2
    assert run("export", tmp_path / "model.onnx", *DIGITS, "--size", "8", "--images", digits_npz).exit_code == 2
    assert run("export", tmp_path / "model.onnx", "--arch", "resnet34", "--size", "32").exit_code == 2  # no weights
