import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image

from gaia_fast.cli.demo import _times
from gaia_fast.data import ImageSource, digits
from gaia_fast.data.digits import OOD_PICTURES
from gaia_fast.evaluation import image_sets, plots
from gaia_fast.evaluation.timing import Timing
from gaia_fast.versions import processor


@pytest.fixture(autouse=True)
def fewer_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty images of each set, to be quick."""
    sources = digits.digits_sources

    def first(source: ImageSource) -> ImageSource:
        labels = None if source.labels is None else source.labels[:30]
        return ImageSource(source.names[:30], source._pictures[:30], source.preset, labels)

    def fewer() -> tuple[ImageSource, dict[str, ImageSource]]:
        id_source, ood = sources()
        return first(id_source), {name: first(source) for name, source in ood.items()}

    monkeypatch.setattr(digits, "digits_sources", fewer)
    save = plots.save_overview
    monkeypatch.setattr(
        plots,
        "save_overview",
        lambda path, found, pictures: save(path, found, {k: p[:30] for k, p in pictures.items()}),
    )


def test_demo(run: Callable[..., Result], tmp_path: Path) -> None:
    found = run("demo", "--out", tmp_path / "new" / "folder", "--json", "out.json")
    assert found.exit_code == 0
    assert "gaia-a: 6 layers from layer3.0.bn1 to layer4.0.shortcut.1, 288 channels" in found.stdout
    assert "gaia-z: 12 layers" in found.stdout
    assert "MSP (baseline, no GAIA)" in found.stdout
    assert "on 'mirrored' the maximum softmax probability alone does better" in found.stdout
    with open("out.json") as file:
        record = json.load(file)
    assert record["id_accuracy"] > 0.95
    for method in ("gaia-a", "gaia-z"):
        assert set(record["results"][method]) == set(OOD_PICTURES)
        assert [timing["images"] for timing in record["timing"]] == [1, 30]
        assert {f"{method}, compiled", f"{method}, hooks, without prepare"} <= record["timing"][0]["ratios"].keys()
    for name, metrics in record["results"]["gaia-z"].items():
        assert f"{metrics['auroc']:.3f} / {metrics['fpr95_id_positive']:.3f}" in found.stdout
        assert (metrics["auroc"] < 0.8) == (f"gaia-z separates '{name}'" in found.stdout)
    assert f"measured just now on\n{processor()}, {record['timing'][0]['threads']} threads" in found.stdout
    with Image.open(tmp_path / "new" / "folder" / "demo.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10


def test_says_where_the_time_went() -> None:
    ratios = {"gaia-z, compiled": 0.75, "gaia-z, hooks, without prepare": 4.0}
    text = _times([Timing(forward_ms=8, ratios=ratios, images=images, repeats=11, threads=2) for images in (1, 64)])
    assert f"{processor()}, 2 threads (medians of 11" in text
    assert "  1 image, forward pass 8.00 ms: gaia-z, compiled 0.75x; gaia-z, hooks, without prepare 4.00x" in text
    assert "  64 images, forward pass 8.00 ms: " in text


def test_says_plainly_where_it_fails(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "missing", lambda: "not needed here")
    monkeypatch.setattr(image_sets, "weak_spots", lambda found: ["it fails at dusk"])
    assert "Where the methods fail:\nit fails at dusk" in run("demo").stdout
    monkeypatch.setattr(image_sets, "weak_spots", lambda found: [])
    assert "No method has an AUROC below 0.8" in run("demo").stdout


def test_without_matplotlib(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "missing", lambda: "matplotlib is not here")
    found = run("demo")
    assert found.exit_code == 0
    assert "no picture: matplotlib is not here" in found.stderr
    assert "picture: " not in found.stdout
