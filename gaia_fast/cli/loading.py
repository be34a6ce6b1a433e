"""The model that the command line was asked for."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from torch import nn

from gaia_fast import extras
from gaia_fast.cli.output import note
from gaia_fast.data.hugging_face import from_hugging_face
from gaia_fast.data.presets import Preset, from_timm, from_torchvision
from gaia_fast.errors import ArgumentError, GaiaError, ModelError, first_line
from gaia_fast.models import ARCHITECTURES, digits_resnet, hugging_face, load_weights

_FOR_SMALL_IMAGES = ("resnet18", "resnet34", "wrn_40_2")
_IMAGENET_CLASSES = 1000
# What is imported, by the name before the colon, which is that of the extra too.
LIBRARIES = {"timm": "timm", "torchvision": "torchvision.models", "hf": "transformers"}


class Loaded(NamedTuple):
    """A model in eval mode on its device.

    Attributes:
        model: the model.
        preset: makes the preset that its own configuration, or its library, has for it; None where there is none.
        source: whose that is.
    """

    model: nn.Module
    preset: Callable[[], Preset] | None = None
    source: str = ""


def load_model(
    arch: str | None, spec: str | None, num_classes: int | None, weights: Path | None, device: str, trained: bool
) -> Loaded:
    """The model that was asked for.

    Args:
        arch: a built-in network, "timm:NAME", "torchvision:NAME", "hf:PATH_OR_NAME", or None.
        spec: "package.module:callable", or None; exactly one of the two must be given.
        num_classes: passed on where given.
        weights: a file for `load_weights`.
        device: where the model goes.
        trained: whether a built-in network without weights is refused, because its scores would mean nothing.

    Raises:
        click.UsageError: options that do not go together.
        GaiaError: the model cannot be made, loaded or moved.
    """
    if (arch is None) == (spec is None):
        raise click.UsageError("give exactly one of --arch and --model")
    preset, source = None, ""
    if arch is not None and ":" in arch:
        model, preset, source = _from_library(arch, num_classes, weights is None and trained)
        if weights is None and not trained:
            note(f"no --weights: {arch} is made untrained, with weights that are random")
    elif arch is not None:
        model = _built_in(arch, num_classes, weights is None, trained)
    else:
        model = _from_callable(str(spec), num_classes)
        if weights is None and trained:
            note(f"no --weights: the model is scored with those that {spec} gave it")
    if weights is not None:
        load_weights(model, weights)
    model = on_device(model, device)
    config = getattr(model, "pretrained_cfg", None)  # of timm's models
    if preset is None and isinstance(config, Mapping):
        preset, source = partial(from_timm, config), "the model's own configuration"
    if source and weights is not None:
        source += ", which is right only if --weights were trained so,"
    return Loaded(model, preset, source)


def on_device(model: nn.Module, device: str) -> nn.Module:
    """The model in eval mode on a device.

    Raises:
        ArgumentError: there is no such device.
    """
    try:
        return model.to(torch.device(device)).eval()
    # torch says with either that it was built without a device, or finds none.
    except (RuntimeError, AssertionError) as error:
        raise ArgumentError(f"--device {device} cannot be used here: {error}") from error


def _built_in(arch: str, num_classes: int | None, without_weights: bool, trained: bool) -> nn.Module:
    classes = {} if num_classes is None else {"num_classes": num_classes}
    if arch == "digits_resnet" and without_weights:
        return digits_resnet(**classes, pretrained=True)
    if without_weights and trained:
        raise click.UsageError(f"--arch {arch} needs --weights: scores of an untrained network mean nothing")
    if arch in _FOR_SMALL_IMAGES and (num_classes or 0) >= _IMAGENET_CLASSES:
        note(
            f"--arch {arch} is the network for 32x32 images: its first convolution has no stride. ImageNet's is "
            "another one, such as --arch torchvision:resnet34"
        )
    return ARCHITECTURES[arch](**classes)


def _from_library(arch: str, num_classes: int | None, pretrained: bool) -> Loaded:
    """A network of a library's, with the library's weights where `pretrained`."""
    library, _, name = arch.partition(":")
    module = extras.load(LIBRARIES[library], library, f"--arch {arch}", ArgumentError)
    make = {"timm": _from_timm, "torchvision": _from_torchvision, "hf": _from_hugging_face}[library]
    try:
        loaded, own_classes = make(module, name, num_classes, pretrained)
    except GaiaError as error:
        raise ModelError(f"--arch {arch}: {error}") from error
    except Exception as error:
        raise ModelError(f"--arch {arch}: {library} cannot make it: {first_line(error)}") from error
    # timm would have made a head with random weights, transformers one of other classes than were asked for.
    if pretrained and num_classes is not None and own_classes not in (None, num_classes):
        raise click.UsageError(
            f"--arch {arch} has weights for {own_classes} classes; --num-classes {num_classes} needs --weights"
        )
    return loaded


def _from_timm(timm: Any, name: str, num_classes: int | None, pretrained: bool) -> tuple[Loaded, int | None]:
    classes = {} if num_classes is None else {"num_classes": num_classes}
    model = timm.create_model(name, pretrained=pretrained, **classes)
    return Loaded(model), getattr(model, "pretrained_cfg", {}).get("num_classes")


def _from_torchvision(models: Any, name: str, num_classes: int | None, pretrained: bool) -> tuple[Loaded, int | None]:
    classes = {} if num_classes is None else {"num_classes": num_classes}
    default = models.get_model_weights(name).DEFAULT
    model = models.get_model(name, weights=default if pretrained else None, **classes)
    source = f"torchvision's configuration for its weights {default.name}"
    return Loaded(model, lambda: from_torchvision(default.transforms()), source), None


def _from_hugging_face(module: Any, name: str, num_classes: int | None, pretrained: bool) -> tuple[Loaded, int | None]:
    model: Any = hugging_face.image_classifier(name, num_classes, pretrained)
    source = f"the image processor's configuration of {name}"
    return Loaded(model, lambda: from_hugging_face(hugging_face.preprocessing(name)), source), model.config.num_labels


def _from_callable(spec: str, num_classes: int | None) -> nn.Module:
    module_name, _, attribute = spec.partition(":")
    if not module_name or not attribute:
        raise click.UsageError(f"--model {spec}: write package.module:callable")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        factory = importlib.import_module(module_name)
        for name in attribute.split("."):
            factory = getattr(factory, name)
        if isinstance(factory, nn.Module):
            return factory
        if num_classes is None:
            model = factory()  # type: ignore[operator]
        else:
            if not _accepts_num_classes(factory):
                raise click.UsageError(f"--model {spec} takes no num_classes; leave --num-classes out")
            model = factory(num_classes=num_classes)  # type: ignore[operator]
    except click.UsageError:
        raise
    # Whatever the user's own code raises; the chain keeps the traceback for those who call this from Python.
    except Exception as error:
        raise ModelError(f"--model {spec} failed: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"--model {spec} returned a {type(model).__name__}; it must return a torch.nn.Module")
    return model


def _accepts_num_classes(factory: object) -> bool:
    parameters = inspect.signature(factory).parameters  # type: ignore[arg-type]
    return "num_classes" in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())
