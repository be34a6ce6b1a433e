import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result

from gaia_fast import Gaia
from gaia_fast.compiler.package.writing import read_metadata
from gaia_fast.data import load_images
from gaia_fast.evaluation.image_sets import make_detector, model_input
from gaia_fast.models import digits_resnet

from exported import load_one, load_several

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
    score = load_one(path)(x)
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
    torch.testing.assert_close(load_several(path)(x), expected, rtol=1e-4, atol=1e-6)


def test_noise_where_there_are_no_images(run: Callable[..., Result], tmp_path: Path) -> None:
    found = run("export", tmp_path / "model.onnx", *DIGITS, "--size", "8")
    assert found.exit_code == 0, found.output
    assert "checked on 8 images of noise" in found.stderr


def test_wrong_usage(run: Callable[..., Result], tmp_path: Path, digits_npz: Path) -> None:
    assert run("export", tmp_path / "model.pth", *DIGITS).exit_code == 2
    assert run("export", tmp_path / "model.onnx", *DIGITS, "--size", "8", "--images", digits_npz).exit_code == 2
    assert run("export", tmp_path / "model.onnx", "--arch", "resnet34", "--size", "32").exit_code == 2  # no weights


def test_a_file_that_prepares_pictures_and_decides(
    run: Callable[..., Result], digits_npz: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    calibrated = ("--calibrate-on", digits_npz, "--id-tpr", "0.5")
    found = run("export", path, *DIGITS, "--images", digits_npz, "--preprocess", *calibrated)
    assert found.exit_code == 0, found.output
    assert "gaia-z: threshold" in found.stderr
    assert "from 40 images" in found.stderr
    assert "takes uint8 RGB pictures (N, 3, H, W): resize 32x32 (bilinear); mean 0.5, 0.5, 0.5" in found.stderr
    exported = load_one(path)
    pictures = np.load(digits_npz)["x"]
    out = exported.score(torch.from_numpy(pictures).permute(0, 3, 1, 2))
    model = digits_resnet(pretrained=True)
    x = next(load_images(str(digits_npz), "digits").batches(40)).images
    torch.testing.assert_close(out.score, make_detector("gaia-z", model, engine="hooks")(x), rtol=1e-4, atol=0)
    assert float(read_metadata(path)["threshold"]) == exported.threshold == sorted(out.score.tolist())[19]
    assert out.is_ood is not None
    assert int(out.is_ood.sum()) == 20


def test_thresholds_of_several_methods_for_several_sizes(
    run: Callable[..., Result], digits_npz: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    arguments = ("--method", "gaia-z", "--method", "msp", "--calibrate-on", digits_npz)
    found = run("export", path, *DIGITS, *arguments, "--size", "32", "--size", "24x40")
    assert found.exit_code == 0, found.output
    assert "images of noise of (3, 24, 40)" in found.stderr
    assert "one threshold of each method serves all sizes" in found.stderr
    assert json.loads(read_metadata(path)["images"]) == [[None, 3, 32, 32], [None, 3, 24, 40]]
    exported = load_several(path)
    assert exported.thresholds.keys() == {"gaia-z", "msp"}
    assert exported.score(torch.zeros(1, 3, 24, 40)).logits.shape == (1, 10)


def test_images_to_calibrate_on_that_cannot_be_read(
    run: Callable[..., Result], damaged_folder: Path, tmp_path: Path
) -> None:
    found = run("export", tmp_path / "model.onnx", *DIGITS, "--calibrate-on", damaged_folder)
    assert found.exit_code == 3, found.output
    assert "broken.png" in found.stderr
    assert "from 6 images" in found.stderr
    assert read_metadata(tmp_path / "model.onnx")["threshold"]


@pytest.mark.parametrize("preset", [("--preset", "digits"), ("--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5")])
def test_images_to_calibrate_on_of_another_size(
    run: Callable[..., Result], digits_npz: Path, tmp_path: Path, preset: tuple[str, ...]
) -> None:
    arguments = ("--arch", "digits_resnet", *preset, "--calibrate-on", digits_npz, "--size", "24x40")
    found = run("export", tmp_path / "model.onnx", *arguments)
    assert found.exit_code == 1
    assert re.search(r"--calibrate-on: \S+ becomes (32x32|8x8), and the file is for 24x40", found.stderr)
    assert not list(tmp_path.glob("*.onnx"))


def test_a_file_that_cannot_be_written_is_told_first(
    run: Callable[..., Result], digits_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrated = ("--calibrate-on", digits_npz)
    found = run("export", tmp_path / "none" / "model.onnx", *DIGITS, *calibrated)
    assert found.exit_code == 1
    assert "none does not exist" in found.stderr
    monkeypatch.setattr("gaia_fast.compiler.package.writing.missing", lambda: "onnx is not installed")
    without_onnx = run("export", tmp_path / "model.onnx", *DIGITS, *calibrated)
    assert without_onnx.exit_code == 1
    assert "model.onnx cannot be written: onnx is not installed" in without_onnx.stderr
    assert "threshold" not in found.stderr + without_onnx.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--preprocess", "--size", "8", "--size", "9"), "--preprocess makes images of one size"),
        (("--threshold", "1", "--calibrate-on", "x"), "--threshold or --calibrate-on, not both"),
        (("--id-tpr", "0.9"), "needs --calibrate-on"),
    ],
)
def test_options_that_do_not_go_together(
    run: Callable[..., Result], tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    found = run("export", tmp_path / "model.onnx", *DIGITS, *options)
    assert found.exit_code == 2
    assert message in found.output
