import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from pyarrow import parquet

from gaia_fast import GaiaA
from gaia_fast.data.digits import held_out_digits, noise_pictures, prepare
from gaia_fast.evaluation import plots
from gaia_fast.evaluation.metrics import ood_metrics
from gaia_fast.models import digits_resnet

DIGITS = ("--arch", "digits_resnet", "--preset", "digits")
SHARES = {"auroc", "fpr95_id_positive", "fpr95_ood_positive", "aupr_in", "aupr_out"}
KEYS = SHARES | {"aupr_in_trapezoid", "aupr_out_trapezoid", "n_id", "n_ood"}


def read(path: str = "out.json") -> Any:
    with open(path) as file:
        return json.load(file)


def test_averages_and_intervals(
    run: Callable[..., Result], digits_npz: Path, noise_npz: Path, digits_folder: Path
) -> None:
    sets = ("--id", digits_npz, "--ood", f"noise={noise_npz}", "--ood", f"same={digits_folder}", "--no-plots")
    found = run("evaluate", *DIGITS, *sets, "--method", "gaia-z", "--bootstrap", "100", "--json", "out.json")
    assert found.exit_code == 0
    record = read()
    results = record["results"]["gaia-z"]
    assert set(record["average"]) == {"gaia-z", "msp"}
    for share in SHARES:
        assert record["average"]["gaia-z"][share] == pytest.approx(
            (results["noise"][share] + results["same"][share]) / 2
        )
    low, high = record["intervals"]["gaia-z"]["same"]["auroc"]
    assert low < results["same"]["auroc"] < high
    assert f"[{low:.3f}, {high:.3f}]" in found.stdout
    assert "average" in found.stdout
    alone = run("evaluate", *DIGITS, *sets[:4], "--no-plots", "--method", "gaia-z", "--json", "out.json")
    assert read()["intervals"] == {"gaia-z": {}, "msp": {}}
    assert "average" not in alone.stdout


def test_layers_are_swept_in_the_same_pass(
    run: Callable[..., Result], digits_npz: Path, noise_npz: Path, digits_folder: Path
) -> None:
    sets = ("--id", digits_npz, "--ood", f"noise={noise_npz}", "--ood", f"same={digits_folder}", "--no-plots")
    found = run("evaluate", *DIGITS, *sets, "--method", "gaia-z", "--sweep-layers", "--json", "out.json")
    assert found.exit_code == 0
    record = read()
    groups = record["by_layers"]["gaia-z"]
    assert groups["all"]["results"]["noise"] == pytest.approx(record["results"]["gaia-z"]["noise"])
    assert set(groups["all"]["results"]["noise"]) == KEYS
    best = next(iter(groups.values()))
    assert best["average"]["auroc"] == max(group["average"]["auroc"] for group in groups.values())
    assert f"--layers gaia-z={','.join(best['layers'])}" in found.stdout
    assert "gaia-z by layers" in found.stdout
    again = run(
        "evaluate", *DIGITS, *sets, "--method", "gaia-z", "--layers", ",".join(best["layers"]), "--json", "b.json"
    )
    assert again.exit_code == 0
    assert read("b.json")["results"]["gaia-z"]["noise"]["auroc"] == pytest.approx(best["results"]["noise"]["auroc"])
    assert read("b.json")["by_layers"] == {}


def test_json_table_and_pictures(
    run: Callable[..., Result], digits_npz: Path, noise_npz: Path, digits_folder: Path, tmp_path: Path
) -> None:
    found = run(
        "evaluate", *DIGITS, "--id", digits_npz, "--ood", f"noise={noise_npz}", "--ood", f"same={digits_folder}",
        "--layers", "gaia-a=layer3,layer4", "--json", "out.json",
    )  # fmt: skip
    assert found.exit_code == 0
    record = read()
    assert set(record["results"]) == {"gaia-a", "gaia-z"}
    for method in record["results"].values():
        assert set(method) == {"noise", "same"}
        for name, count in (("noise", 30), ("same", 6)):
            assert set(method[name]) == KEYS
            assert (method[name]["n_id"], method[name]["n_ood"]) == (40, count)
            assert all(0 <= method[name][key] <= 1 for key in KEYS - {"n_id", "n_ood"})
    assert set(record["baseline"]) == {"msp"}
    assert set(record["threshold"]) == {"gaia-a", "gaia-z", "msp"}
    assert record["id_accuracy"] > 0.9
    assert record["unreadable"] == {"id": [], "ood": {"noise": [], "same": []}}
    assert record["options"]["ood"] == [f"noise={noise_npz}", f"same={digits_folder}"]

    detector = GaiaA(digits_resnet(pretrained=True), layers=["layer3", "layer4"])
    id_scores, ood_scores = (detector.predict(x) for x in (held_out_digits()[0][:40], prepare(noise_pictures()[:30])))
    expected = dataclasses.asdict(ood_metrics(id_scores, ood_scores))
    assert record["results"]["gaia-a"]["noise"] == pytest.approx(expected)

    for words in ("gaia-a; threshold", "gaia-z; threshold", "baseline: maximum softmax probability", "ID positive"):
        assert words in found.stdout
    assert f"{expected['auroc']:.4f}" in found.stdout
    assert "accuracy on the 40 ID images: " in found.stdout
    # The set that is the ID set in part cannot be told from it, and the output says so.
    assert "gaia-z separates 'same'" in found.stdout
    for name in ("noise", "same"):
        with Image.open(f"gaia-evaluation/{name}.png") as picture:
            assert picture.size[0] > 500


def test_combinations_stand_apart_from_the_papers_methods(
    run: Callable[..., Result], digits_npz: Path, noise_npz: Path, digits_folder: Path
) -> None:
    sets = ("--id", digits_npz, "--ood", f"noise={noise_npz}", "--ood", f"same={digits_folder}")
    found = run("evaluate", *DIGITS, *sets, "--no-plots", "--json", "out.json")
    assert found.exit_code == 0
    record = read()
    assert list(record["combinations"]) == ["rank_average", "max_standardised"]
    assert record["not_combined"] is None
    for each in record["combinations"].values():
        assert set(each) == {"title", "note", "results", "threshold", "average", "intervals"}
        assert each["note"].startswith("not in the paper; fitted on ID scores alone")
        assert set(each["results"]["noise"]) == KEYS
        assert (each["results"]["noise"]["n_id"], each["results"]["noise"]["n_ood"]) == (40, 30)
        assert each["results"]["noise"]["auroc"] > 0.9
        assert f"{each['title']} (not in the paper; " in found.stdout
        assert f"{each['results']['same']['auroc']:.4f}" in found.stdout
    assert set(record["threshold"]) == set(record["average"]) == {"gaia-a", "gaia-z", "msp"}
    few = run(
        "evaluate", *DIGITS, "--id", digits_folder / "a" / "0.png", *sets[2:4], "--no-plots", "--json", "out.json"
    )
    assert few.exit_code == 0
    assert read()["combinations"] == {}
    assert "give more in-distribution images" in read()["not_combined"]
    assert "no combination of scores: " in few.stdout


def test_surrogates_where_there_is_no_ood_data(run: Callable[..., Result], digits_npz: Path) -> None:
    arguments = ("evaluate", *DIGITS, "--id", digits_npz, "--surrogates", "--sweep-layers")
    found = run(*arguments, "--json", "out.json")
    assert found.exit_code == 0
    record = read()
    sets = ["surrogate-noise", "surrogate-jigsaw", "surrogate-colour-shifted", "surrogate-rotated"]
    assert list(record["results"]["gaia-z"]) == sets
    assert record["results"]["gaia-z"]["surrogate-noise"]["auroc"] > 0.95
    marked = "on surrogates made from ID images, not on OOD data"
    assert marked in record["surrogates"]["note"]
    assert marked in record["proposal"]["note"]
    titles = [line for line in found.stdout.splitlines() if "; threshold" in line or "by layers; FPR95" in line]
    text = " ".join(found.stdout.split())
    assert len(titles) == 7  # two methods, twice, the baseline, and two combinations
    assert text.count(marked) == 7 + 3  # and a sentence for each method and for both
    assert "OOD set" not in text
    best = {
        method: max(groups.values(), key=lambda group: group["average"]["auroc"])
        for method, groups in record["by_layers"].items()
    }
    method = max(best, key=lambda each: best[each]["average"]["auroc"])
    assert (record["proposal"]["method"], record["proposal"]["layers"]) == (method, best[method]["layers"])
    assert f"--method {method} --layers {','.join(best[method]['layers'])}. Chosen {marked}" in text
    assert {path.name for path in Path("gaia-evaluation").iterdir()} == {"roc", *(f"{name}.png" for name in sets)}


def test_ood_data_is_never_called_surrogates(run: Callable[..., Result], digits_npz: Path, noise_npz: Path) -> None:
    sets = ("--id", digits_npz, "--ood", f"noise={noise_npz}", "--no-plots", "--sweep-layers")
    found = run("evaluate", *DIGITS, *sets, "--json", "out.json")
    assert "surrogate" not in found.stdout
    assert read()["surrogates"] is None
    assert read()["proposal"]["note"].startswith("Chosen on these OOD sets")


def test_an_unreadable_image_counts_once_with_its_surrogates(run: Callable[..., Result], damaged_folder: Path) -> None:
    Image.new("RGB", (8, 8)).save(damaged_folder / "black.png")
    found = run("evaluate", *DIGITS, "--id", damaged_folder, "--surrogates", "--method", "gaia-z", "--no-plots")
    assert found.exit_code == 3
    lines = [line.split(": ")[1:3] for line in found.stderr.splitlines() if line.startswith("unreadable: ")]
    assert lines == [
        ["id", "a/broken.png"],
        ["id", "zero.jpg"],
        ["surrogate-jigsaw", "black.png"],
        ["surrogate-rotated", "black.png"],
    ]
    assert "4 unreadable images were left out" in found.stderr


@pytest.mark.parametrize("ending", ["csv", "json", "parquet"])
def test_scores_of_each_image(
    run: Callable[..., Result], digits_npz: Path, damaged_folder: Path, ending: str, tmp_path: Path
) -> None:
    sets = ("--id", digits_npz, "--ood", f"same={damaged_folder}", "--no-plots")
    found = run("evaluate", *DIGITS, *sets, "--scores", f"rows.{ending}", "--json", "out.json")
    assert found.exit_code == 3
    assert f"scores of each image: rows.{ending}" in found.stdout
    if ending == "csv":
        with open("rows.csv") as file:
            rows: list[dict[str, Any]] = list(csv.DictReader(file))
    elif ending == "json":
        rows = read("rows.json")
    else:
        rows = parquet.read_table("rows.parquet").to_pylist()
    columns = ["set", "image", "label", "predicted", "gaia-a", "gaia-z", "msp", "rank_average", "max_standardised"]
    assert list(rows[0]) == columns
    assert [row["set"] for row in rows] == ["id"] * 40 + ["same"] * 6
    assert [row["image"] for row in rows[40:]] == ["a/0.png", "a/1.png", "a/2.png", "b/3.png", "b/4.png", "b/5.png"]
    assert [row["label"] for row in rows[40:]] == [{"csv": ""}.get(ending)] * 6
    right = [int(row["label"]) == int(row["predicted"]) for row in rows[:40]]
    assert np.mean(right) == read()["id_accuracy"]
    # The very numbers: the metrics come out again.
    results = {**read()["results"], **read()["baseline"]}
    results |= {name: each["results"] for name, each in read()["combinations"].items()}
    for column in columns[4:]:
        values = np.array([float(row[column]) for row in rows])
        assert dataclasses.asdict(ood_metrics(values[:40], values[40:])) == results[column]["same"]


def test_scores_appear_when_whole(
    run: Callable[..., Result], digits_npz: Path, noise_npz: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(found: object) -> Any:
        yield from ()
        raise OSError("the disk is full")

    monkeypatch.setattr("gaia_fast.cli.evaluate.image_rows", fails)
    arguments = ("evaluate", *DIGITS, "--id", digits_npz, "--ood", f"n={noise_npz}", "--no-plots", "--method", "gaia-z")
    for name in ("rows.csv", "rows.json", "rows.parquet"):
        Path(name).write_text("good")
        assert run(*arguments, "--scores", name).exit_code == 1
        assert Path(name).read_text() == "good"
    assert len(list(Path().iterdir())) == 3


def test_no_plots_and_one_method(
    run: Callable[..., Result], digits_folder: Path, noise_npz: Path, tmp_path: Path
) -> None:
    found = run(
        "evaluate", *DIGITS, "--id", digits_folder, "--ood", f"n={noise_npz}", "--method", "gaia-z", "--no-plots",
        "--json", "out.json",
    )  # fmt: skip
    assert found.exit_code == 0
    assert list(read()["results"]) == ["gaia-z"]
    assert read()["id_accuracy"] is None
    assert "unknown, they have no labels" in found.stdout
    assert not (tmp_path / "cwd" / "gaia-evaluation").exists()
    assert "histograms" not in found.stdout


def test_plots_go_where_they_are_asked_for(
    run: Callable[..., Result], digits_npz: Path, noise_npz: Path, tmp_path: Path
) -> None:
    arguments = ("evaluate", *DIGITS, "--id", digits_npz, "--ood", f"n={noise_npz}", "--method", "gaia-z")
    assert run(*arguments, "--plots", tmp_path / "x" / "y").exit_code == 0
    assert {path.name for path in (tmp_path / "x" / "y").iterdir()} == {"n.png", "roc"}


def test_without_matplotlib(
    run: Callable[..., Result], digits_npz: Path, noise_npz: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "missing", lambda: "matplotlib is not here")
    arguments = ("evaluate", *DIGITS, "--id", digits_npz, "--ood", f"n={noise_npz}", "--method", "gaia-z")
    found = run(*arguments)
    assert found.exit_code == 0
    assert "no histograms: matplotlib is not here" in found.stderr
    found = run(*arguments, "--plots", "folder")
    assert (found.exit_code, found.stderr) == (1, "Error: --plots: matplotlib is not here\n")


def test_unreadable_images_in_any_set(run: Callable[..., Result], digits_npz: Path, damaged_folder: Path) -> None:
    found = run(
        "evaluate", *DIGITS, "--id", digits_npz, "--ood", f"other={damaged_folder}", "--method", "gaia-z",
        "--no-plots", "--json", "out.json",
    )  # fmt: skip
    assert found.exit_code == 3
    assert read()["results"]["gaia-z"]["other"]["n_ood"] == 6
    assert [each["image"] for each in read()["unreadable"]["ood"]["other"]] == ["a/broken.png", "zero.jpg"]
    assert "unreadable: other: a/broken.png: " in found.stderr
    assert "2 unreadable images were left out" in found.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--ood", "noise.npz"), "write NAME=PATH"),
        (("--ood", "a/b=noise.npz"), "write NAME=PATH"),
        (("--ood", "a=x", "--ood", "a=y"), "a set 'a' already"),
        (("--ood", "a=x", "--plots", "p", "--no-plots"), "not both"),
        ((), "--ood NAME=PATH; where there are none, --surrogates"),
        (("--ood", "a=x", "--surrogates"), "--ood or --surrogates, not both"),
        (("--ood", "a=x", "--scores", "rows.txt"), "must end in .csv, .json or .parquet"),
        (("--ood", "a=x", "--scores", "absent/rows.csv"), "the folder absent does not exist"),
        (("--ood", "a=x", "--scores", "a.json", "--json", "a.json"), "give two names"),
        (("--ood", "id=x"), "is the in-distribution set"),
        (("--ood", "a=x", "--layers", "gaia-b=layer3"), "'gaia-b' is not among the methods"),
        (("--ood", "a=x", "--method", "gaia-b"), "gaia-b"),
    ],
)
def test_wrong_usage(run: Callable[..., Result], digits_npz: Path, options: tuple[str, ...], message: str) -> None:
    found = run("evaluate", *DIGITS, "--id", digits_npz, *options)
    assert found.exit_code == 2
    assert message in found.stderr


def test_set_that_does_not_exist(run: Callable[..., Result], digits_npz: Path) -> None:
    found = run("evaluate", *DIGITS, "--id", digits_npz, "--ood", "a=absent")
    assert found.exit_code == 1
    assert found.stderr.startswith("Error: absent does not exist")
