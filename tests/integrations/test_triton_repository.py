"""Model repositories of Triton Inference Server: what is written, when, and that nothing is written by halves."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from gaia_fast import GaiaZ
from gaia_fast.errors import ArgumentError, BackendError, CompilationError
from gaia_fast.integrations.triton_inference_server import config, export_model, repository
from gaia_fast.integrations.triton_inference_server.config import Interface, TensorConfig, config_text

import zoo
from docstring_examples import check_examples
from triton_config import read_config


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


class Exported:
    """In the place of a detector: its export is a copy of one that was made before."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def export(self, path: Path, example: object, *, preset: object = None) -> Path:
        return Path(shutil.copyfile(self._path, path))


@pytest.fixture(scope="module")
def undecided(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What exports logits and a score."""
    detector = GaiaZ(zoo.build("vgg_like"), engine="hooks")
    return Exported(detector.export(tmp_path_factory.mktemp("undecided") / "model.onnx", zoo.images(3)))


@pytest.fixture(scope="module")
def deciding(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What exports a decision, too."""
    detector = GaiaZ(zoo.build("vgg_like"), engine="hooks")
    detector.threshold = 2.5
    return Exported(detector.export(tmp_path_factory.mktemp("deciding") / "model.onnx", zoo.images(3)))


def test_the_example() -> None:
    check_examples(export_model)


def test_a_repository_and_its_configuration(deciding: Any, tmp_path: Path) -> None:
    path = export_model(deciding, tmp_path / "models", zoo.images(3), name="vgg.v1_a-b")
    assert path == tmp_path / "models" / "vgg.v1_a-b" / "1" / "model.onnx"
    assert os.listdir(tmp_path) == ["models"]
    assert files(tmp_path / "models") == [
        f"vgg.v1_a-b/{name}" for name in ("1/model.onnx", "1/model.py", "config.pbtxt")
    ]
    read = read_config(tmp_path / "models" / "vgg.v1_a-b" / "config.pbtxt")
    assert (read["name"], read["backend"], read["max_batch_size"]) == ("vgg.v1_a-b", "python", 32)
    assert read["input"] == [
        {"name": "images", "data_type": "TYPE_FP32", "dims": [3, 16, 16], "allow_ragged_batch": False}
    ]
    assert read["output"] == [
        {"name": "logits", "data_type": "TYPE_FP32", "dims": [5]},
        {"name": "score", "data_type": "TYPE_FP32", "dims": [1]},
        {"name": "is_ood", "data_type": "TYPE_BOOL", "dims": [1]},
    ]
    policy = read["dynamic_batching"]["default_queue_policy"]
    assert policy["timeout_action"] == "REJECT"
    assert policy["max_queue_size"] > 0
    assert int(policy["default_timeout_microseconds"]) > 0
    assert read["version_policy"] == {"latest": {"num_versions": 1}}
    assert [(each["kind"], each["count"]) for each in read["instance_group"]] == [("KIND_CPU", 1)]
    assert read["parameters"] == {"threads": {"string_value": "0"}}


def test_anyone_may_read_what_files_of_ones_own_anyone_may_read(deciding: Any, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        path = export_model(deciding, tmp_path / "models", zoo.images(3))
    finally:
        os.umask(before)
    for each in (*path.parents[:3], path, path.with_name("model.py"), path.parents[1] / "config.pbtxt"):
        assert each.stat().st_mode & 0o777 == (0o755 if each.is_dir() else 0o644), each


def test_sizes_that_differ_are_left_open(tmp_path: Path) -> None:
    detector = GaiaZ(zoo.build("parallel"), engine="hooks")
    export_model(detector, tmp_path, [zoo.images(3, 16), zoo.images(3, 24)[:, :, :16]])
    (images,) = read_config(tmp_path / "gaia" / "config.pbtxt")["input"]
    assert (images["dims"], images["allow_ragged_batch"]) == ([3, 16, -1], True)


def test_a_package_for_a_gpu() -> None:
    interface = Interface(TensorConfig("images", "TYPE_FP32", (3, 8, 8)), (), True, on_gpu=True)
    assert "instance_group [ { kind: KIND_GPU count: 1 } ]" in config_text("gaia", interface)


def test_the_next_version_leaves_the_others_and_the_configuration_alone(deciding: Any, tmp_path: Path) -> None:
    first = export_model(deciding, tmp_path, zoo.images(3))
    written, before = tmp_path / "gaia" / "config.pbtxt", first.read_bytes()
    written.write_text(written.read_text().replace("count: 1", "count: 2"))
    edited = written.read_text()
    (tmp_path / "gaia" / "07").mkdir()  # none to the server
    (tmp_path / "gaia" / "labels").mkdir()
    second = export_model(deciding, tmp_path, zoo.images(3))
    assert (first.parent.name, second.parent.name) == ("1", "2")
    first.parent.rename(tmp_path / "gaia" / "9")
    assert export_model(deciding, tmp_path, zoo.images(3)).parent.name == "10"
    assert (tmp_path / "gaia" / "9" / "model.onnx").read_bytes() == before
    assert written.read_text() == edited
    assert not list(tmp_path.rglob(".gaia-fast-*"))


def test_a_version_with_another_interface_is_refused(deciding: Any, undecided: Any, tmp_path: Path) -> None:
    export_model(deciding, tmp_path, zoo.images(3))
    before = files(tmp_path)
    with pytest.raises(ArgumentError, match=r"other inputs or outputs.*(?s:.)*give another name"):
        export_model(undecided, tmp_path, zoo.images(3))
    assert files(tmp_path) == before


def everything(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def test_a_failed_export_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, *_: object, **__: object) -> None:
        path.write_text("half")
        raise CompilationError("the program cannot be written")

    detector = GaiaZ(zoo.build("vgg_like"))
    monkeypatch.setattr(detector, "export", refused)
    with pytest.raises(CompilationError, match="cannot be written"):
        export_model(detector, tmp_path / "models", zoo.images(3))
    assert not everything(tmp_path)


@pytest.mark.parametrize("there", ["nothing", "repository", "model"])
def test_a_disk_that_is_full_leaves_all_as_it_was(
    undecided: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str
) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    if there != "nothing":
        export_model(undecided, tmp_path / "models", zoo.images(3), name="gaia" if there == "model" else "other")
    before = everything(tmp_path)
    monkeypatch.setattr("gaia_fast.integrations.triton_inference_server.repository.replacing", full)
    with pytest.raises(OSError, match="No space left"):
        export_model(undecided, tmp_path / "models", zoo.images(3))
    assert everything(tmp_path) == before


def test_numbers_that_the_server_has_not(undecided: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(config._TYPES, torch.float32)  # as bfloat16, which takes long to export
    with pytest.raises(ArgumentError, match=r"torch\.float32, which Triton's Python backend cannot take.*float32"):
        export_model(undecided, tmp_path / "models", zoo.images(3))
    assert not everything(tmp_path)


@pytest.mark.parametrize("name", ["", ".hidden", "../up", "a/b", "a b", "ä", "-a", 'a"'])
def test_names_that_are_none(name: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="is no name for a model"):
        repository.check_repository(tmp_path, name, "onnx")


def test_what_cannot_be_a_repository_is_told_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = repository.check_repository
    (tmp_path / "file").write_text("")
    (tmp_path / "models" / "other").mkdir(parents=True)
    with pytest.raises(ArgumentError, match="no folder"):
        check(tmp_path / "file", "gaia", "onnx")
    with pytest.raises(ArgumentError, match="no folder"):
        check(tmp_path, "file", "onnx")
    with pytest.raises(ArgumentError, match="no config.pbtxt"):
        check(tmp_path / "models", "other", "onnx")
    with pytest.raises(ArgumentError, match="none does not exist"):
        check(tmp_path / "none" / "models", "gaia", "onnx")
    with pytest.raises(ArgumentError, match="format='trt'"):
        check(tmp_path, "gaia", "trt")
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(ArgumentError, match="takes no new folders"):
        check(tmp_path, "gaia", "onnx")
    monkeypatch.setattr("gaia_fast.compiler.package.writing.missing", lambda: "onnx is not installed")
    with pytest.raises(BackendError, match="onnx is not installed"):
        check(tmp_path, "gaia", "onnx")
