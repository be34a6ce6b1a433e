"""Options that commands share. Each decorator adds its options and hands the command one value that holds them."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import click
import torch
from torch import nn

from gaia_fast.backends import BACKENDS
from gaia_fast.calibration import checked
from gaia_fast.cli.images import parse_size
from gaia_fast.cli.loading import LIBRARIES, Loaded, load_model
from gaia_fast.cli.output import note
from gaia_fast.data import MAX_PIXELS, PRESETS, Preset
from gaia_fast.data.presets import INTERPOLATIONS
from gaia_fast.errors import ArgumentError
from gaia_fast.evaluation.image_sets import METHODS, Detector, Detectors, make_detector
from gaia_fast.gaia import Gaia
from gaia_fast.models import ARCHITECTURES
from gaia_fast.options import (
    AUTO,
    BackendOption,
    EngineName,
    EngineOption,
    Fusion,
    Runtime,
    RuntimeOption,
    ScoreOption,
    Statistic,
)

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


def _arch(ctx: click.Context, parameter: click.Parameter, name: str | None) -> str | None:
    library, colon, rest = (name or "").partition(":")
    if name is None or name in ARCHITECTURES or (colon and rest and library in LIBRARIES):
        return name
    raise click.BadParameter(
        f"there is no {name!r}; choose one of {', '.join(ARCHITECTURES)}, timm:NAME or torchvision:NAME, or "
        "hf:PATH_OR_NAME"
    )


FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)

json_option = click.option(
    "--json", "json_file", type=FILE, callback=_new_file, metavar="FILE", help="Also write all results as JSON."
)
device_option = click.option(
    "--device", default="cpu", show_default=True, callback=_device, help="Such as cpu, cuda or cuda:1."
)
batch_size_option = click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Images that go through the network together.",
)

OWN = "model"  # the model's own configuration, in place of a preset


@dataclass(frozen=True)
class PresetOptions:
    """--preset, and what is changed of it."""

    name: str | None
    changes: dict[str, Any]

    @property
    def given(self) -> bool:
        """Whether anything was asked for."""
        return self.name is not None or bool(self.changes)

    def of(self, loaded: Loaded, *, scored: bool = True) -> Preset:
        """The preset asked for; where none is, the model's own, and where that is unknown, "none".

        Args:
            scored: whether images are scored with it, so that a wrong one would matter.

        Raises:
            click.UsageError: the model's own is asked for, and it has none.
        """
        own = self._own(loaded)
        preset = own or PRESETS[self.name or "none"]
        if self.changes:
            preset = replace(preset, name=f"{preset.name}, changed", **self.changes)
        if "interpolation" in self.changes and preset.resize is None:
            raise click.UsageError("--interpolation is of resizing: give --resize, or a --preset that resizes")
        if self.name is None and own is not None:
            note(f"no --preset: images are prepared as {loaded.source} says: {described(preset)}")
        # Scores of images that were not prepared as in training look like any others.
        elif self.name is None and scored and not {"mean", "std"} <= self.changes.keys():
            note("no --preset: images go in as they are, pixels in [0, 1]; right only if the model was trained so")
        return preset

    def _own(self, loaded: Loaded) -> Preset | None:
        """The model's own, where it is asked for or nothing is."""
        if self.name not in (None, OWN):
            return None
        why = "does not say how images are prepared"
        if loaded.preset is not None:
            try:
                return loaded.preset()
            except ArgumentError as error:
                why = f"is of no use here: {error}"
                if self.name is None:
                    note(f"the model's configuration {why}")
        if self.name == OWN:
            raise click.UsageError(
                f"--preset model: the model's configuration {why}; take another preset, or none with --mean, --std, "
                "--resize and --crop"
            )
        return None


def described(preset: Preset) -> str:
    """What a preset does, in a line."""

    def size(value: int | tuple[int, int]) -> str:
        return f"{value}" if isinstance(value, int) else f"{value[0]}x{value[1]}"

    def numbers(values: tuple[float, ...]) -> str:
        return ", ".join(f"{value:g}" for value in values)

    parts = [] if preset.resolution is None else [f"down to {preset.resolution} pixels where larger"]
    parts += [] if preset.resize is None else [f"resize {size(preset.resize)} ({preset.interpolation})"]
    parts += [] if preset.crop is None else [f"crop {size(preset.crop)}"]
    return "; ".join([*parts, f"mean {numbers(preset.mean)}", f"std {numbers(preset.std)}"])


def preset_options(command: Command) -> Command:
    """Adds the options of preprocessing; the command gets them as `preset`, a PresetOptions."""

    @click.option(
        "--preset",
        type=click.Choice([*PRESETS, OWN]),
        help="How images are resized, cropped and normalised: as in the model's training. model: as its own "
        "configuration says (timm's, torchvision's, Hugging Face's); none: pixels in [0, 1].  [default: model where it "
        "says so, else none]",
    )
    @click.option("--resize", metavar="S|HxW", help="In the preset's place: of the shorter side, or stretched to HxW.")
    @click.option("--crop", metavar="S|HxW", help="In the preset's place: from the centre.")
    @click.option("--mean", metavar="R,G,B", help="In the preset's place, of pixels in [0, 1].")
    @click.option("--std", metavar="R,G,B", help="In the preset's place, of pixels in [0, 1].")
    @click.option(
        "--interpolation", type=click.Choice(list(INTERPOLATIONS)), help="In the preset's place, of resizing."
    )
    @functools.wraps(command)
    def wrapped(
        *args: Any,
        preset: str | None,
        resize: str | None,
        crop: str | None,
        mean: str | None,
        std: str | None,
        interpolation: str | None,
        **kwargs: Any,
    ) -> Any:
        changes = {
            "resize": None if resize is None else parse_size(resize, "--resize"),
            "crop": None if crop is None else parse_size(crop, "--crop"),
            "mean": None if mean is None else _three(mean, "--mean"),
            "std": None if std is None else _three(std, "--std"),
            "interpolation": interpolation,
        }
        given = {name: value for name, value in changes.items() if value is not None}
        return command(*args, preset=PresetOptions(preset, given), **kwargs)

    return wrapped


def _three(text: str, option: str) -> tuple[float, ...]:
    try:
        first, second, third = map(float, text.split(","))
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is not three numbers, such as 0.485,0.456,0.406", param_hint=option
        ) from None
    return first, second, third


max_pixels_option = click.option(
    "--max-pixels",
    type=click.IntRange(1),
    default=MAX_PIXELS,
    show_default=True,
    help="An image of more pixels is unreadable: decoding it could take all memory.",
)


def check_apart(files: Mapping[str, Path | None]) -> None:
    """Raises click.UsageError where two options name one file: what is written first would be lost."""
    seen: dict[Path, str] = {}
    for option, path in files.items():
        if path is None or not (path.is_file() or not path.exists()):  # a device takes both
            continue
        other = seen.setdefault(path.resolve(), option)
        if other != option:
            raise click.UsageError(f"{other} and {option} are both {path}; give two names")


def output_option(name: str = "--out", **settings: Any) -> Callable[[Command], Command]:
    """An option that takes a file to be written."""
    return click.option(name, type=FILE, callback=_new_file, metavar="FILE", **settings)


@dataclass(frozen=True)
class ModelOptions:
    """--arch, --model and what goes with them."""

    arch: str | None
    spec: str | None
    num_classes: int | None
    weights: Path | None
    device: str

    def load(self, *, trained: bool = True) -> Loaded:
        """The model; see `load_model`."""
        return load_model(self.arch, self.spec, self.num_classes, self.weights, self.device, trained)


@dataclass(frozen=True)
class DetectorOptions:
    """Which methods, and how each of them works."""

    methods: tuple[str, ...]
    layers: dict[str, list[str] | None]
    engine: EngineOption
    backend: BackendOption
    runtime: RuntimeOption
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

    def build_all(self, model: nn.Module) -> Detectors:
        """What scores by all methods: the detector of the only one, by its name, or one of several."""
        alone = len(self.methods) == 1 and self.methods[0] in METHODS
        return self.build(model) if alone else self.build_joint(model)

    def build_one(self, model: nn.Module) -> Detector | Gaia:
        """The same, as one detector."""
        built = self.build_all(model)
        return built if isinstance(built, Gaia) else built[self.methods[0]]

    def build_joint(self, model: nn.Module) -> Gaia:
        """One detector of all methods, those of the logits among them."""
        return Gaia(
            model,
            scores=cast(tuple[ScoreOption, ...], self.methods),
            layers=self.layers,
            engine=self.engine,
            backend=self.backend,
            runtime=self.runtime,
            **self.gaia_a,
        )


def model_options(command: Command) -> Command:
    """Adds the options that choose the model; the command gets them as `model`, a ModelOptions."""

    @click.option(
        "--arch",
        metavar="NAME",
        callback=_arch,
        help=f"A network: {', '.join(ARCHITECTURES)}, built in; timm:NAME or torchvision:NAME, or hf:PATH_OR_NAME (an "
        "image classifier of Hugging Face's transformers, safetensors only), with that library's weights unless "
        "--weights is given.",
    )
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
    @device_option
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
    *, default: Sequence[str] = METHODS, choices: Sequence[str] = METHODS, engines: bool = True
) -> Callable[[Command], Command]:
    """Adds the options of the methods; the command gets them as `detectors`, a DetectorOptions.

    Args:
        default: the methods used unless asked otherwise.
        choices: the methods that can be asked for.
        engines: whether the engine and backend can be chosen.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def wrapped(
            *args: Any,
            method: tuple[str, ...],
            layers: tuple[str, ...],
            fusion: str | None,
            statistic: str | None,
            head: str | None,
            engine: EngineOption = "auto",
            backend: BackendOption = "auto",
            runtime: RuntimeOption = "auto",
            **kwargs: Any,
        ) -> Any:
            methods = tuple(dict.fromkeys(method))
            chosen = {"fusion": fusion, "statistic": statistic, "head": head}
            gaia_a = {name: value for name, value in chosen.items() if value is not None}
            if gaia_a and "gaia-a" not in methods:
                raise click.UsageError(f"--{next(iter(gaia_a))} belongs to gaia-a, which is not among the methods")
            inspecting = [each for each in methods if each in METHODS]
            if layers and not inspecting:
                raise click.UsageError(f"--layers belongs to {' and '.join(METHODS)}, which are not among the methods")
            options = DetectorOptions(methods, layers_by_method(layers, inspecting), engine, backend, runtime, gaia_a)
            return command(*args, detectors=options, **kwargs)

        options = [
            click.option(
                "--method",
                type=click.Choice(choices),
                multiple=True,
                default=list(default),
                show_default=True,
                help="The measurement; repeatable.",
            ),
            click.option(
                "--layers",
                multiple=True,
                metavar="[METHOD=]NAMES",
                help="Inspected modules, separated by commas; a container stands for the normalisation layers in it, "
                "last_stage and last_two_stages for those of the smallest maps, convolutions for all before an "
                "activation, token_maps for the LayerNorms of a transformer (experimental). Repeatable; "
                "gaia-a=layer3,layer4 is for that method alone. Default: all normalisation layers.",
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


def threshold_option(help: str) -> Callable[[Command], Command]:
    """--threshold [METHOD=]NUMBER."""
    return click.option("--threshold", "thresholds", multiple=True, metavar="[METHOD=]NUMBER", help=help)


def thresholds_by_method(values: Sequence[str], methods: Sequence[str]) -> dict[str, float]:
    """The threshold of each method that has one.

    Raises:
        click.UsageError: no number, a method that is not asked for, or of several methods it is not said whose it is.
        ArgumentError: no finite number.
    """
    found = {}
    for value in values:
        method, equals, number = value.rpartition("=")
        if not equals and len(methods) > 1:
            raise click.UsageError(f"--threshold {value}: say of which method, such as {methods[0]}={value}")
        if equals and method not in methods:
            raise click.UsageError(f"--threshold {value}: {method!r} is not among the methods {', '.join(methods)}")
        try:
            given = float(number)
        except ValueError:
            raise click.UsageError(f"--threshold {value}: {number!r} is not a number") from None
        found[method or methods[0]] = checked(given)
    return found
