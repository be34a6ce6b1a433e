"""Triton Inference Server itself, where it is: it loads what is written, and answers as the exported files do.

`make triton-server` gets it, from the wheel of nvidia-pytriton, and runs these.
"""

import json
import os
import shutil
import socket
import subprocess
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from gaia_fast import Gaia, GaiaZ, load
from gaia_fast.integrations.triton_inference_server import export_model
from gaia_fast.models import digits_resnet

import zoo

ENVIRONMENT = os.environ.get("GAIA_FAST_TRITON_SERVER", "")

pytestmark = pytest.mark.skipif(
    not ENVIRONMENT, reason="GAIA_FAST_TRITON_SERVER names no environment with nvidia-pytriton: make triton-server"
)


class Server(NamedTuple):
    url: str
    models: Path
    log: Path

    def ask(self, model: str, images: np.ndarray) -> tuple[int, dict[str, np.ndarray] | str]:
        """Returns the status, and outputs by name or the reason why there are none."""
        kind = {"uint8": "UINT8", "float32": "FP32"}[images.dtype.name]
        given = {"name": "images", "shape": images.shape, "datatype": kind, "data": images.ravel().tolist()}
        body = json.dumps({"inputs": [given]}).encode()
        try:
            with urllib.request.urlopen(f"{self.url}/v2/models/{model}/infer", body, timeout=60) as response:
                answer: dict[str, Any] = json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)["error"]
        outputs = answer["outputs"]
        return 200, {each["name"]: np.array(each["data"]).reshape(each["shape"]) for each in outputs}


def repository(models: Path) -> None:
    digits = GaiaZ(digits_resnet(pretrained=True), engine="hooks")
    for threshold in (1e9, 10.0):  # the second version is the one to be served
        digits.threshold = threshold
        export_model(digits, models, torch.rand(4, 3, 32, 32), name="digits", preset="digits")
    several = Gaia(zoo.build("parallel"), scores=("gaia-z", "msp"))
    several.thresholds = {"gaia-z": 2.5}
    export_model(several, models, [zoo.images(3, 16), zoo.images(3, 24)], name="several")
    shutil.copytree(models / "digits", models / "busy")
    config = models / "busy" / "config.pbtxt"
    text = (
        config.read_text().replace('name: "digits"', 'name: "busy"').replace("max_batch_size: 32", "max_batch_size: 1")
    )
    config.write_text(text.replace("max_queue_size: 128", "max_queue_size: 2"))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    repository(folder / "models")
    (packages,) = Path(ENVIRONMENT).absolute().glob("lib/python*/site-packages")
    found, version = packages / "pytriton" / "tritonserver", sysconfig.get_python_version()
    backend = folder / "backends" / "python"
    shutil.copytree(found / "backends" / "python", backend)
    shutil.copy(found / "python_backend_stubs" / version / "triton_python_backend_stub", backend)
    for program in (backend / "triton_python_backend_stub", found / "bin" / "tritonserver"):
        program.chmod(0o755)
    libraries = [packages / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR")]
    environment = {
        **os.environ,
        "PATH": f"{Path(ENVIRONMENT).absolute() / 'bin'}:{os.environ['PATH']}",  # by which it finds Python's packages
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
    }
    url = f"127.0.0.1:{free_port()}"
    options = {
        "model-repository": folder / "models",
        "backend-directory": folder / "backends",
        "http-address": "127.0.0.1",
        "http-port": url.rpartition(":")[2],
        "allow-grpc": "false",
        "allow-metrics": "false",
    }
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [found / "bin" / "tritonserver", *(f"--{name}={value}" for name, value in options.items())],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    try:
        deadline = time.monotonic() + 120
        while not _ready(f"http://{url}/v2/health/ready"):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield Server(f"http://{url}", folder / "models", log)
    finally:
        process.terminate()
        process.wait(30)


def _ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def test_answers_are_the_files_whatever_is_scored_together(server: Server) -> None:
    random = np.random.default_rng(0)
    asked = [
        random.integers(0, 256, (1 + place % 3, 3, *((8, 8), (20, 31), (64, 48))[place % 5 % 3]), dtype=np.uint8)
        for place in range(40)
    ]
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda x: server.ask("digits", x), asked))
    exported = load(server.models / "digits" / "2" / "model.onnx")
    for x, (status, found) in zip(asked, answers, strict=True):
        assert status == 200, found
        assert isinstance(found, dict)
        expected = exported.outputs(torch.from_numpy(x))
        assert list(found) == list(expected)
        assert np.allclose(found["score"][:, 0], expected["score"].numpy(), rtol=1e-5)
        assert np.allclose(found["logits"], expected["logits"].numpy(), rtol=1e-4, atol=1e-4)
        assert np.array_equal(found["is_ood"][:, 0].astype(bool), found["score"][:, 0] > 10.0)
    with urllib.request.urlopen(f"{server.url}/v2/models/digits/stats", timeout=10) as response:
        (of_model,) = json.load(response)["model_stats"]
    assert of_model["version"] == "2"
    assert of_model["execution_count"] < 40 <= of_model["inference_count"]


def test_bad_requests_are_refused_with_the_reason_and_harm_no_other(server: Server) -> None:
    asked = [zoo.images(2, size).numpy() for size in (16, 17, 24, 16, 23, 24)]
    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda x: server.ask("several", x), asked))
    assert [status for status, _ in answers] == [200, 400, 200, 200, 400, 200]
    for x, (status, found) in zip(asked, answers, strict=True):
        if status == 400:
            assert f"images are torch.float32 {x.shape}" in str(found)
        else:
            assert isinstance(found, dict)
            assert found["gaia_z"].shape == found["is_ood_gaia_z"].shape == (2, 1)
    assert server.ask("several", np.zeros((1, 3, 16, 16), np.uint8))[0] == 400
    assert server.ask("several", np.zeros((33, 3, 16, 16), np.float32))[0] == 400


def test_what_cannot_be_scored_is_out_of_distribution(server: Server) -> None:
    status, found = server.ask("several", np.full((1, 3, 16, 16), 3e38, np.float32))
    assert status == 200
    assert isinstance(found, dict)
    assert np.isnan(found["gaia_z"]).all()
    assert found["is_ood_gaia_z"].all()


def test_overload_is_refused_and_what_is_answered_is_right(server: Server) -> None:
    x = np.random.default_rng(0).integers(0, 256, (1, 3, 256, 256), dtype=np.uint8)
    with ThreadPoolExecutor(32) as threads:
        answers = list(threads.map(lambda _: server.ask("busy", x), range(64)))
    statuses = [status for status, _ in answers]
    assert set(statuses) == {200, 503}
    expected = load(server.models / "busy" / "2" / "model.onnx").outputs(torch.from_numpy(x))["score"].numpy()
    for status, found in answers:
        if status == 200:
            assert isinstance(found, dict)
            assert np.allclose(found["score"][:, 0], expected, rtol=1e-5)
        else:
            assert "maximum queue size" in str(found)
