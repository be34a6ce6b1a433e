import contextlib
import csv
import importlib.util
import io
import json
import os
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from click.testing import Result
from PIL import Image
from pyarrow import parquet
from torch import Tensor

from gaia_fast import GaiaA, GaiaOutput, GaiaZ
from gaia_fast.calibration import threshold_for
from gaia_fast.data.digits import held_out_digits
from gaia_fast.models import digits_resnet

DIGITS = ("--arch", "digits_resnet", "--preset", "digits")


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture(scope="module")
def expected() -> tuple[np.ndarray, list[int]]:
    """Scores and classes of the first 40 held-out digits."""
    out = GaiaZ(digits_resnet(pretrained=True)).score(held_out_digits()[0][:40])
    return out.score.numpy(), out.logits.argmax(1).tolist()


def test_csv_on_stdout(run: Callable[..., Result], digits_npz: Path, expected: tuple[np.ndarray, list[int]]) -> None:
    found = run("score", digits_npz, *DIGITS)
    assert found.exit_code == 0
    rows = rows_of(found.stdout)
    assert list(rows[0]) == ["image", "predicted", "score"]
    assert [row["image"] for row in rows] == [str(index) for index in range(40)]
    assert [int(row["predicted"]) for row in rows] == expected[1]
    # Written so that the very float32 numbers come back.
    assert np.array_equal(np.array([row["score"] for row in rows], dtype=np.float32), expected[0])
    assert "gaia-z: 40 images scored" in found.stderr


def test_method_and_its_options(run: Callable[..., Result], digits_npz: Path) -> None:
    found = run(
        "score", digits_npz, *DIGITS, "--method", "gaia-a", "--layers", "layer3,layer4", "--fusion", "inner",
        "--statistic", "mean_abs", "--head", "linear", "--engine", "reference", "--batch-size", "64",
    )  # fmt: skip
    detector = GaiaA(
        digits_resnet(pretrained=True), layers=["layer3", "layer4"], fusion="inner", statistic="mean_abs",
        engine="reference",
    )  # fmt: skip
    scores = np.array([row["score"] for row in rows_of(found.stdout)], dtype=np.float32)
    assert np.array_equal(scores, detector.predict(held_out_digits()[0][:40]).numpy())


# Its logits of black images are no numbers.
FAULTY = """
from torch import nn

from gaia_fast.models import digits_resnet


class Faulty(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = digits_resnet(pretrained=True)

    def forward(self, x):
        return self.inner(x).masked_fill((x == x.amin()).flatten(1).all(1, keepdim=True), float("nan"))


def make():
    return Faulty()
"""


def test_csv_file_and_json(
    run: Callable[..., Result], digits_folder: Path, expected: tuple[np.ndarray, list[int]]
) -> None:
    found = run("score", digits_folder, *DIGITS, "--out", "rows.csv", "--threshold", "9.7", "--json", "out.json")
    assert found.exit_code == 0
    assert found.stdout == ""
    with open("rows.csv") as file:
        rows = rows_of(file.read())
    assert [row["image"] for row in rows] == ["a/0.png", "a/1.png", "a/2.png", "b/3.png", "b/4.png", "b/5.png"]
    above = expected[0][:6] > 9.7
    assert 0 < above.sum() < 6
    assert [row["is_ood"] for row in rows] == [str(bool(each)).lower() for each in above]
    with open("out.json") as file:
        record = json.load(file)
    assert record["command"] == "score"
    assert record["options"]["arch"] == "digits_resnet"
    assert record["versions"]["gaia_fast"]
    assert (record["method"], record["threshold"], record["count"], record["unreadable"]) == ("gaia-z", 9.7, 6, [])
    assert [image["is_ood"] for image in record["images"]] == above.tolist()
    assert [image["image"] for image in record["images"]] == [row["image"] for row in rows]


def test_parquet(
    run: Callable[..., Result],
    digits_npz: Path,
    expected: tuple[np.ndarray, list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gaia_fast.cli.tables._ROWS_AT_ONCE", 20)
    monkeypatch.setattr("gaia_fast.batch_scoring.chunks.IMAGES_IN_A_CHUNK", 7)
    found = run("score", digits_npz, *DIGITS, "--out", "rows.parquet", "--threshold", "9.7", "--batch-size", "7")
    assert found.exit_code == 0
    table = parquet.read_table("rows.parquet").to_pydict()
    assert list(table) == ["image", "predicted", "score", "is_ood"]
    assert table["image"] == [str(index) for index in range(40)]
    assert table["predicted"] == expected[1]
    assert table["score"] == pytest.approx(expected[0].tolist(), rel=1e-6)
    assert table["is_ood"] == [score > 9.7 for score in table["score"]]
    assert parquet.ParquetFile("rows.parquet").num_row_groups == 2


@pytest.mark.parametrize("name", ["digits.parquet", "shards/0.tar"])
def test_parquet_and_webdataset(
    run: Callable[..., Result], digits_npz: Path, expected: tuple[np.ndarray, list[int]], name: str
) -> None:
    pictures = np.load(digits_npz)["x"]
    encoded = []
    for picture in pictures:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    Path(name).parent.mkdir(exist_ok=True)
    if name.endswith(".tar"):
        with tarfile.open(name, "w") as archive:
            for index, content in enumerate(encoded):
                info = tarfile.TarInfo(f"{index}.png")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    else:
        names = [f"0.tar/{index}.png" for index in range(len(encoded))]
        parquet.write_table(pyarrow.table({"image": encoded, "path": names}), name, row_group_size=7)
    found = run("score", "shards" if name.endswith(".tar") else name, *DIGITS)
    assert found.exit_code == 0, found.stderr
    rows = rows_of(found.stdout)
    assert [row["image"] for row in rows] == [f"0.tar/{index}.png" for index in range(40)]
    assert np.array_equal(np.array([row["score"] for row in rows], dtype=np.float32), expected[0])


def test_what_is_skipped_by_its_ending(run: Callable[..., Result], digits_folder: Path) -> None:
    for name in ("a.txt", "b.TXT", "c.tif", "README", "a/d.x\x1b", "e.1", "f.2", "g.3"):
        (digits_folder / name).write_text("none")
    found = run("score", digits_folder, *DIGITS, "--calibrate-on", digits_folder, "--json", "out.json")
    assert found.exit_code == 0
    skipped = "2 .txt, 1 without an ending, 1 .1, 1 .2, 1 .3, 2 of 2 other endings"
    assert f"skipped: {skipped}\n" in found.stderr
    assert f"skipped: {digits_folder}: {skipped}\n" in found.stderr
    counted = json.loads(Path("out.json").read_text())["skipped"]
    assert counted == {".txt": 2, ".tif": 1, "": 1, ".x\x1b": 1, ".1": 1, ".2": 1, ".3": 1}


def test_parquet_without_pyarrow(run: Callable[..., Result], digits_npz: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pyarrow" else find(name))
    found = run("score", digits_npz, *DIGITS, "--out", "rows.parquet")
    assert found.exit_code == 1
    assert "gaia-fast[parquet]" in found.stderr


@pytest.mark.parametrize(("tpr", "accepted"), [((), 38), (("--id-tpr", "0.5"), 20), (("--id-tpr", "1"), 40)])
def test_calibration(
    run: Callable[..., Result],
    digits_npz: Path,
    expected: tuple[np.ndarray, list[int]],
    tpr: tuple[str, ...],
    accepted: int,
) -> None:
    found = run("score", digits_npz, *DIGITS, "--calibrate-on", digits_npz, *tpr, "--json", "out.json")
    assert found.exit_code == 0
    assert [row["is_ood"] for row in rows_of(found.stdout)].count("false") == accepted
    with open("out.json") as file:
        record = json.load(file)
    assert record["threshold"] == threshold_for(expected[0], accepted / 40)
    assert record["calibration"] == {"images": 40, "unreadable": []}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--threshold", "1", "--calibrate-on", "x"), "--threshold or --calibrate-on, not both"),
        (("--id-tpr", "0.9"), "needs --calibrate-on"),
        (("--calibrate-on", "x", "--id-tpr", "0"), "--id-tpr"),
        (("--out", "rows.txt"), ".csv or .parquet"),
        (("--out", "rows.csv", "--json", "rows.csv"), "--out and --json are both rows.csv"),
        (("--out", "rows.csv", "--json", "../cwd/rows.csv"), "--out and --json are both"),
        (("--layers", "gaia-a=layer3"), "'gaia-a' is not among the methods gaia-z"),
        (("--layers", ","), "names no module"),
    ],
)
def test_wrong_usage(run: Callable[..., Result], digits_npz: Path, options: tuple[str, ...], message: str) -> None:
    found = run("score", digits_npz, *DIGITS, *options)
    assert found.exit_code == 2
    assert message in found.stderr


@pytest.mark.parametrize("threshold", ["nan", "inf", "-inf"])
def test_a_threshold_that_decides_nothing(run: Callable[..., Result], digits_npz: Path, threshold: str) -> None:
    found = run("score", digits_npz, *DIGITS, "--threshold", threshold)
    assert found.exit_code == 1
    assert f"the threshold is {threshold}, which decides nothing" in found.stderr


@pytest.mark.parametrize("out", [(), ("--out", "rows.csv")], ids=["streamed", "in parts"])
def test_images_without_a_score_are_named_and_left_out(
    run: Callable[..., Result], digits_npz: Path, out: tuple[str, ...]
) -> None:
    Path("faulty_network.py").write_text(FAULTY)
    pictures = np.load(digits_npz)["x"]
    pictures[7] = 0
    np.savez(digits_npz, x=pictures)
    found = run("score", digits_npz, "--model", "faulty_network:make", *DIGITS[2:], "--batch-size", "5", *out)
    assert found.exit_code == 3, found.stderr
    assert "unreadable: 7: it cannot be scored: " in found.stderr
    rows = rows_of(Path("rows.csv").read_text() if out else found.stdout)
    assert [row["image"] for row in rows] == [str(index) for index in range(40) if index != 7]


def test_a_model_that_scores_nothing_writes_no_table(run: Callable[..., Result], digits_npz: Path) -> None:
    Path("faulty_network.py").write_text(FAULTY)
    np.savez(digits_npz, x=np.zeros((3, 8, 8, 3), np.uint8))
    found = run("score", digits_npz, "--model", "faulty_network:make", *DIGITS[2:], "--out", "rows.csv")
    assert found.exit_code == 1
    assert "none of the 3 images can be read and scored" in found.stderr
    assert not Path("rows.csv").exists()


def test_unreadable_images_are_named_and_left_out(
    run: Callable[..., Result], damaged_folder: Path, expected: tuple[np.ndarray, list[int]]
) -> None:
    found = run("score", damaged_folder, *DIGITS, "--batch-size", "2", "--json", "out.json")
    assert found.exit_code == 3
    rows = rows_of(found.stdout)
    assert [int(row["predicted"]) for row in rows] == expected[1][:6]
    lines = found.stderr.splitlines()
    assert [line.split(": ")[1] for line in lines if line.startswith("unreadable: ")] == ["a/broken.png", "zero.jpg"]
    assert "2 unreadable images were left out" in lines
    with open("out.json") as file:
        assert [each["image"] for each in json.load(file)["unreadable"]] == ["a/broken.png", "zero.jpg"]


def test_names_that_are_commands_to_a_terminal(run: Callable[..., Result], digits_folder: Path) -> None:
    for name in ("\x1b[2J.png", "a\nError: b.png", os.fsdecode(b"\xff.png")):
        (digits_folder / name).write_text("none")
    found = run("score", digits_folder, *DIGITS)
    assert found.exit_code == 3
    named = [line.split(": not a ")[0] for line in found.stderr.splitlines() if ": not a " in line]
    assert named == [f"unreadable: {name}" for name in (r"'\x1b[2J.png'", r"'a\nError: b.png'", r"'\udcff.png'")]


def test_unreadable_calibration_images_count_too(
    run: Callable[..., Result], damaged_folder: Path, digits_npz: Path
) -> None:
    found = run("score", digits_npz, *DIGITS, "--calibrate-on", damaged_folder)
    assert found.exit_code == 3
    assert len(rows_of(found.stdout)) == 40
    assert f"unreadable: {damaged_folder}: a/broken.png" in found.stderr


def fails_at_the_third_batch(
    monkeypatch: pytest.MonkeyPatch, seen: Callable[[], object] = lambda: None
) -> list[object]:
    right, batches = GaiaZ.score, []

    def score(self: GaiaZ, x: Tensor, **options: Any) -> GaiaOutput:
        batches.append(seen())
        if len(batches) == 3:
            raise OSError("the power went")
        return right(self, x, **options)

    monkeypatch.setattr(GaiaZ, "score", score)
    return batches


def test_rows_come_on_stdout_while_images_are_read(
    run: Callable[..., Result], digits_npz: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of a batch are out before the next batch is scored."""
    flushed: list[str] = []
    out = fails_at_the_third_batch(monkeypatch, lambda: len(rows_of("".join(flushed))))
    monkeypatch.setattr("gaia_fast.cli.tables._text_file", lambda out: contextlib.nullcontext(Lines(flushed)))
    found = run("score", digits_npz, *DIGITS, "--batch-size", "10")
    assert (found.exit_code, found.stderr.splitlines()[-1]) == (1, "Error: the power went")
    assert out == [0, 10, 20]


class Lines(io.StringIO):
    """Text that counts once it is flushed."""

    def __init__(self, flushed: list[str]) -> None:
        super().__init__()
        self.flushed = flushed

    def flush(self) -> None:
        self.flushed[:] = [self.getvalue()]


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
def test_a_run_that_fails_leaves_the_earlier_file(
    run: Callable[..., Result], digits_npz: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert run("score", digits_npz, *DIGITS, "--out", name).exit_code == 0
    before = Path(name).read_bytes()
    monkeypatch.setattr("gaia_fast.cli.tables._ROWS_AT_ONCE", 5)
    fails_at_the_third_batch(monkeypatch)
    found = run("score", digits_npz, *DIGITS, "--batch-size", "10", "--out", name, "--threshold", "1")
    assert (found.exit_code, found.stderr.splitlines()[-1]) == (1, "Error: the power went")
    assert Path(name).read_bytes() == before
    assert [each.name for each in Path().iterdir()] == [name]


def test_no_readable_image_leaves_the_earlier_file(run: Callable[..., Result], tmp_path: Path) -> None:
    Path("rows.csv").write_text("good")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_text("none")
    found = run("score", tmp_path / "pictures", *DIGITS, "--out", "rows.csv")
    assert found.exit_code == 1
    assert "none of the 1 images" in found.stderr
    assert Path("rows.csv").read_text() == "good"


@pytest.mark.parametrize(
    ("images", "message"), [("absent", "absent does not exist"), ("cwd.txt", "neither an image"), (".", "no image")]
)
def test_images_that_are_none(run: Callable[..., Result], images: str, message: str) -> None:
    with open("cwd.txt", "w") as file:
        file.write("text")
    found = run("score", images, *DIGITS)
    assert found.exit_code == 1
    assert message in found.stderr.lower()
    assert found.stderr.count("\n") == 1


@pytest.mark.usefixtures("deadline")
def test_hostile_images_are_named_and_left_out(run: Callable[..., Result], digits_folder: Path) -> None:
    os.mkfifo(digits_folder / "a" / "pipe.png")
    Image.new("RGB", (40, 30)).save(digits_folder / "large.png")
    found = run("score", digits_folder, *DIGITS, "--max-pixels", "1100")
    assert found.exit_code == 3
    assert len(rows_of(found.stdout)) == 6
    assert "unreadable: a/pipe.png: it is a named pipe, no file\n" in found.stderr
    assert "unreadable: large.png: 40x30 pixels are more than 1100, the limit (max_pixels)\n" in found.stderr
    found = run("score", digits_folder / "a" / "pipe.png", *DIGITS)
    assert (found.exit_code, found.stderr.count("\n")) == (1, 1)
    assert "pipe.png is a named pipe, no file" in found.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("layers", "{}"), ("export", "model.onnx", "--images", "{}"), ("validate", "{}"), ("score", "{}"),
        ("score", "good.png", "--calibrate-on", "{}"), ("evaluate", "--id", "{}", "--ood", "a=good.png"),
        ("evaluate", "--id", "good.png", "--ood", "a={}"),
    ],
)  # fmt: skip
def test_every_command_has_the_limit(run: Callable[..., Result], command: tuple[str, ...]) -> None:
    Image.new("RGB", (40, 30)).save("large.png")
    Image.new("RGB", (8, 8)).save("good.png")
    found = run(*(each.format("large.png") for each in command), *DIGITS, "--max-pixels", "1100")
    assert found.exit_code in (1, 3)
    assert "40x30 pixels are more than 1100, the limit (max_pixels)" in found.stderr
    assert not Path("model.onnx").exists()
    found = run(*(each.format("large.png") for each in command), *DIGITS, "--max-pixels", str(10**12))
    assert found.exit_code == 1
    assert "PIL.Image.MAX_IMAGE_PIXELS" in found.stderr


@pytest.mark.usefixtures("deadline")
def test_results_go_through_a_pipe(run: Callable[..., Result], digits_npz: Path) -> None:
    os.mkfifo("out.json")
    os.mkfifo("rows.csv")
    found: dict[str, str] = {}
    readers = [
        threading.Thread(target=lambda name=name: found.setdefault(name, Path(name).read_text()))
        for name in ("out.json", "rows.csv")
    ]
    for each in readers:
        each.start()
    assert run("score", digits_npz, *DIGITS, "--json", "out.json", "--out", "rows.csv").exit_code == 0
    for each in readers:
        each.join()
    assert json.loads(found["out.json"])["count"] == len(rows_of(found["rows.csv"])) == 40
    assert sorted(os.listdir()) == ["out.json", "rows.csv"]


def test_a_result_that_cannot_be_written_is_one_line(run: Callable[..., Result], digits_npz: Path) -> None:
    Path("out.json").symlink_to("absent/out.json")
    found = run("score", digits_npz, *DIGITS, "--json", "out.json")
    assert found.exit_code == 1
    assert found.stderr.splitlines()[-1].startswith("Error: out.json cannot be written (No such file or directory)")


def test_near_miss_of_a_layer(run: Callable[..., Result], digits_npz: Path) -> None:
    found = run("score", digits_npz, *DIGITS, "--layers", "layr3")
    assert found.exit_code == 1
    assert "no module named 'layr3'; did you mean 'layer3'" in found.stderr
    assert found.stdout == ""


def test_model_that_does_not_take_the_images(run: Callable[..., Result], digits_npz: Path, tmp_path: Path) -> None:
    found = run("score", digits_npz, "--arch", "digits_resnet", "--preset", "cifar10")
    # Digits of 8x8 pixels are smaller than the crop: each is unreadable, and then there is nothing to score.
    assert found.exit_code == 1
    assert found.stderr.count("smaller than the 32x32 crop") >= 1
    assert "none of the 40 images" in found.stderr


def test_several_methods_share_a_pass_and_have_a_column_each(
    run: Callable[..., Result], digits_npz: Path, noise_npz: Path, expected: tuple[np.ndarray, list[int]]
) -> None:
    methods = ("--method", "gaia-z", "--method", "msp", "--method", "gaia-a", "--layers", "gaia-a=layer3,layer4")
    found = run("score", digits_npz, *DIGITS, *methods)
    assert found.exit_code == 0, found.output
    rows = rows_of(found.stdout)
    assert list(rows[0]) == ["image", "predicted", "gaia-z", "msp", "gaia-a"]
    x, model = held_out_digits()[0][:40], digits_resnet(pretrained=True)
    columns = {name: np.array([row[name] for row in rows], dtype=np.float32) for name in ("gaia-z", "msp", "gaia-a")}
    assert np.array_equal(columns["gaia-z"], expected[0])
    assert np.array_equal(columns["gaia-a"], GaiaA(model, layers=["layer3", "layer4"])(x).numpy())
    np.testing.assert_allclose(columns["msp"], -model(x).detach().softmax(1).amax(1).numpy(), rtol=1e-6)
    assert "msp: 40 images scored" in found.stderr

    arguments = ("--calibrate-on", digits_npz, "--id-tpr", "0.5", "--out", "rows.parquet", "--json", "out.json")
    assert run("score", noise_npz, *DIGITS, *methods, *arguments).exit_code == 0
    table = parquet.read_table("rows.parquet").to_pydict()
    assert list(table)[2:] == ["gaia-z", "is_ood_gaia-z", "msp", "is_ood_msp", "gaia-a", "is_ood_gaia-a"]
    with open("out.json") as file:
        record = json.load(file)
    assert record["methods"] == ["gaia-z", "msp", "gaia-a"]
    for name in record["methods"]:
        threshold = record["thresholds"][name]
        assert threshold == pytest.approx(threshold_for(columns[name], 0.5), rel=1e-6)
        assert table[f"is_ood_{name}"] == [score > threshold for score in table[name]]


def test_a_score_of_the_logits_alone(run: Callable[..., Result], digits_npz: Path) -> None:
    found = run("score", digits_npz, *DIGITS, "--method", "energy", "--threshold", "-9")
    assert found.exit_code == 0, found.output
    rows = rows_of(found.stdout)
    assert list(rows[0]) == ["image", "predicted", "score", "is_ood"]
    expected = -digits_resnet(pretrained=True)(held_out_digits()[0][:40]).detach().logsumexp(1)
    np.testing.assert_allclose([float(row["score"]) for row in rows], expected.numpy(), rtol=1e-5)
    assert [row["is_ood"] for row in rows] == [str(bool(each > -9)).lower() for each in expected]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "odin"), "'odin' is not one of"),
        (("--method", "msp", "--layers", "layer3"), "--layers belongs to gaia-a and gaia-z"),
        (("--method", "msp", "--method", "gaia-z", "--layers", "msp=layer3"), "'msp' is not among the methods gaia-z"),
        (("--method", "msp", "--method", "gaia-z", "--threshold", "1"), "such as msp=1"),
        (("--threshold", "msp=1"), "'msp' is not among the methods gaia-z"),
        (("--threshold", "much"), "'much' is not a number"),
    ],
    ids=str,
)
def test_wrong_methods(run: Callable[..., Result], digits_npz: Path, options: tuple[str, ...], message: str) -> None:
    found = run("score", digits_npz, *DIGITS, *options)
    assert found.exit_code == 2
    assert message in " ".join(found.stderr.replace("│", " ").split())


def test_many_images_are_scored_by_a_program(
    run: Callable[..., Result], digits_npz: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = run("score", digits_npz, *DIGITS)
    assert "engine hooks: 40 images are too few to compile for; --engine compiled does it all the same" in few.stderr
    monkeypatch.setattr("gaia_fast.cli.preparing.WORTH_COMPILING", 40)
    many = run("score", digits_npz, *DIGITS)
    assert "engine compiled: prepared for such images" in many.stderr
    assert "UnpreparedWarning" not in few.stderr + many.stderr
    for one, other in zip(rows_of(few.stdout), rows_of(many.stdout), strict=True):
        assert (one["image"], one["predicted"]) == (other["image"], other["predicted"])
        assert float(one["score"]) == pytest.approx(float(other["score"]), rel=1e-4)
    monkeypatch.setattr("gaia_fast.cli.preparing.WORTH_COMPILING", 0)
    sizes = run("score", digits_npz, "--arch", "digits_resnet", "--preset", "none")
    assert "engine hooks: the images' sizes may differ" in sizes.stderr


def test_an_engine_that_is_asked_for_is_not_spoken_of(run: Callable[..., Result], digits_npz: Path) -> None:
    assert "engine" not in run("score", digits_npz, *DIGITS, "--engine", "hooks").stderr
