from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gaia_fast.data.hugging_face import from_hugging_face
from gaia_fast.data.presets import Preset
from gaia_fast.errors import ArgumentError

import torchvision_schemas  # noqa: F401  (before transformers, which imports torchvision)

MEAN, STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
NUMBERS = {"image_mean": MEAN, "image_std": STD, "resample": 2}


def config(kind: str, **more: Any) -> dict[str, Any]:
    return {"image_processor_type": f"{kind}ImageProcessor", **NUMBERS, **more}


def preset(resize: Any, crop: Any, interpolation: str = "bilinear") -> Preset:
    return Preset("model", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), resize, crop, interpolation)


SQUARE = {"height": 8, "width": 8}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (config("ConvNext", size={"shortest_edge": 224}, crop_pct=0.875), preset(256, 224)),
        (config("ConvNext", size={"shortest_edge": 224}, crop_pct=None), preset(256, 224)),
        (config("ConvNext", size={"shortest_edge": 224}, crop_pct=0.95), preset(235, 224)),
        (config("ConvNext", size={"shortest_edge": 384}, crop_pct=0.875), preset((384, 384), None)),
        (config("ConvNext", size={"shortest_edge": 8}, do_resize=False), preset(None, None)),
        ({"feature_extractor_type": "ConvNextFeatureExtractor", **NUMBERS, "size": 224}, preset(256, 224)),
        (config("ViT", size={"height": 8, "width": 9}), preset((8, 9), None)),
        (config("ViT", size={"shortest_edge": 8, "longest_edge": None}), preset(8, None)),
        ({"feature_extractor_type": "ViTFeatureExtractor", **NUMBERS, "size": 8}, preset((8, 8), None)),
        ({**config("ViT", size=SQUARE), "image_processor_type": "ViTImageProcessorFast"}, preset((8, 8), None)),
        (config("Bit", size={"shortest_edge": 9}, crop_size={"height": 8, "width": 7}), preset(9, (8, 7))),
        (config("MobileNetV2", size={"shortest_edge": 9}, crop_size=8), preset(9, (8, 8))),
        (config("Bit", size=9, crop_size=SQUARE, do_center_crop=False), preset(9, None)),
        (config("DeiT", size=[9, 9], crop_size=SQUARE, resample=3), preset((9, 9), (8, 8), "bicubic")),
        (config("EfficientNet", size=SQUARE, resample=0, do_center_crop=None), preset((8, 8), None, "nearest")),
    ],
)  # fmt: skip
def test_what_a_configuration_says(given: dict[str, Any], expected: Preset) -> None:
    assert from_hugging_face(given) == expected


def test_numbers() -> None:
    x = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    pixels = torch.from_numpy(x).double().permute(2, 0, 1)
    mean, std = (torch.tensor(each, dtype=torch.float64)[:, None, None] for each in (MEAN, STD))
    for more, expected in (
        ({}, (pixels / 255 - mean) / std),
        ({"rescale_factor": 0.00392156862745098}, (pixels / 255 - mean) / std),
        ({"rescale_factor": 1 / 127.5}, (pixels / 127.5 - mean) / std),
        ({"do_rescale": False}, (pixels - mean) / std),
        ({"do_rescale": False, "rescale_factor": 1 / 255}, (pixels - mean) / std),
        ({"do_normalize": False}, pixels / 255),
        ({"do_normalize": False, "rescale_factor": 0.5}, pixels / 2),
        ({"image_mean": 0.1, "image_std": 0.4}, (pixels / 255 - 0.1) / 0.4),
    ):
        found = from_hugging_face(config("ViT", do_resize=False, **more))
        assert torch.allclose(found(x).double(), expected, rtol=1e-5, atol=1e-6), more
    assert from_hugging_face(config("ViT", do_resize=False)).mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({**NUMBERS, "size": 8}, "without a name is not known"),
        (config("Levit", size={"shortest_edge": 8}), "LevitImageProcessor is not known"),
        (config("ViT", size={"longest_edge": 8}), "size="),
        (config("ViT", size={"height": 8}), "size="),
        (config("ViT", size={"height": 8.5, "width": True}), "size="),
        (config("ViT"), "size=None"),
        (config("Bit", size=8), "crop_size=None"),
        (config("Bit", size=8, crop_size={"shortest_edge": 8}), "crop_size="),
        (config("ViT", size=SQUARE, resample=4), "resample=4"),
        (config("ViT", size=SQUARE, resample=None), "resample=None"),
        (config("ViT", size=SQUARE, do_pad=True), "do_pad=True"),
        (config("EfficientNet", size=SQUARE, rescale_offset=True), "rescale_offset=True"),
        (config("EfficientNet", size=SQUARE, include_top=True), "include_top=True"),
        (config("ConvNext", size=SQUARE), "a crop of its own"),
        (config("ConvNext", size=8, crop_size=SQUARE, do_center_crop=True), "a crop of its own"),
        (config("ConvNext", size=8, crop_pct=0), "crop_pct=0"),
        (config("ViT", size=SQUARE, image_mean=[0.5]), "image_mean="),
        (config("ViT", size=SQUARE, image_std=None), "image_std=None"),
        (config("ViT", size=SQUARE, image_std=[1, 0, 1]), "std"),
        (config("ViT", size=SQUARE, rescale_factor=0), "rescale_factor=0"),
        (config("ViT", size=SQUARE, rescale_factor="1/255"), "rescale_factor="),
    ],
)
def test_what_no_preset_can_do_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        from_hugging_face(wrong)


@pytest.mark.parametrize("size", [(300, 400), (401, 283)])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("ConvNext", {"size": {"shortest_edge": 224}}),
        ("ConvNext", {"size": {"shortest_edge": 384}, "crop_pct": 1.0}),
        ("ViT", {"size": {"height": 200, "width": 160}, "resample": 0, "rescale_factor": 1 / 127.5}),
        ("Bit", {"size": {"shortest_edge": 250}, "crop_size": {"height": 224, "width": 200}}),
        ("MobileNetV2", {}),
        ("DeiT", {}),
    ],
)
def test_a_picture_is_given_what_transformers_gives_it(
    kind: str, options: dict[str, Any], size: tuple[int, int]
) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    named = f"{kind}ImageProcessorPil" if hasattr(transformers, f"{kind}ImageProcessorPil") else f"{kind}ImageProcessor"
    processor = getattr(transformers, named)(**options)
    smooth = np.add.outer(np.arange(size[0]), np.arange(size[1]))[..., None] * np.array([0.3, 0.2, 0.1])
    picture = Image.fromarray(smooth.astype(np.uint8))
    theirs = torch.as_tensor(np.asarray(processor(picture)["pixel_values"][0]))
    ours = from_hugging_face(processor.to_dict())(picture)
    assert ours.shape == theirs.shape
    # A pixel beside, where the rest of the picture is odd: the smooth picture changes by less than one level there.
    assert float((ours - theirs).abs().max()) < 1.01 / 255 / 0.2
