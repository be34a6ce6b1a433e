"""`gaia-fast reproduce`: the paper's tables and figures on what is at hand, beside the paper's own figures."""

import shlex
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from torch import nn

from gaia_fast import user_cache
from gaia_fast.cli import output
from gaia_fast.cli.loading import on_device
from gaia_fast.cli.options import FILE, FOLDER, described, device_option, json_option
from gaia_fast.data import ImageSource
from gaia_fast.errors import ArgumentError, DataError, GaiaError
from gaia_fast.evaluation import plots
from gaia_fast.files import write_text
from gaia_fast.options import AUTO, EngineName, EngineOption
from gaia_fast.reproduction import report
from gaia_fast.reproduction.figures import FIGURES
from gaia_fast.reproduction.image_sets import IMAGE_SETS
from gaia_fast.reproduction.networks import NETWORKS, Network, find_networks
from gaia_fast.reproduction.run import compute, passes
from gaia_fast.reproduction.score_cache import ScoreCache
from gaia_fast.reproduction.scoring import NetworkScores
from gaia_fast.reproduction.tables import TABLES, Row

_PLOTS = Path("gaia-reproduce")
_FIGURES_HANG_ON = ("networks", "limit", "resolution", "methods", "fit_images", "engine", "device")
_PIXELS_AT_ONCE = 8 * 224 * 224
_LEAST = 50  # images that methods are fitted on, where these have to be taken from the ID set


@click.command()
@click.argument("what", type=click.Choice([*TABLES, *FIGURES]), metavar=f"[{'|'.join([*TABLES, *FIGURES])}]")
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path("data"),
    show_default=True,
    metavar="DIR",
    help="Where image sets and weights are; what is not there is named, with the places where it is expected.",
)
@click.option(
    "--network",
    "networks",
    multiple=True,
    metavar="NAME",
    help=f"One of {', '.join(NETWORKS)}, or an architecture (wrn_40_2); repeatable.  [default: those of the table "
    "whose weights are there]",
)
@click.option("--weights", multiple=True, metavar="NETWORK=FILE", help="Weights of a network; repeatable.")
@click.option("--limit", type=click.IntRange(2), metavar="N", help="The first N images of each set alone.")
@click.option(
    "--resolution",
    type=click.IntRange(1),
    metavar="PIXELS",
    help="Bring the shorter side of every picture down to this first, where it is longer: sets of smaller pictures "
    "cannot be told by that alone then.",
)
@click.option("--method", "methods", multiple=True, metavar="NAME", help="Rows of these methods alone; repeatable.")
@click.option(
    "--fit-images",
    type=click.IntRange(1),
    default=50_000,
    show_default=True,
    metavar="N",
    help="The first N training images are what methods are fitted on that need it.",
)
@click.option("--engine", type=click.Choice((AUTO, *EngineName.values())), default=AUTO, show_default=True)
@device_option
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    help="Images that go through the network together.  [default: 50 of 32x32 pixels, 8 of 224x224, fewer of larger]",
)
@click.option("--out", type=FILE, metavar="FILE", help="Also write the tables as Markdown.")
@click.option(
    "--plots", "folder", type=FOLDER, default=_PLOTS, show_default=True, help="Folder of the pictures of a figure."
)
@click.option("--cache", type=FOLDER, help="Folder where scores are kept.  [default: in the user's cache]")
@click.option("--no-cache", is_flag=True, help="Keep no scores, and take none that were kept.")
@json_option
def reproduce(
    what: str,
    data: Path,
    networks: tuple[str, ...],
    weights: tuple[str, ...],
    limit: int | None,
    resolution: int | None,
    methods: tuple[str, ...],
    fit_images: int,
    engine: EngineOption,
    device: str,
    batch_size: int | None,
    out: Path | None,
    folder: Path,
    cache: Path | None,
    no_cache: bool,
    json_file: Path | None,
) -> None:
    """Makes a table or figure of the paper: our figures, the paper's, and the difference.

    Sets and weights are looked for below --data, in torchvision's layouts, as folders of images and as .npz. A set
    that is not there is named, and the run goes on without it. Scores are kept as they are computed, by network,
    set and method: a run that was stopped goes on where it was. Methods to compare with are pytorch-ood's: pip install
    'gaia-fast[reproduce]'.
    """
    given = _given_weights(weights)
    if what in FIGURES and plots.missing():
        raise ArgumentError(plots.missing())
    if no_cache and cache is not None:
        raise click.UsageError("give --cache or --no-cache, not both")
    users = user_cache.folder()
    kept = ScoreCache(None if no_cache else cache or (users and users / "scores"))
    of = TABLES[what].networks if what in TABLES else list(NETWORKS)
    default = TABLES[what].default if what in TABLES else of
    chosen = find_networks(networks, of if networks else default)
    texts, records, absent = [], [], {}
    for network in chosen:
        if resolution is not None:
            network = replace(network, preset=replace(network.preset, resolution=resolution))
        try:
            model, file = network.load(data, given.get(network.name))
            setting = _Setting(network, data, limit, fit_images, what in TABLES and TABLES[what].fitted)
            scores = setting.scores(on_device(model, device), kept, engine, batch_size)
            if what in TABLES:
                text, record = _table(what, scores, setting, methods, file.name)
            else:
                text, record = _figure(what, scores, setting, folder, file.name)
        except GaiaError as error:
            if len(networks) == len(chosen) == 1:
                raise
            output.note(f"{network.name}: {error}")
            absent[network.name] = str(error)
            continue
        for name in scores.unreadable:
            output.note(f"unreadable: {name}")
        click.echo(text)
        texts.append(text)
        records.append(record)
    if not records:
        raise DataError(f"{what} can be made for no network: {'; '.join(absent.values())}")
    if out is not None:
        write_text(out, "\n".join(texts))
    # Of one network the record itself, so that results[METHOD][SET] is there whichever table it is.
    more = {"networks": records[1:]} if len(records) > 1 else {}
    output.write_json(json_file, {**records[0], **more, "absent_networks": absent})
    output.finish(sum(len(record["unreadable"]) for record in records))


class _Setting:
    """The images of a network: its ID set, the OOD sets that are there, and what methods are fitted on."""

    def __init__(self, network: Network, data: Path, limit: int | None, fit_images: int, fitted: bool) -> None:
        self.network = network
        every = IMAGE_SETS[network.id_set].load(data, network.preset)
        self.fit, rest = self._fit(data, every, limit, fit_images) if fitted else (None, len(every))
        self.id_source = every.part(0, min(rest, limit or rest))
        self.ood: dict[str, ImageSource] = {}
        self.absent: dict[str, str] = {}
        for name, each in network.ood_sets.items():
            try:
                found = each.load(data, network.preset)
                self.ood[name] = found.part(0, limit or len(found))
            except DataError as error:
                if name in network.paper_sets:
                    output.note(str(error))
                    self.absent[name] = str(error)
        if not self.ood:
            raise DataError(f"no OOD set of {network.name} is there: {'; '.join(self.absent.values())}")

    def _fit(
        self, data: Path, every: ImageSource, limit: int | None, fit_images: int
    ) -> tuple[ImageSource | None, int]:
        """What methods are fitted on, and how many of the ID images are left to be tested."""
        try:
            return IMAGE_SETS[self.network.fit_set].load(data, self.network.preset).part(0, fit_images), len(every)
        except DataError as error:
            tested = min(limit or len(every) // 2, len(every))
            if len(every) - tested < _LEAST:
                output.note(f"{error}; methods that have to be fitted are left out")
                return None, len(every)
            output.note(
                f"{error}; methods are fitted on the {len(every) - tested} images of {self.network.id_set} behind the "
                f"first {tested}, which are tested"
            )
            return every.part(tested, tested + fit_images), tested

    @property
    def images(self) -> int:
        """The number of images that are tested."""
        return len(self.id_source) + sum(len(each) for each in self.ood.values())

    def scores(
        self, model: nn.Module, cache: ScoreCache, engine: EngineOption, batch_size: int | None
    ) -> NetworkScores:
        example = self.id_source.first(8).images
        # More of large images are slower on a CPU: their maps leave the caches, and memory is asked for each time.
        # Baselines keep the activations of all of them for a backward pass, besides.
        batch_size = batch_size or max(1, min(50, _PIXELS_AT_ONCE // (example.shape[2] * example.shape[3])))
        scores = NetworkScores(self.network, model, example, self.fit, cache, engine, batch_size)
        named = {self.network.id_set: self.id_source, self.network.fit_set: self.fit, **self.ood}
        scores.set_names = {source: name for name, source in named.items() if source is not None}
        return scores


def _table(
    what: str, scores: NetworkScores, setting: _Setting, methods: Sequence[str], origin: str
) -> tuple[str, dict[str, Any]]:
    table = TABLES[what]
    rows = _asked_for(table.rows(setting.network, scores.maps), methods)
    runs, fitted = passes(rows)
    images = runs * setting.images + (len(setting.fit) if fitted and setting.fit is not None else 0)
    with _progress(setting.network, scores, images):
        found = compute(table, rows, scores, setting.id_source, setting.ood)
    prepared = described(setting.network.preset)
    return (
        report.markdown(found, setting.absent, origin, prepared, _command()),
        report.record(found, setting.absent, origin, prepared),
    )


def _figure(
    what: str, scores: NetworkScores, setting: _Setting, folder: Path, origin: str
) -> tuple[str, dict[str, Any]]:
    figure = FIGURES[what]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{what}-{setting.network.name}.png"
    with _progress(setting.network, scores, 0):
        numbers = figure.draw(scores, setting.id_source, setting.ood, path)
    images = {"id": len(setting.id_source), **{name: len(each) for name, each in setting.ood.items()}}
    record = {
        "figure": what,
        "network": setting.network.name,
        "weights": origin,
        "preprocessing": described(setting.network.preset),
        "images": images,
        "absent_sets": setting.absent,
        "picture": str(path),
        "numbers": numbers,
        "unreadable": list(scores.unreadable),
    }
    return f"{figure.title}: {path}", record


def _asked_for(rows: Sequence[Row], methods: Sequence[str]) -> list[Row]:
    """The rows of the methods that are asked for; all where none is."""

    def is_of(row: Row, name: str) -> bool:
        return row.key == name or row.key.startswith((f"{name},", f"{name} "))

    for name in methods:
        if not any(is_of(row, name) for row in rows):
            keys = ", ".join(row.key for row in rows)
            raise ArgumentError(f"--method {name}: there is no row of that; choose from {keys}")
    return [row for row in rows if not methods or any(is_of(row, name) for name in methods)]


def _command() -> str:
    """The command, with what decides its figures."""
    ctx = click.get_current_context()
    words = [str(ctx.params["what"]), "--data", "DATA"]
    for parameter in ctx.command.params:
        value = ctx.params[parameter.name] if parameter.name else None
        given = value not in (None, ()) and value != parameter.get_default(ctx)
        if parameter.name not in _FIGURES_HANG_ON or not given:
            continue
        each = value if isinstance(value, (list, tuple)) else [value]
        words += [word for one in each for word in (parameter.opts[0], str(one))]
    return f"gaia-fast reproduce {shlex.join(words)}"


def _progress(network: Network, scores: NetworkScores, images: int) -> ExitStack:
    stack = ExitStack()
    advance: Callable[[int], None] = stack.enter_context(output.progress(network.name, images))
    scores.advance = advance
    return stack


def _given_weights(values: Sequence[str]) -> dict[str, Path]:
    found = {}
    for value in values:
        name, equals, path = value.partition("=")
        name = name.replace("-", "_").lower()
        if not equals or not path or name not in NETWORKS:
            raise click.UsageError(f"--weights {value}: write NETWORK=FILE, with one of {', '.join(NETWORKS)}")
        found[name] = Path(path)
    return found
