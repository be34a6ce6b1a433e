"""How the command line has images prepared, and models of other libraries."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import Result
from torch import nn

from gaia_fast import GaiaZ
from gaia_fast.cli.loading import Loaded
from gaia_fast.cli.options import PresetOptions
from gaia_fast.data import PRESETS, Preset, load_images
from gaia_fast.errors import ArgumentError

import torchvision_schemas  # noqa: F401  (before torchvision)

OWN = Preset("model", (0.1, 0.2, 0.3), (1.0, 1.0, 1.0), resize=40, crop=32)
HALF = (0.5, 0.5, 0.5)


def loaded(preset: Preset | None = None) -> Loaded:
    return Loaded(nn.Identity(), None if preset is None else lambda: preset, "the model's own configuration")


def told(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def test_what_is_asked_for_comes_first_and_the_models_own_before_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert PresetOptions("imagenet", {}).of(loaded(OWN)) == PRESETS["imagenet"]
    assert told(capsys) == ""
    assert PresetOptions(None, {}).of(loaded(OWN)) == OWN
    assert "as the model's own configuration says: resize 40 (bilinear); crop 32; mean 0.1, 0.2, 0.3" in told(capsys)
    assert PresetOptions("model", {}).of(loaded(OWN)) == OWN
    assert PresetOptions(None, {}).of(loaded(), scored=False) == PRESETS["none"]
    assert told(capsys) == ""
    assert PresetOptions(None, {}).of(loaded()) == PRESETS["none"]
    assert "no --preset: images go in as they are" in told(capsys)


def test_a_configuration_that_is_not_known_matters_where_it_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    def unknown() -> Preset:
        raise ArgumentError("a crop by mode 'border' is not known")

    odd = Loaded(nn.Identity(), unknown, "the model's own configuration")
    assert PresetOptions("imagenet", {}).of(odd) == PRESETS["imagenet"]
    assert told(capsys) == ""
    assert PresetOptions(None, {}).of(odd) == PRESETS["none"]
    lines = told(capsys)
    assert "the model's configuration is of no use here: a crop by mode 'border' is not known" in lines
    assert "images go in as they are" in lines
    with pytest.raises(click.UsageError, match="mode 'border' is not known"):
        PresetOptions("model", {}).of(odd)


def test_changes_of_a_preset() -> None:
    changed = PresetOptions("imagenet", {"resize": (300, 300), "mean": HALF}).of(loaded())
    assert (changed.resize, changed.crop, changed.mean, changed.std) == (
        (300, 300),
        224,
        HALF,
        PRESETS["imagenet"].std,
    )


def test_what_is_told_is_what_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    assert PresetOptions(None, {"crop": 16}).of(loaded(OWN)).crop == 16
    assert "crop 16" in told(capsys)
    PresetOptions(None, {"crop": 16}).of(loaded())
    assert "images go in as they are" in told(capsys)
    PresetOptions(None, {"mean": HALF, "std": HALF}).of(loaded())
    assert told(capsys) == ""
    with pytest.raises(click.UsageError, match="--interpolation is of resizing"):
        PresetOptions("cifar10", {"interpolation": "nearest"}).of(loaded())


def scores(found: Result) -> list[float]:
    assert found.exit_code == 0, found.output
    return [float(line.split(",")[2]) for line in found.stdout.splitlines()[1:]]


def test_a_preset_written_out_is_the_preset(run: Callable[..., Result], digits_npz: Path) -> None:
    arch = ("--arch", "digits_resnet", "--engine", "hooks")
    named = scores(run("score", digits_npz, *arch, "--preset", "digits"))
    options = ("--resize", "32x32", "--mean", "0.5,0.5,0.5", "--std", "0.5,.5,5e-1", "--interpolation", "bilinear")
    assert scores(run("score", digits_npz, *arch, *options)) == named
    assert scores(run("score", digits_npz, *arch, "--preset", "digits", "--interpolation", "nearest")) != named


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--mean", "0.5,0.5"), "is not three numbers"),
        (("--std", "a,b,c"), "is not three numbers"),
        (("--resize", "0"), "is not H or HxW"),
        (("--crop", "3x"), "is not H or HxW"),
        (("--interpolation", "cubic"), "cubic"),
        (("--preset", "model"), "does not say how images are prepared"),
        (("--arch", "resnet101"), "timm:NAME or torchvision:NAME"),
        (("--arch", "keras:resnet"), "timm:NAME or torchvision:NAME, or hf:PATH_OR_NAME"),
        (("--arch", "hf:"), "hf:PATH_OR_NAME"),
    ],
)
def test_wrong_usage(run: Callable[..., Result], digits_npz: Path, options: tuple[str, ...], message: str) -> None:
    found = run("score", digits_npz, "--arch", "digits_resnet", *options)
    assert found.exit_code == 2
    assert message in " ".join(found.stderr.split())


def test_std_of_zero_is_refused(run: Callable[..., Result], digits_npz: Path) -> None:
    found = run("score", digits_npz, "--arch", "digits_resnet", "--preset", "digits", "--std", "1,0,1")
    assert found.exit_code == 1
    assert "those of std positive" in " ".join(found.stderr.split())


@pytest.mark.parametrize("arch", ["torchvision:mobilenet_v2", "timm:mobilenetv2_050"])
def test_a_network_of_a_librarys(run: Callable[..., Result], arch: str, tmp_path: Path) -> None:
    """With weights of one's own, and images as the library's configuration says."""
    library, _, name = arch.partition(":")
    module: Any = pytest.importorskip(library, reason=f"{library} is not installed")
    torch.manual_seed(0)
    model = module.models.get_model(name) if library == "torchvision" else module.create_model(name)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).integers(0, 256, (2, 240, 300, 3), dtype=np.uint8))
    found = run("score", tmp_path / "x.npz", "--arch", arch, "--weights", tmp_path / "weights.pt", "--engine", "hooks")
    source = {"torchvision": "torchvision's configuration for its weights IMAGENET1K_V2", "timm": "the model's own"}
    assert f"prepared as {source[library]}" in " ".join(found.stderr.split())
    assert "right only if --weights were trained so" in " ".join(found.stderr.split())
    side = {"torchvision": 232, "timm": 256}[library]
    interpolation = {"torchvision": "bilinear", "timm": "bicubic"}[library]
    imagenet = PRESETS["imagenet"]
    preset = Preset("own", imagenet.mean, imagenet.std, side, 224, interpolation)
    (batch,) = load_images(tmp_path / "x.npz", preset).batches(2)
    expected = GaiaZ(model.eval(), engine="hooks")(batch.images)
    assert torch.allclose(torch.tensor(scores(found)), expected, rtol=1e-5)


@pytest.fixture
def hugging_face(tmp_path: Path) -> tuple[Path, Any]:
    """A folder of an image classifier of transformers, with its image processor, and the model."""
    transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=5
    )
    model = transformers.ResNetForImageClassification(config).eval()
    model.save_pretrained(tmp_path / "resnet")
    processor = {
        "image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 28}, "resample": 3,
        "image_mean": HALF, "image_std": [0.25, 0.25, 0.25],
    }  # fmt: skip
    (tmp_path / "resnet" / "preprocessor_config.json").write_text(json.dumps(processor))
    return tmp_path / "resnet", model


def test_a_network_of_hugging_faces(run: Callable[..., Result], hugging_face: tuple[Path, Any], tmp_path: Path) -> None:
    folder, model = hugging_face
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), dtype=np.uint8))
    found = run("score", tmp_path / "x.npz", "--arch", f"hf:{folder}", "--engine", "hooks")
    assert f"as the image processor's configuration of {folder} says: resize 32 (bicubic); crop 28" in " ".join(
        found.stderr.split()
    )
    preset = Preset("own", HALF, (0.25, 0.25, 0.25), 32, 28, "bicubic")
    (batch,) = load_images(tmp_path / "x.npz", preset).batches(2)
    assert torch.allclose(torch.tensor(scores(found)), GaiaZ(model, engine="hooks")(batch.images), rtol=1e-5)
    plan = run("layers", "--arch", f"hf:{folder}", "--num-classes", "3", "--method", "gaia-a")
    assert plan.exit_code == 0
    assert "classifier.1: Phi is its input" in plan.stdout


def test_what_hugging_face_has_not(
    run: Callable[..., Result], hugging_face: tuple[Path, Any], digits_npz: Path
) -> None:
    folder, _ = hugging_face
    found = run("score", digits_npz, "--arch", f"hf:{folder}", "--num-classes", "3")
    assert found.exit_code == 2
    assert "has weights for 5 classes; --num-classes 3 needs --weights" in " ".join(found.stderr.split())
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "LevitImageProcessor"}')
    found = run("score", digits_npz, "--arch", f"hf:{folder}", "--preset", "model")
    assert found.exit_code == 2
    assert "the image processor LevitImageProcessor is not known" in " ".join(found.stderr.split())
    (folder / "model.safetensors").unlink()
    found = run("score", digits_npz, "--arch", f"hf:{folder}")
    assert found.exit_code == 1
    assert "hf cannot make it: " in found.stderr
    assert "safetensors" in found.stderr


def test_without_transformers(run: Callable[..., Result], digits_npz: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    found = run("score", digits_npz, "--arch", "hf:some/model")
    assert found.exit_code == 1
    assert "--arch hf:some/model needs transformers" in found.stderr
    assert "pip install 'gaia-fast[hf]'" in found.stderr


def test_a_head_that_a_library_has_no_weights_for(
    run: Callable[..., Result], digits_npz: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """timm makes a random one then, and says nothing."""
    timm: Any = pytest.importorskip("timm", reason="timm is not installed")
    make = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **options: make(name, **options))
    found = run("score", digits_npz, "--arch", "timm:mobilenetv2_050", "--num-classes", "10")
    assert found.exit_code == 2
    assert "has weights for 1000 classes; --num-classes 10 needs --weights" in " ".join(found.stderr.split())


def test_a_network_that_a_library_does_not_have(run: Callable[..., Result], digits_npz: Path) -> None:
    for library in ("torchvision", "timm"):
        pytest.importorskip(library, reason=f"{library} is not installed")
        found = run("score", digits_npz, "--arch", f"{library}:resnet1")
        assert found.exit_code == 1
        assert f"{library} cannot make it" in " ".join(found.stderr.split())


def test_the_stem_of_small_images_is_told_where_a_thousand_classes_are_asked_for(run: Callable[..., Result]) -> None:
    found = run("layers", "--arch", "resnet34", "--num-classes", "1000", "--size", "32", "--backend", "torch")
    assert found.exit_code == 0
    assert "--arch torchvision:resnet34" in " ".join(found.stderr.split())
    found = run("layers", "--arch", "resnet34", "--size", "32", "--backend", "torch")
    assert "torchvision" not in found.stderr
