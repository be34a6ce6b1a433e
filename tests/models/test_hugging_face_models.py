import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gaia_fast import GaiaA, GaiaZ
from gaia_fast.errors import ArgumentError, ModelError
from gaia_fast.models.hugging_face import image_classifier, preprocessing
from gaia_fast.options import EngineOption

import torchvision_schemas  # noqa: F401  (before transformers, which imports torchvision)

transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Any]:
    """A folder with a tiny ResNet whose weights are random, and the model."""
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=5
    )
    model = transformers.ResNetForImageClassification(config).eval()
    model.save_pretrained(tmp_path / "resnet")
    return tmp_path / "resnet", model


def test_the_weights_are_those_saved(saved: tuple[Path, Any]) -> None:
    folder, model = saved
    found = image_classifier(str(folder))
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert not found.training
    assert torch.equal(found(x).logits, model(x).logits)
    other = image_classifier(str(folder), num_classes=3, pretrained=False)
    assert other(x).logits.shape == (2, 3)


def test_half_precision_is_widened(saved: tuple[Path, Any], tmp_path: Path) -> None:
    saved[1].half().save_pretrained(tmp_path / "half")
    assert {each.dtype for each in image_classifier(str(tmp_path / "half")).parameters()} == {torch.float32}


@pytest.mark.parametrize("engine", ["hooks", "compiled"])
def test_it_is_scored_as_its_logits_alone_are(saved: tuple[Path, Any], engine: EngineOption) -> None:
    class Logits(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.model(x).logits

    model = image_classifier(str(saved[0]))
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for method in (GaiaA, GaiaZ):
        detector = method(model, engine=engine)
        if engine == "compiled":
            detector.prepare(x, tune="model")
        expected = method(Logits(model).eval(), engine="reference")(x)
        assert torch.allclose(detector(x), expected, rtol=1e-5)


def test_nothing_is_unpickled(saved: tuple[Path, Any]) -> None:
    folder, model = saved
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        image_classifier(str(folder))


def test_a_backbone_without_a_head_is_refused(saved: tuple[Path, Any], tmp_path: Path) -> None:
    """transformers makes a random head then, and warns in its log."""
    saved[1].resnet.save_pretrained(tmp_path / "backbone")
    with pytest.raises(
        ModelError, match=r"no weights that fit classifier\.1\.bias, classifier\.1\.weight; take a model"
    ):
        image_classifier(str(tmp_path / "backbone"))


def test_code_that_comes_with_a_model_is_not_run(saved: tuple[Path, Any]) -> None:
    folder, _ = saved
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForImageClassification": "own.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    for pretrained in (True, False):
        with pytest.raises(ValueError, match="trust_remote_code"):
            image_classifier(str(folder), pretrained=pretrained)
    assert not (folder / "ran").exists()


def test_preprocessing(saved: tuple[Path, Any]) -> None:
    folder, _ = saved
    with pytest.raises(ArgumentError, match="no preprocessor_config.json that can be read"):
        preprocessing(str(folder))
    (folder / "preprocessor_config.json").write_text('{"size": 3}')
    assert preprocessing(str(folder))["size"] == 3
    (folder / "preprocessor_config.json").write_text("{")
    with pytest.raises(ArgumentError, match="no preprocessor_config.json that can be read"):
        preprocessing(str(folder))
