"""Presets from the configuration of a Hugging Face image processor (preprocessor_config.json)."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from gaia_fast.data.presets import Preset, Size
from gaia_fast.errors import ArgumentError


@dataclass(frozen=True)
class _Processor:
    """What a kind of processor does where its configuration does not say.

    Attributes:
        crops: whether it cuts the centre out.
        keeps_ratio: whether a size of one number is the shorter side's, rather than a square's.
    """

    crops: bool
    keeps_ratio: bool


# Others (LeViT's, PoolFormer's, MobileViT's) compute with numbers that their configuration does not hold.
_PROCESSORS = {
    "ViT": _Processor(crops=False, keeps_ratio=False),
    "DeiT": _Processor(crops=True, keeps_ratio=False),
    "EfficientNet": _Processor(crops=False, keeps_ratio=False),
    "Bit": _Processor(crops=True, keeps_ratio=True),
    "CLIP": _Processor(crops=True, keeps_ratio=True),
    "MobileNetV1": _Processor(crops=True, keeps_ratio=True),
    "MobileNetV2": _Processor(crops=True, keeps_ratio=True),
    "ConvNext": _Processor(crops=False, keeps_ratio=True),  # ResNet's and RegNet's, too
}
_SUFFIXES = ("Fast", "Pil", "ImageProcessor", "FeatureExtractor")

# By Pillow's numbers; box and Hamming filters have no name here.
_RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}

_UNKNOWN_STEPS = ("do_pad", "do_flip_channel_order", "do_thumbnail", "rescale_offset", "include_top")

_CONVNEXT_SHARE = 224 / 256
_CONVNEXT_STRETCHES = 384  # from this size on


def from_hugging_face(config: Mapping[str, Any]) -> Preset:
    """Returns how images are prepared by a Hugging Face image processor.

    Where the centre is cut out of an odd number of pixels more, it may lie a pixel beside that processor's own, whose
    versions differ in it; a picture smaller than the crop is unreadable, where the processor pads it.

    Args:
        config: its configuration, as preprocessor_config.json holds it, of any version.

    Raises:
        ArgumentError: it does what no `Preset` can, or does not say what it does.

    Example:
        >>> config = {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}, "resample": 3}
        >>> config |= {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
        >>> preset = from_hugging_face(config)
        >>> preset.resize, preset.crop, preset.interpolation
        (256, 224, 'bicubic')
    """
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    name = kind
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    if name not in _PROCESSORS:
        raise _refused(
            f"the image processor {kind or 'without a name'} is not known; known are {', '.join(_PROCESSORS)}"
        )
    for step in _UNKNOWN_STEPS:
        if config.get(step):
            raise _refused(f"{kind} has {step}={config[step]!r}, which is not known")
    processor = _PROCESSORS[name]
    resize = _size("size", config.get("size"), processor.keeps_ratio) if _does(config, "do_resize", True) else None
    crop = _crop(config) if _does(config, "do_center_crop", processor.crops) else None
    if name == "ConvNext" and resize is not None:
        if crop is not None or not isinstance(resize, int):
            raise _refused(f"{kind} has the size {config.get('size')!r} and a crop of its own, which is not known")
        resize, crop = _convnext(resize, config.get("crop_pct"))
    mean, std = _normalisation(config)
    interpolation = "bilinear"
    if resize is not None:
        number = config.get("resample")
        if number not in _RESAMPLING:
            raise _refused(f"{kind} resizes with resample={number!r}, which is not known; known are {_RESAMPLING}")
        interpolation = _RESAMPLING[number]
    return Preset("model", mean, std, resize, crop, interpolation)


def _does(config: Mapping[str, Any], step: str, otherwise: bool) -> bool:
    value = config.get(step)
    return otherwise if value is None else bool(value)


def _size(which: str, value: Any, keeps_ratio: bool) -> Size:
    """The size that `{"shortest_edge": S}`, `{"height": H, "width": W}`, or a number or pair of old versions say."""
    if isinstance(value, Mapping):
        given = {key: side for key, side in value.items() if side is not None}
        if given.keys() == {"shortest_edge"}:
            value, keeps_ratio = given["shortest_edge"], True
        elif given.keys() == {"height", "width"}:
            value = given["height"], given["width"]
    sides = tuple(value) if isinstance(value, (list, tuple)) and len(value) == 2 else (value,)
    if not all(isinstance(side, int) and not isinstance(side, bool) for side in sides):
        raise _refused(f"{which}={value!r} is not known; known are shortest_edge, and height with width")
    if len(sides) == 2:
        return sides
    return sides[0] if keeps_ratio else (sides[0], sides[0])


def _crop(config: Mapping[str, Any]) -> Size:
    value = config.get("crop_size")
    if isinstance(value, Mapping) and "shortest_edge" in value:
        raise _refused(f"crop_size={value!r} is not known; known are height with width")
    return _size("crop_size", value, False)


def _convnext(size: int, share: Any) -> tuple[Size, Size | None]:
    """What ConvNeXt's processor makes of its size: the crop, out of a picture that is larger by the share."""
    if size >= _CONVNEXT_STRETCHES:
        return (size, size), None
    share = _CONVNEXT_SHARE if share is None else share
    if not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise _refused(f"crop_pct={share!r} is no share of the picture")
    return int(size / share), size


def _normalisation(config: Mapping[str, Any]) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and std of pixels in [0, 1], such that (x / 255 - mean) / std is what rescaling and normalising give."""
    factor = config.get("rescale_factor")
    factor = 1 / 255 if factor is None else factor
    factor = factor if _does(config, "do_rescale", True) else 1
    if not isinstance(factor, (int, float)) or not isfinite(factor) or factor <= 0:
        raise _refused(f"rescale_factor={factor!r} is no positive number")
    # Written 0.00392156862745098 or 1/255, it is what `Preset` divides by.
    scale = 1.0 if abs(255 * factor - 1) < 1e-9 else 255 * factor
    normalises = _does(config, "do_normalize", True)
    mean = _three("image_mean", config.get("image_mean")) if normalises else (0.0, 0.0, 0.0)
    std = _three("image_std", config.get("image_std")) if normalises else (1.0, 1.0, 1.0)
    return (mean[0] / scale, mean[1] / scale, mean[2] / scale), (std[0] / scale, std[1] / scale, std[2] / scale)


def _three(which: str, value: Any) -> tuple[float, float, float]:
    values = [value] * 3 if isinstance(value, (int, float)) else value
    if (
        not isinstance(values, (list, tuple))
        or len(values) != 3
        or not all(isinstance(v, (int, float)) for v in values)
    ):
        raise _refused(f"{which}={value!r} are not three numbers, one for each channel of RGB")
    return float(values[0]), float(values[1]), float(values[2])


def _refused(what: str) -> ArgumentError:
    return ArgumentError(f"{what}. Write out how images are prepared: a preset, or resize, crop, mean and std")
