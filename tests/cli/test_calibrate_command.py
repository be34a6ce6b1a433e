"""`gaia-fast calibrate`: what it writes is what Python's `load` and the service read."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from gaia_fast import Gaia, GaiaZ, load
from gaia_fast.data import PRESETS
from gaia_fast.data.digits import held_out_digits
from gaia_fast.detector_file import SavedDetector
from gaia_fast.models import digits_resnet

DIGITS = ("--arch", "digits_resnet", "--preset", "digits")


def test_one_score(run: Callable[..., Result], digits_npz: Path) -> None:
    found = run("calibrate", digits_npz, *DIGITS, "--out", "digits.gaia", "--layers", "layer4", "--id-tpr", "0.9")
    assert found.exit_code == 0
    model = digits_resnet(pretrained=True)
    detector = load("digits.gaia", model)
    expected = GaiaZ(model, layers=["layer4"]).calibrate(held_out_digits()[0][:40], 0.9)
    assert isinstance(detector, GaiaZ)
    assert detector.threshold == expected.threshold
    assert detector.inspected_layers == expected.inspected_layers
    assert SavedDetector.read(Path("digits.gaia")).preset == PRESETS["digits"]
    assert detector.calibration is not None
    assert detector.calibration.images == 40
    assert f"gaia-z: threshold {detector.threshold!r}, from 40 images" in found.stderr


def test_several_scores(run: Callable[..., Result], digits_npz: Path) -> None:
    found = run("calibrate", digits_npz, *DIGITS, "--out", "d.gaia", "--method", "gaia-z", "--method", "msp")
    assert found.exit_code == 0
    detector = load("d.gaia", digits_resnet(pretrained=True))
    assert isinstance(detector, Gaia)
    assert sorted(detector.thresholds) == ["gaia-z", "msp"]
    assert {each.images for each in detector.calibrations.values()} == {40}


def test_unreadable_images_are_named(run: Callable[..., Result], damaged_folder: Path) -> None:
    found = run("calibrate", damaged_folder, *DIGITS, "--out", "d.gaia")
    assert found.exit_code == 3
    assert "broken.png" in found.stderr
    assert "from 6 images" in found.stderr
    assert Path("d.gaia").is_file()


def test_what_is_skipped_is_said(run: Callable[..., Result], digits_folder: Path) -> None:
    (digits_folder / "notes.txt").write_text("none")
    assert "skipped: 1 .txt\n" in run("calibrate", digits_folder, *DIGITS, "--out", "d.gaia").stderr


@pytest.mark.parametrize(("options", "message"), [(("--out", "d.txt"), "must end in .gaia"), ((), "--out")])
def test_wrong_usage(run: Callable[..., Result], digits_npz: Path, options: tuple[str, ...], message: str) -> None:
    found = run("calibrate", digits_npz, *DIGITS, *options)
    assert found.exit_code == 2
    assert message in found.stderr
    assert not list(Path().iterdir())
