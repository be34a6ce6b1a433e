"""`gaia-fast evaluate`: how well the methods separate OOD sets from the in-distribution one."""

import re
from collections.abc import Sequence
from pathlib import Path

import click

from gaia_fast.cli import output
from gaia_fast.cli.options import (
    FOLDER,
    DetectorOptions,
    ModelOptions,
    PresetOptions,
    batch_size_option,
    check_apart,
    described,
    detector_options,
    json_option,
    max_pixels_option,
    model_options,
    output_option,
    preset_options,
)
from gaia_fast.cli.preparing import prepare_for
from gaia_fast.cli.tables import table
from gaia_fast.data import load_images, surrogate_sources
from gaia_fast.errors import ArgumentError
from gaia_fast.evaluation import image_sets, plots
from gaia_fast.evaluation.image_rows import ID, image_columns, image_rows

_PLOTS = Path("gaia-evaluation")
_ROC = "roc"  # the folder of the curves, in that of the pictures


@click.command()
@click.option("--id", "id_path", required=True, metavar="PATH", help="In-distribution images.")
@click.option("--ood", "ood", multiple=True, metavar="NAME=PATH", help="Images of an OOD set; repeatable.")
@click.option(
    "--surrogates",
    is_flag=True,
    help="Where there is no OOD data: stand-ins made from the ID images (noise, shuffled tiles, other hues, upside "
    "down). With --sweep-layers they propose layers and a score; what does well on them need not do so on OOD data.",
)
@model_options
@preset_options
@max_pixels_option
@detector_options()
@batch_size_option
@click.option(
    "--sweep-layers",
    is_flag=True,
    help="Also tell what each layer, each stage (maps of one size), and each with all smaller ones do, from the same "
    "pass.",
)
@click.option(
    "--bootstrap",
    "resamples",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="N",
    help="95 % intervals of AUROC and FPR95 (ID positive), from N resamples of the images.",
)
@click.option(
    "--plots",
    "folder",
    type=FOLDER,
    help=f"Folder of the pictures: histograms and ROC curves of each OOD set.  [default: {_PLOTS}]",
)
@click.option("--no-plots", is_flag=True, help="Draw no pictures.")
@output_option(
    "--scores",
    help="Also write one row per image: set, image, label, predicted, and the score of each method and combination. "
    ".csv, .json or .parquet (the extra `parquet`).",
)
@json_option
def evaluate(
    id_path: str,
    ood: tuple[str, ...],
    surrogates: bool,
    model: ModelOptions,
    preset: PresetOptions,
    max_pixels: int,
    detectors: DetectorOptions,
    batch_size: int,
    sweep_layers: bool,
    resamples: int,
    folder: Path | None,
    no_plots: bool,
    scores: Path | None,
    json_file: Path | None,
) -> None:
    """Measures how well the scores separate OOD sets from in-distribution (ID) images.

    Each PATH is a folder of images (any depth), one image, an .npz with x uint8 (N, H, W, 3) and, for the accuracy on
    the ID images, y integer (N,), or Parquet or WebDataset (.tar), a file or a folder of them. Two FPR95 are told
    apart: with ID positive, the share of OOD images accepted at the threshold that accepts 95 % of ID images (the
    paper's); with OOD positive, the share of ID images flagged at the threshold that flags 95 % of OOD images. All
    shares are fractions of one. The exit code is 3 if images could not be read.
    """
    if no_plots and folder is not None:
        raise click.UsageError("give --plots or --no-plots, not both")
    if not ood and not surrogates:
        raise click.UsageError("give OOD images by --ood NAME=PATH; where there are none, --surrogates")
    if ood and surrogates:
        raise click.UsageError("give --ood or --surrogates, not both: an average over the two means nothing")
    check_apart({"--scores": scores, "--json": json_file})
    paths = _named_paths(ood)
    writing = None if scores is None else table(scores, "--scores", (".csv", ".json", ".parquet"))
    pictures = _picture_folder(folder, no_plots)
    loaded = model.load()
    prepared = preset.of(loaded)
    chosen = detectors.build_joint(loaded.model)
    id_source = load_images(id_path, prepared, max_pixels)
    sources = {name: load_images(path, prepared, max_pixels) for name, path in paths.items()}
    for name, each in {ID: id_source, **sources}.items():
        output.report_skipped(each, f"{name}: ")
    if surrogates:
        sources = surrogate_sources(id_source)

    total = len(id_source) + sum(len(each) for each in sources.values())
    prepare_for(chosen, detectors.engine, id_source, prepared, total, batch_size)
    with output.progress("scoring", total) as advance:
        found = image_sets.evaluate(chosen, id_source, sources, batch_size, advance, sweep_layers, resamples)

    output.print_evaluation(found)
    output.print_sweep(found)
    click.echo(output.accuracy_line(found))
    for sentence in image_sets.weak_spots(found):
        click.echo(sentence)
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        (pictures / _ROC).mkdir(exist_ok=True)
        for name in sources:
            plots.save_histograms(pictures / f"{name}.png", found, name)
            plots.save_roc(pictures / _ROC / f"{name}.png", found, name)
        click.echo(f"histograms: {', '.join(str(pictures / f'{name}.png') for name in sources)}")
        click.echo(f"ROC curves: {', '.join(str(pictures / _ROC / f'{name}.png') for name in sources)}")
    if writing is not None:
        with writing(image_columns(found)) as write:
            write(list(image_rows(found)))
        click.echo(f"scores of each image: {scores}")
    output.write_json(json_file, {"preprocessing": described(prepared), **output.evaluation_record(found)})
    left_out = {name: each.unreadable for name, each in found.ood_sets.items()}
    if surrogates:  # what cannot be read cannot be changed either; it counts once
        known = set(found.id_set.unreadable)
        left_out = {name: [each for each in faults if each not in known] for name, faults in left_out.items()}
    left_out = {ID: found.id_set.unreadable, **left_out}
    for name, faults in left_out.items():
        output.report_unreadable(faults, f"{name}: ")
    output.finish(sum(map(len, left_out.values())))


def _named_paths(values: Sequence[str]) -> dict[str, str]:
    paths: dict[str, str] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not equals or not path or not re.fullmatch(r"[\w.+-]+", name):
            raise click.UsageError(
                f"--ood {value}: write NAME=PATH, with letters, digits and . + - _ in NAME, which names the picture too"
            )
        if name == ID:
            raise click.UsageError(f"--ood {value}: {ID!r} is the in-distribution set; choose another name")
        if name in paths:
            raise click.UsageError(f"--ood {value}: there is a set {name!r} already")
        paths[name] = path
    return paths


def _picture_folder(folder: Path | None, no_plots: bool) -> Path | None:
    if no_plots:
        return None
    if plots.missing():
        if folder is not None:
            raise ArgumentError(f"--plots: {plots.missing()}")
        output.note(f"no histograms: {plots.missing()}")
        return None
    return folder or _PLOTS
