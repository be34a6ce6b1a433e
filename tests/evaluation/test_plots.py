import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import auc

from gaia_fast.errors import ArgumentError
from gaia_fast.evaluation import plots
from gaia_fast.evaluation.image_sets import Evaluation, ScoredSet, compare


def scored(seed: int, mean: float, count: int) -> ScoredSet:
    scores = np.random.default_rng(seed).normal(mean, 1, count).astype(np.float32)
    by_method = {"gaia-a": scores, "gaia-z": 3 * scores, "msp": scores}
    return ScoredSet([str(i) for i in range(count)], None, np.zeros(count, int), by_method, [])


@pytest.fixture
def evaluation() -> Evaluation:
    return compare(scored(0, 0, 40), {"letters": scored(1, 2, 30)})


def drawn(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def has_color(pixels: np.ndarray, rgb: tuple[int, int, int]) -> bool:
    return bool((np.abs(pixels - rgb).max(axis=2) < 12).any())


# The colours of bars, 60 % opaque on white.
ID_BAR, OOD_BAR = (133, 162, 200), (236, 176, 121)


def test_histograms(tmp_path: Path, evaluation: Evaluation) -> None:
    plots.save_histograms(tmp_path / "letters.png", evaluation, "letters")
    pixels = drawn(tmp_path / "letters.png")
    middle = pixels.shape[1] // 2
    for panel in (pixels[:, :middle], pixels[:, middle:]):
        assert has_color(panel, ID_BAR)
        assert has_color(panel, OOD_BAR)


def test_histogram_shares_and_threshold(evaluation: Evaluation) -> None:
    axes = plots.new_figure(4, 3).subplots()
    plots._histogram(axes, evaluation, "gaia-z", "letters")
    heights = [sum(bar.get_height() for bar in container) for container in axes.containers]
    assert heights == pytest.approx([1, 1])  # what lies beyond the ends is in the outermost bars
    assert axes.lines[0].get_xdata()[0] == evaluation.results["gaia-z"].threshold
    assert f"AUROC {evaluation.results['gaia-z'].metrics['letters'].auroc:.3f}" in axes.get_title()


def test_roc_curves(tmp_path: Path, evaluation: Evaluation) -> None:
    plots.save_roc(tmp_path / "roc.png", evaluation, "letters")
    assert drawn(tmp_path / "roc.png").min() < 100
    axes = plots.new_figure(4, 4).subplots()
    plots._roc(axes, evaluation, "letters")
    curves = axes.lines[:3]
    assert [each.get_label().split(":")[0] for each in curves] == ["gaia-a", "gaia-z", "msp"]
    for method, curve in zip(evaluation.results, curves, strict=True):
        x, y = curve.get_xdata(), curve.get_ydata()
        metrics = evaluation.results[method].metrics["letters"]
        assert auc(x, y) == pytest.approx(metrics.auroc)
        assert x[y >= 0.95].min() == pytest.approx(metrics.fpr95_id_positive)
    for (name, each), curve in zip(evaluation.combinations.items(), axes.lines[3:5], strict=True):
        assert name in str(curve.get_label())
        assert "not in the paper" in str(curve.get_label())
        assert auc(curve.get_xdata(), curve.get_ydata()) == pytest.approx(each.result.metrics["letters"].auroc)


def test_all_scores_equal() -> None:
    same = ScoredSet(["0"], None, np.zeros(1, int), {"gaia-z": np.ones(1), "msp": np.ones(1)}, [])
    axes = plots.new_figure(4, 3).subplots()
    plots._histogram(axes, compare(same, {"same": same}), "gaia-z", "same")
    assert [sum(bar.get_height() for bar in container) for container in axes.containers] == [1, 1]
    assert all(bar.get_width() > 0 for container in axes.containers for bar in container)


def test_overview(tmp_path: Path, evaluation: Evaluation) -> None:
    gray = np.full((40, 8, 8), 77, dtype=np.uint8)
    color = np.full((30, 8, 8, 3), (10, 200, 30), dtype=np.uint8)
    plots.save_overview(tmp_path / "all.png", evaluation, {"digits": gray, "letters": color}, columns=3)
    pixels = drawn(tmp_path / "all.png")
    middle = pixels.shape[0] // 2
    assert has_color(pixels[:middle], (77, 77, 77))
    assert has_color(pixels[middle:], (10, 200, 30))
    assert has_color(pixels[middle:], ID_BAR)
    assert not has_color(pixels[:middle], ID_BAR)  # no histogram of ID against itself


def test_a_picture_that_cannot_be_drawn_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluation: Evaluation
) -> None:
    def fails(self: object, path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        raise OSError("the disk is full")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fails)
    pictures = {"digits": np.zeros((40, 8, 8), np.uint8), "letters": np.zeros((30, 8, 8), np.uint8)}
    (tmp_path / "a.png").write_bytes(b"good")
    for name in ("a.png", "b.png"):
        with pytest.raises(OSError, match="disk is full"):
            plots.save_histograms(tmp_path / name, evaluation, "letters")
        with pytest.raises(OSError, match="disk is full"):
            plots.save_overview(tmp_path / name, evaluation, pictures, columns=2)
    assert [each.name for each in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"good"


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluation: Evaluation) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    assert "gaia-fast[plot]" in plots.missing()
    with pytest.raises(ArgumentError, match="matplotlib"):
        plots.save_histograms(tmp_path / "x.png", evaluation, "letters")
