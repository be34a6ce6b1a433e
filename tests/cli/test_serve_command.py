"""`gaia-fast serve`: from the command to an answer, and to nothing left behind."""

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlparse

import psutil
import pytest
from click.testing import Result

import gaia_fast
from gaia_fast import GaiaZ
from gaia_fast.data.digits import held_out_digits
from gaia_fast.models import digits_resnet

from served import digit

DIGITS = ("--arch", "digits_resnet", "--preset", "digits")


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--detector", "d.gaia", "--threshold", "3"), 2, "leave --threshold out"),
        (("--detector", "d.gaia", "--calibrate-on", "x"), 2, "leave --calibrate-on out"),
        (("--detector", "d.gaia", "--method", "gaia-z"), 2, "leave --method out"),
        (("--detector", "d.gaia", "--runtime", "eager"), 2, "leave --runtime out"),
        (("--detector", "d.onnx"), 2, "no .gaia file"),
        (("--preset", "none"), 2, "images of one size are served"),
        (("--labels", "none.txt"), 1, "--labels none.txt cannot be read"),
        (("--threshold", "nan"), 1, "the threshold is nan"),
        (("--port", "70000"), 2, "--port"),
        (("--device", "cuda:1"), 2, "ask for cuda"),
        (("--calibrate-on", "nothing/"), 1, "does not exist"),
    ],
)
def test_wrong_usage(run: Callable[..., Result], options: tuple[str, ...], code: int, message: str) -> None:
    found = run("serve", *DIGITS, *options)
    assert found.exit_code == code
    assert message in found.stderr


def test_what_is_skipped_of_the_calibration_is_said(run: Callable[..., Result], digits_folder: Path) -> None:
    (digits_folder / "notes.txt").write_text("none")
    found = run("serve", *DIGITS, "--calibrate-on", digits_folder, "--labels", "none.txt")
    assert f"skipped: {digits_folder}: 1 .txt\n" in found.stderr


def test_the_preset_is_that_of_the_calibration(run: Callable[..., Result]) -> None:
    detector = GaiaZ(digits_resnet(pretrained=True)).calibrate(held_out_digits()[0][:100])
    detector.save("d.gaia", preset="digits")
    asked = ("serve", "--arch", "digits_resnet", "--detector", "d.gaia")
    other = run(*asked, "--preset", "digits", "--interpolation", "bicubic")
    assert other.exit_code == 2
    assert "prepared otherwise (resize 32x32 (bilinear)" in other.stderr
    for same in ((), ("--preset", "digits")):  # what is wrong here is found later
        assert "--labels none.txt cannot be read" in run(*asked, *same, "--labels", "none.txt").stderr


def test_labels_of_another_number_of_classes(run: Callable[..., Result]) -> None:
    Path("labels.txt").write_text("zero\none\n")
    found = run("serve", *DIGITS, "--labels", "labels.txt")
    assert found.exit_code == 1
    assert "2 names for 10 classes" in found.stderr


def test_it_answers_and_ends_when_it_is_told_to(tmp_path: Path) -> None:
    detector = GaiaZ(digits_resnet(pretrained=True)).calibrate(held_out_digits()[0][:100])
    detector.save(tmp_path / "d.gaia")
    (tmp_path / "labels.txt").write_text("\n".join(f"digit {k}" for k in range(10)))
    command = [sys.executable, "-m", "gaia_fast", "serve", *DIGITS, "--port", "0", "--detector", "d.gaia"]
    path = os.pathsep.join([str(Path(gaia_fast.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [*command, "--labels", "labels.txt"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if "serving at" in line:
            break
    try:
        assert "serving at http://127.0.0.1:" in said[-1], said
        connection = http.client.HTTPConnection(urlparse(said[-1].split()[-1]).netloc, timeout=60)
        connection.request("POST", "/score", digit(200))
        answer = json.loads(connection.getresponse().read())
        connection.close()
        started = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=60)
    logits, score = detector.score(held_out_digits()[0][200:201])
    assert answer["score"] == pytest.approx(float(score), rel=1e-5)
    assert answer["label"] == f"digit {int(logits.argmax())}"
    assert [answer["is_ood"]] == detector.is_ood(held_out_digits()[0][200:201]).tolist()
    assert process.returncode == 0, rest
    assert rest == ""
    assert started
    _, alive = psutil.wait_procs(started, timeout=30)
    assert not alive
