"""Options that commands share. Each decorator adds its options and hands the command one value that holds them."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from click.core import ParameterSource
from torch import nn

from gaia_fast.backends import BACKENDS
from gaia_fast.cli.loading import load_model
from gaia_fast.cli.output import note
from gaia_fast.data import MAX_PIXELS, PRESETS
from gaia_fast.evaluation.image_sets import METHODS, Detector, make_detector
from gaia_fast.models import ARCHITECTURES
from gaia_fast.options import AUTO, EngineName, Fusion, Runtime, Statistic

Command = Callable[..., Any]


def _new_file(ctx: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    """Refuses, before any work is done, a file that cannot be written at its end."""
    if path is not None and not path.absolute().parent.is_dir():
        raise click.BadParameter(f"the folder {path.parent} does not exist")
    return path


def _device(ctx: click.Context, parameter: click.Parameter, name: str) -> str:
    try:
        torch.device(name)
    except RuntimeError as error:
        raise click.BadParameter(str(error).splitlines()[0]) from error
    return name


FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)

json_option = click.option(
    "--json", "json_file", type=FILE, callback=_new_file, metavar="FILE", help="Also write all results as JSON."
)
batch_size_option = click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Images that go through the network together.",
)

preset_option = click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    default="none",
    show_default=True,
    help="How images are resized, cropped and normalised: as in the model's training. none: pixels in [0, 1].",
)

max_pixels_option = click.option(
    "--max-pixels",
    type=click.IntRange(1),
    default=MAX_PIXELS,
    show_default=True,
    help="An image of more pixels is unreadable: decoding it could take all memory.",
)


def output_option(**settings: Any) -> Callable[[Command], Command]:
    """--out FILE."""
    return click.option("--out", type=FILE, callback=_new_file, metavar="FILE", **settings)


@dataclass(frozen=True)
class ModelOptions:
    """--arch, --model and what goes with them."""

    arch: str | None
    spec: str | None
    num_classes: int | None
    weights: Path | None
    device: str

    def load(self, *, trained: bool = True) -> nn.Module:
        """The model; see `load_model`."""
        model = load_model(self.arch, self.spec, self.num_classes, self.weights, self.device, trained)
        # Scores of images that were not prepared as in training look like any others.
        if trained and click.get_current_context().get_parameter_source("preset") is ParameterSource.DEFAULT:
            note("no --preset: images go in as they are, pixels in [0, 1]; right only if the model was trained so")
        return model


@dataclass(frozen=True)
class DetectorOptions:
    """Which methods, and how each of them works."""

    methods: tuple[str, ...]
    layers: dict[str, list[str] | None]
    engine: str
    backend: str
    runtime: str
    gaia_a: dict[str, Any]

    def build(self, model: nn.Module) -> dict[str, Detector]:
        """One detector per method."""
        own = {method: self.gaia_a if method == "gaia-a" else {} for method in self.methods}
        return {
            method: make_detector(
                method,
                model,
                layers=self.layers[method],
                engine=self.engine,
                backend=self.backend,
                runtime=self.runtime,
                **own[method],
            )
            for method in self.methods
        }


def model_options(command: Command) -> Command:
    """Adds the options that choose the model; the command gets them as `model`, a ModelOptions."""

    @click.option("--arch", type=click.Choice(list(ARCHITECTURES)), help="A built-in network.")
    @click.option(
        "--model",
        "spec",
        metavar="MODULE:CALLABLE",
        help="Any other: package.module:callable, imported with the current folder on the path and called without "
        "arguments (or with num_classes, if given); must return a torch.nn.Module.",
    )
    @click.option(
        "--num-classes",
        type=click.IntRange(1),
        help="Number of classes of the network; a built-in one has its own default, 10 or 1000.",
    )
    @click.option(
        "--weights", type=FILE, help="Weights for either: .safetensors, .pt, .pth, .ckpt, .tar, or a BiT .npz."
    )
    @click.option("--device", default="cpu", show_default=True, callback=_device, help="Such as cpu, cuda or cuda:1.")
    @functools.wraps(command)
    def wrapped(
        *args: Any,
        arch: str | None,
        spec: str | None,
        num_classes: int | None,
        weights: Path | None,
        device: str,
        **kwargs: Any,
    ) -> Any:
        return command(*args, model=ModelOptions(arch, spec, num_classes, weights, device), **kwargs)

    return wrapped


def detector_options(
    *, default: Sequence[str] = METHODS, single: bool = False, engines: bool = True
) -> Callable[[Command], Command]:
    """Adds the options of the methods; the command gets them as `detectors`, a DetectorOptions.

    Args:
        default: the methods used unless asked otherwise.
        single: one method only.
        engines: whether the engine and backend can be chosen.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def wrapped(
            *args: Any,
            method: str | tuple[str, ...],
            layers: tuple[str, ...],
            fusion: str | None,
            statistic: str | None,
            head: str | None,
            engine: str = "auto",
            backend: str = "auto",
            runtime: str = "auto",
            **kwargs: Any,
        ) -> Any:
            methods = (method,) if isinstance(method, str) else tuple(dict.fromkeys(method))
            chosen = {"fusion": fusion, "statistic": statistic, "head": head}
            gaia_a = {name: value for name, value in chosen.items() if value is not None}
            if gaia_a and "gaia-a" not in methods:
                raise click.UsageError(f"--{next(iter(gaia_a))} belongs to gaia-a, which is not among the methods")
            options = DetectorOptions(methods, layers_by_method(layers, methods), engine, backend, runtime, gaia_a)
            return command(*args, detectors=options, **kwargs)

        options = [
            click.option(
                "--method",
                type=click.Choice(METHODS),
                multiple=not single,
                default=default[0] if single else list(default),
                show_default=True,
                help="The measurement." if single else "The measurement; repeatable.",
            ),
            click.option(
                "--layers",
                multiple=True,
                metavar="[METHOD=]NAMES",
                help="Inspected modules, separated by commas; a container stands for the normalisation layers in it. "
                "Repeatable; gaia-a=layer3,layer4 is for that method alone. Default: all normalisation layers.",
            ),
            click.option(
                "--fusion", type=click.Choice(Fusion.values()), help="gaia-a: the row of Table 3.  [default: division]"
            ),
            click.option("--statistic", type=click.Choice(Statistic.values()), help="gaia-a.  [default: abs_mean]"),
            click.option("--head", metavar="NAME", help="gaia-a: the final linear or 1x1-convolution module."),
        ]
        if engines:
            options += [
                click.option(
                    "--engine", type=click.Choice((AUTO, *EngineName.values())), default="auto", show_default=True
                ),
                click.option("--backend", type=click.Choice(("auto", *BACKENDS)), default="auto", show_default=True),
                click.option(
                    "--runtime",
                    type=click.Choice((AUTO, *Runtime.values())),
                    default="auto",
                    show_default=True,
                    help="How the compiled engine runs.",
                ),
            ]
        for option in reversed(options):
            wrapped = option(wrapped)
        return wrapped

    return decorate


def layers_by_method(values: Sequence[str], methods: Sequence[str]) -> dict[str, list[str] | None]:
    """The module names for each method: those given for it alone, else those given for all, else None.

    Raises:
        click.UsageError: a method that does not exist or is not asked for, or a value without names.
    """
    common: list[str] = []
    own: dict[str, list[str]] = {}
    for value in values:
        method, equals, listed = value.rpartition("=")
        names = [name.strip() for name in listed.split(",") if name.strip()]
        if equals and method not in methods:
            raise click.UsageError(f"--layers {value}: {method!r} is not among the methods {', '.join(methods)}")
        if not names:
            raise click.UsageError(f"--layers {value!r} names no module")
        (own.setdefault(method, []) if equals else common).extend(names)
    return {method: own.get(method) or common or None for method in methods}
