"""Files for images of several sizes."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gaia_fast import Gaia, GaiaZ, read_metadata
from gaia_fast.compiler.package.metadata import FORMATS
from gaia_fast.errors import CompilationError, InputError

import zoo
from exported import load_one, load_several

SIZES = ((16, 16), (20, 24), (12, 16))


@pytest.mark.parametrize("ending", FORMATS)
def test_one_file_for_several_sizes(tmp_path: Path, ending: str) -> None:
    detector = Gaia(zoo.build("parallel"), scores=("gaia-z", "msp"), engine="hooks")
    detector.thresholds = {"gaia-z": 2.0}
    sizes = SIZES if ending == ".onnx" else SIZES[:2]  # a package takes seconds for each
    examples = [zoo.images(3, 24)[:, :, :h, :w] for h, w in sizes]
    path = detector.export(tmp_path / f"model{ending}", examples)
    assert json.loads(read_metadata(path)["images"]) == [[None, 3, h, w] for h, w in sizes]
    exported = load_several(path)
    for h, w in sizes:
        for count in (1, 4):
            x = zoo.images(count, 24, seed=h)[:, :, :h, :w]
            found, expected = exported.score(x), detector.score(x)
            torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found.scores, expected.scores, rtol=1e-5, atol=1e-6)
            assert found.is_ood["gaia-z"].tolist() == expected.is_ood["gaia-z"].tolist()
    with pytest.raises(InputError, match=r"\(one or more, 3, 16, 16\) or \(one or more, 3, 20, 24\)"):
        exported.score(zoo.images(2, 24))


def test_an_onnx_file_refuses_other_sizes_itself(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    detector = GaiaZ(zoo.build("strided_shortcut"))
    size = 16
    both = detector.export(tmp_path / "both.onnx", [zoo.images(2, size), zoo.images(2, 2 * size)])
    onnx.checker.check_model(onnx.load(both), full_check=True)
    session = onnxruntime.InferenceSession(both, providers=["CPUExecutionProvider"])
    with pytest.raises(Exception, match=f"images_must_be_{size}x{size}_or_{2 * size}x{2 * size}"):
        session.run(None, {"images": zoo.images(2, size + 4).numpy()})


class ThreeOfOneSize(nn.Module):
    """Of one of its sizes takes three images."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = zoo.build("parallel")

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x)
        return logits.view(3, -1) if x.shape[2] == 16 else logits


@pytest.mark.parametrize("sizes", [(16, 24), (24, 16)], ids=str)
def test_sizes_for_a_fixed_number_beside_others(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    """In any order."""
    detector = GaiaZ(ThreeOfOneSize().eval(), engine="hooks")
    path = detector.export(tmp_path / "model.onnx", [zoo.images(3, size) for size in sizes])
    numbers = {16: 3, 24: None}
    assert json.loads(read_metadata(path)["images"]) == [[numbers[size], 3, size, size] for size in sizes]
    exported = load_one(path)
    for size, count in ((16, 3), (24, 1), (24, 5)):
        x = zoo.images(count, size, seed=size)
        torch.testing.assert_close(exported.score(x).score, detector.score(x).score, rtol=1e-5, atol=0)


def test_the_size_that_does_not_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that takes the first size alone."""
    monkeypatch.setattr("gaia_fast.compiler.package.writing.by_size", lambda models, sizes: models[0])
    with pytest.raises(CompilationError, match=r"would not run on torch.float32 images of 24x24: "):
        GaiaZ(zoo.build("parallel")).export(tmp_path / "model.onnx", [zoo.images(2), zoo.images(2, 24)])


def test_each_size_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last branch stands for all of them."""
    from gaia_fast.compiler.onnx import image_sizes

    given = image_sizes.by_size
    monkeypatch.setattr(
        "gaia_fast.compiler.package.writing.by_size", lambda models, sizes: given([models[1]] * 2, sizes)
    )
    with pytest.raises(CompilationError, match=r"model\.onnx is not written"):
        GaiaZ(zoo.build("parallel")).export(tmp_path / "model.onnx", [zoo.images(2), zoo.images(2, 24)])
    assert not list(tmp_path.iterdir())


def test_examples_that_are_no_sizes(tmp_path: Path) -> None:
    detector = GaiaZ(zoo.build("parallel"))
    with pytest.raises(InputError, match="an example is missing"):
        detector.export(tmp_path / "model.onnx", [])
    with pytest.raises(InputError, match="give images of each size once"):
        detector.export(tmp_path / "model.onnx", [zoo.images(2), zoo.images(3)])
    with pytest.raises(InputError, match="must be a torch.Tensor"):
        detector.export(tmp_path / "model.onnx", [zoo.images(2), None])  # type: ignore[list-item]
