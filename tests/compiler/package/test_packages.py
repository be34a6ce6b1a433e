import copy
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from gaia_fast import GaiaA, GaiaZ, reference
from gaia_fast.compiler.onnx.conversion import to_onnx
from gaia_fast.compiler.package import writing as export_module
from gaia_fast.compiler.package.writing import FORMATS, read_metadata
from gaia_fast.errors import ArgumentError, CompilationError, InputError, NonFiniteError

import zoo
from exported import load_one


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("detector", [GaiaZ, GaiaA])
def test_a_file_scores_as_the_detector_does(tmp_path: Path, ending: str, detector: type[GaiaA] | type[GaiaZ]) -> None:
    model = zoo.build("strided_shortcut")
    compiled = detector(model)
    compiled.threshold = np.float64(1.25)
    path = compiled.export(tmp_path / f"model{ending}", zoo.images(3))
    run = load_one(path)
    truth = reference.gaia_z if detector is GaiaZ else reference.gaia_a
    for count in (1, 3, 5):
        x = zoo.images(count, seed=count)
        logits, score = run.score(x)
        assert score.dtype == torch.float32
        assert torch.allclose(score, truth(model, x).score, rtol=1e-5)
        with torch.no_grad():
            assert torch.allclose(logits, model(x), rtol=1e-4, atol=1e-5)
    metadata = read_metadata(path)
    assert float(metadata["threshold"]) == 1.25
    assert json.loads(metadata["method"])["name"] == compiled.method.name
    assert json.loads(metadata["layers"]) == ["stem.1", "residual.1", "residual.4", "shortcut.1"]
    assert json.loads(metadata["images"]) == [None, 3, 16, 16]
    assert metadata["dtype"] == "float32"


def test_the_metadata_tells_a_number_of_images_that_the_model_fixes(tmp_path: Path) -> None:
    path = GaiaZ(zoo.FixedBatch(3).eval()).export(tmp_path / "model.onnx", zoo.images(3))
    assert json.loads(read_metadata(path)["images"]) == [3, 3, 16, 16]


def test_onnx_holds_standard_operators_alone_with_named_ends(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    for name in ("vgg_like", "small_bit", "group_norm"):
        path = GaiaA(zoo.build(name)).export(tmp_path / f"{name}.onnx", zoo.images(2, zoo.image_size(name)))
        model = onnx.load(path)
        onnx.checker.check_model(model)
        assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
        assert not model.functions
        assert [each.name for each in model.graph.input] == ["images"]
        assert [each.name for each in model.graph.output] == ["logits", "score"]
        assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
        assert {each.key for each in model.metadata_props} >= {"threshold", "method", "layers", "images", "gaia_fast"}


ALONE = """
import json, sys
sys.modules.update(dict.fromkeys(["torch", "gaia_fast", "onnx"]))  # None: whoever imports one of them fails
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
logits, score = session.run(["logits", "score"], {"images": numpy.load(sys.argv[2])})
metadata = session.get_modelmeta().custom_metadata_map
print(json.dumps([logits.tolist(), score.tolist(), (score > float(metadata["threshold"])).tolist()]))
"""


@pytest.mark.parametrize("detector", [GaiaZ, GaiaA])
def test_onnx_scores_where_there_is_only_onnxruntime(tmp_path: Path, detector: type[GaiaA] | type[GaiaZ]) -> None:
    own, x = detector(zoo.build("strided_shortcut"), engine="hooks"), zoo.images(5, seed=5)
    own.calibrate(own(x), id_tpr=0.6)
    assert own.threshold is not None
    own.threshold *= 1 + 1e-4  # not a score itself, which rounding would put on either side
    path = own.export(tmp_path / "model.onnx", zoo.images(3))
    np.save(tmp_path / "images.npy", x.numpy())
    command: list[str | Path] = [sys.executable, "-I", "-c", ALONE, path, tmp_path / "images.npy"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    logits, score, decisions = json.loads(found.stdout)
    expected = own.score(x)
    assert torch.allclose(torch.tensor(logits), expected.logits, rtol=1e-4, atol=1e-5)
    assert torch.allclose(torch.tensor(score), expected.score, rtol=1e-5)
    assert decisions == own.is_ood(x).tolist()
    assert sum(decisions) == 2


def test_what_a_file_cannot_score_is_no_number(tmp_path: Path) -> None:
    model, good, bad = zoo.sometimes_closed()
    run = load_one(GaiaZ(model).export(tmp_path / "model.onnx", good))
    score = run(torch.cat([good, bad]))
    assert torch.allclose(score[: len(good)], reference.gaia_z(model, good).score, rtol=1e-5)
    assert bool(score[len(good) :].isnan().all())


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("ending", FORMATS)
def test_an_export_that_fails_leaves_an_earlier_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, there: bool, error: type[BaseException]
) -> None:
    def fails(*arguments: object, package_path: str | None = None, **_: object) -> None:
        written = Path(package_path or str(arguments[1]))
        assert written != path
        written.write_bytes(b"half of it")
        raise error("the disk is full")

    path = tmp_path / f"model{ending}"
    if there:
        path.write_bytes(b"good" * 1000)
    monkeypatch.setattr("onnx.save", fails)
    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", fails)
    with pytest.raises((error, CompilationError), match="the disk is full"):
        GaiaZ(zoo.build("parallel")).export(path, zoo.images(2))
    assert [each.name for each in tmp_path.iterdir()] == [path.name] * there
    assert not there or path.read_bytes() == b"good" * 1000


def test_a_program_too_large_for_one_onnx_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gaia_fast.compiler.onnx.conversion.LARGEST", 100)
    with pytest.raises(
        CompilationError, match=r"weights take \d+ bytes, and an ONNX file holds at most 100; use \.pt2"
    ):
        GaiaZ(zoo.build("parallel")).export(tmp_path / "model.onnx", zoo.images(2))
    assert not list(tmp_path.iterdir())


def test_an_export_replaces_what_a_link_leads_to(tmp_path: Path) -> None:
    (tmp_path / "real.onnx").write_bytes(b"old")
    (tmp_path / "real.onnx").chmod(0o640)
    (tmp_path / "model.onnx").symlink_to("real.onnx")
    GaiaZ(zoo.build("parallel")).export(tmp_path / "model.onnx", zoo.images(2))
    assert (tmp_path / "model.onnx").is_symlink()
    assert (tmp_path / "real.onnx").stat().st_mode & 0o777 == 0o640
    assert json.loads(read_metadata(tmp_path / "real.onnx")["images"]) == [None, 3, 16, 16]


@pytest.mark.parametrize("ending", FORMATS)
def test_a_folder_that_takes_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    def refused(*_: object, dir: object = None, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("gaia_fast.files.tempfile", types.SimpleNamespace(TemporaryDirectory=refused))
    with pytest.raises(ArgumentError, match="cannot be written .Permission denied.; choose a folder"):
        GaiaZ(zoo.build("parallel")).export(tmp_path / f"model{ending}", zoo.images(2))


def test_refusals(tmp_path: Path) -> None:
    detector = GaiaZ(zoo.build("parallel"))
    with pytest.raises(ArgumentError, match=r"model\.pth ends in neither of"):
        detector.export(tmp_path / "model.pth", zoo.images(2))
    with pytest.raises(ArgumentError, match="the folder .* does not exist"):
        detector.export(tmp_path / "no" / "model.onnx", zoo.images(2))
    with pytest.raises(InputError, match="no images"):
        detector.export(tmp_path / "model.onnx", zoo.images(0))
    (tmp_path / "folder.pt2").mkdir()
    with pytest.raises(ArgumentError, match=r"folder\.pt2 is a folder"):
        detector.export(tmp_path / "folder.pt2", zoo.images(2))
    (tmp_path / "folder.pt2").rmdir()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_file_that_its_runtime_cannot_open_is_not_written(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"an earlier file")
    with pytest.raises(CompilationError, match=rf"model.onnx is not written, .* {dtype} images of 16x16: .* Export"):
        GaiaZ(zoo.build("parallel", dtype)).export(path, zoo.images(2, dtype=dtype))
    assert path.read_bytes() == b"an earlier file"


class Maxima(nn.Module):
    """The gradient through a maximum goes where a number is equal to the largest."""

    def __init__(self, head: bool) -> None:
        super().__init__()
        self.features = nn.Sequential(*zoo.conv_norm(3, 6), nn.ReLU(), *zoo.conv_norm(6, 6), nn.ReLU())
        self.classes = nn.Conv2d(6, 5, 1) if head else nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        f = self.features(x)
        if isinstance(self.classes, nn.Conv2d):
            return self.classes(f).amax((2, 3))
        return self.classes((f * f.amax(1, keepdim=True)).mean((2, 3)))


@pytest.mark.parametrize("head", [True, False], ids=["of logits", "of channels"])
def test_a_file_for_float16_rounds_to_it_at_its_ends_alone(tmp_path: Path, head: bool) -> None:
    torch.manual_seed(0)
    model, x = Maxima(head).eval().half(), zoo.images(40, dtype=torch.float16)
    run = load_one(GaiaZ(model).export(tmp_path / "model.onnx", x[:3]))
    logits, score = run.score(x)
    truth = reference.gaia_z(copy.deepcopy(model).double(), x.double())
    assert (logits.dtype, score.dtype) == (torch.float16, torch.float32)
    torch.testing.assert_close(logits.double(), truth.logits, rtol=2**-10, atol=1e-6)
    torch.testing.assert_close(score.double(), truth.score.double(), rtol=1e-5, atol=0)
    assert read_metadata(tmp_path / "model.onnx")["dtype"] == "float16"


def test_a_file_that_gives_another_dtype_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module, "with_images_in", lambda dtype, program: program)
    monkeypatch.setattr(export_module, "computes_in", lambda path, dtype: dtype)
    monkeypatch.setattr("gaia_fast.engines.compiled.computes_in", lambda path, dtype: dtype)
    torch.manual_seed(0)
    with pytest.raises(CompilationError, match=r"its logits would be in torch.float32 .* not in torch.float16"):
        GaiaZ(Maxima(True).eval().half()).export(tmp_path / "model.onnx", zoo.images(3, dtype=torch.float16))
    assert not list(tmp_path.iterdir())


def test_a_file_that_scores_otherwise_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example alone would not tell: the weight of a class that it does not show."""

    def wrong(*arguments: Any) -> Any:
        model = to_onnx(*arguments)
        for each in model.graph.initializer:
            if list(each.dims) in ([5, 13], [13, 5]):
                values = numpy_helper.to_array(each) * 1.01
                each.CopyFrom(numpy_helper.from_array(values.astype("float32"), each.name))
        return model

    monkeypatch.setattr(export_module, "to_onnx", wrong)
    path = tmp_path / "model.onnx"
    with pytest.raises(CompilationError, match=r"is not written, since it would be off by .* from the reference"):
        GaiaZ(zoo.build("parallel")).export(path, zoo.images(2))
    assert not path.exists()


@pytest.mark.parametrize("ending", FORMATS)
def test_an_image_whose_score_would_be_divided_by_zero_is_nan_in_a_file(tmp_path: Path, ending: str) -> None:
    torch.manual_seed(0)
    conv, head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 3)
    features = nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU())
    model = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head).eval()
    assert conv.bias is not None
    with torch.no_grad():
        conv.weight.abs_()
        conv.bias.zero_()
        head.bias.zero_()
    x = torch.rand(4, 3, 8, 8)
    x[2] *= -1  # no unit is open: all logits are zero, and so is the output component
    detector = GaiaA(model, engine="compiled", runtime="eager")
    score = load_one(detector.export(tmp_path / f"model{ending}", x[:2]))(x)
    assert score.isnan().tolist() == [False, False, True, False]
    others = torch.tensor([0, 1, 3])
    torch.testing.assert_close(score[others], detector.score(x[others]).score, rtol=1e-5, atol=0)
    with pytest.raises(NonFiniteError, match="output component of images 2"):
        detector.score(x)
