"""The model that the command line was asked for."""

import importlib
import inspect
import os
import sys
from pathlib import Path

import click
import torch
from torch import nn

from gaia_fast.cli.output import note
from gaia_fast.errors import ArgumentError, ModelError
from gaia_fast.models import ARCHITECTURES, digits_resnet, load_weights


def load_model(
    arch: str | None, spec: str | None, num_classes: int | None, weights: Path | None, device: str, trained: bool
) -> nn.Module:
    """The model in eval mode on its device.

    Args:
        arch: a built-in network, or None.
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
    if arch is not None:
        model = _built_in(arch, num_classes, weights is None, trained)
    else:
        model = _from_callable(str(spec), num_classes)
        if weights is None and trained:
            note(f"no --weights: the model is scored with those that {spec} gave it")
    if weights is not None:
        load_weights(model, weights)
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
    return ARCHITECTURES[arch](**classes)


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
