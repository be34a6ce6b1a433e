"""Files that prepare pictures: the preset's own pixels, for pictures of any size; and what they do not take."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gaia_fast import Gaia, GaiaA, GaiaZ, read_metadata
from gaia_fast.compiler.package import preprocessing
from gaia_fast.compiler.package.metadata import Accepted
from gaia_fast.compiler.package.preprocessing import FILTERS, Preprocessing
from gaia_fast.compiler.package.reading import open_program
from gaia_fast.data import Preset
from gaia_fast.data.presets import preset_of, preset_record
from gaia_fast.errors import ArgumentError, CompilationError, InputError

import zoo
from exported import load_one, load_several

SHORTER = Preset("shorter", (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), resize=20, crop=16, interpolation="bicubic")
STRETCHED = replace(SHORTER, name="stretched", resize=(16, 16), crop=None, interpolation="bilinear")
CROPPED = replace(SHORTER, name="cropped", resize=None)
FIXED = replace(SHORTER, name="fixed", resize=None, crop=None)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noise: every rounding shows."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def batch(height: int, width: int, count: int = 2) -> tuple[np.ndarray, Tensor]:
    """(N, H, W, 3) pictures, and the same as a file takes them."""
    pictures = np.stack([picture(height, width, seed) for seed in range(count)])
    return pictures, torch.from_numpy(pictures).permute(0, 3, 1, 2)


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(
    "sizes",
    [
        {"resize": 72, "crop": 64}, {"resize": (97, 40)}, {"resize": 8, "crop": (8, 30)}, {"crop": (20, 31)},
        {"resize": (33, 64), "crop": (20, 64)}, {"resize": 3, "crop": 3}, {},
    ],
    ids=str,
)  # fmt: skip
def test_the_pixels_are_the_presets_bit_for_bit(interpolation: str, sizes: dict[str, int | tuple[int, int]]) -> None:
    preset = Preset("p", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), interpolation=interpolation, **sizes)  # type: ignore[arg-type]
    prepare = Preprocessing(preset, torch.float32, torch.device("cpu"))
    for height, width in ((64, 64), (31, 157), (230, 99), (21, 333), (700, 33), (8, 40), (72, 65), (500, 375)):
        if sizes.keys() == {"crop"} and (height < 20 or width < 31):
            continue
        if "crop" in sizes and sizes["crop"] == (8, 30) and width < 4 * height:
            continue
        given = picture(height, width)
        (found,) = prepare(torch.from_numpy(given).permute(2, 0, 1)[None])
        assert torch.equal(found, preset(given)), (height, width)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_onnxruntime_makes_the_same_pixels(tmp_path: Path, interpolation: str) -> None:
    """Bit for bit. By lanczos it may be a level off: the sine is its own."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    prepare = Preprocessing(replace(SHORTER, interpolation=interpolation), torch.float32, torch.device("cpu"))
    names = ({0: "images", 2: "height", 3: "width"},)
    torch.onnx.export(
        prepare, (batch(53, 71)[1],), tmp_path / "model.onnx", dynamo=True, dynamic_shapes=names, verbose=False
    )
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (images,) = session.get_inputs()
    for height, width in ((16, 16), (40, 30), (17, 100), (123, 45), (311, 207)):
        pictures, given = batch(height, width)
        (found,) = session.run(None, {images.name: given.numpy()})
        levels = [torch.from_numpy(found), torch.stack([prepare.preset(each) for each in pictures])]
        ours, theirs = ((each * prepare.std + prepare.mean) * 255 for each in levels)
        assert torch.equal(ours.round(), theirs.round()), (height, width)


@pytest.mark.parametrize("preset", [SHORTER, STRETCHED], ids=lambda preset: preset.name)
def test_onnxruntime_alone_scores_pictures_as_preset_and_detector_do(tmp_path: Path, preset: Preset) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    detector = GaiaA(zoo.build("strided_shortcut"), engine="hooks")
    pictures = [picture(40, 30, seed) for seed in range(9)]
    scores = detector(torch.stack([preset(each) for each in pictures]))
    detector.threshold = float(scores.sort().values[4:6].mean())
    session = onnxruntime.InferenceSession(
        detector.export(tmp_path / "model.onnx", zoo.images(3), preset=preset), providers=["CPUExecutionProvider"]
    )
    decided = set()
    for height, width in ((40, 30), (16, 16), (17, 100), (123, 45)):
        files = [Image.fromarray(picture(height, width, seed)) for seed in range(4)]
        given = np.stack([np.asarray(each).transpose(2, 0, 1) for each in files])
        logits, score, is_ood = session.run(["logits", "score", "is_ood"], {"images": given})
        expected = detector.score(torch.stack([preset(each) for each in files]))
        np.testing.assert_allclose(logits, expected.logits, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(score, expected.score, rtol=1e-5)
        assert expected.is_ood is not None
        assert is_ood.tolist() == expected.is_ood.tolist()
        decided |= {*is_ood.tolist()}
    assert decided == {True, False}


def test_a_package_takes_pictures_of_any_size(tmp_path: Path) -> None:
    detector = Gaia(zoo.build("parallel"), scores=("gaia-z", "msp"), engine="hooks")
    preset = replace(SHORTER, interpolation="lanczos")
    exported = load_several(detector.export(tmp_path / "model.pt2", zoo.images(3), preset=preset))
    for height, width, count in ((16, 16, 1), (41, 30, 3), (17, 100, 2)):
        pictures, given = batch(height, width, count)
        logits, scores = exported.score(given)
        expected = detector.score(torch.stack([preset(each) for each in pictures]))
        torch.testing.assert_close(logits, expected.logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(scores, expected.scores, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("preset", [CROPPED, FIXED], ids=lambda preset: preset.name)
def test_presets_that_do_not_resize(tmp_path: Path, preset: Preset) -> None:
    detector = GaiaZ(zoo.build("parallel"), engine="hooks")
    exported = load_one(detector.export(tmp_path / "model.onnx", zoo.images(3), preset=preset))
    for height, width in ((16, 16), (19, 40)):
        pictures, given = batch(height, width)
        if preset is FIXED and (height, width) != (16, 16):
            with pytest.raises(InputError, match=r"exported for torch.uint8 \(one or more, 3, 16, 16\)"):
                exported.score(given)
            continue
        expected = detector.score(torch.stack([preset(each) for each in pictures]))
        torch.testing.assert_close(exported.score(given).score, expected.score, rtol=1e-5, atol=0)


def test_the_metadata_say_what_is_done_to_pictures(tmp_path: Path) -> None:
    path = GaiaZ(zoo.build("parallel")).export(tmp_path / "model.onnx", zoo.images(3), preset=SHORTER)
    metadata = read_metadata(path)
    assert json.loads(metadata["images"]) == [None, 3, None, None]
    assert metadata["dtype"] == "uint8"
    assert json.loads(metadata["preprocessing"])["interpolation"] == "bicubic"
    assert preset_of(metadata["preprocessing"]) == SHORTER


def test_pictures_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    preset = replace(SHORTER, resize=20, crop=(16, 24))
    path = GaiaZ(zoo.build("parallel")).export(tmp_path / "model.onnx", zoo.images(3, 24)[:, :, :16], preset=preset)
    exported = load_one(path)
    _, good = batch(16, 24)
    assert exported(good).shape == (2,)
    for bad in (good.float(), good[:, :1], good[0], good[:0], good.permute(0, 2, 3, 1), good.to(torch.int32), None):
        with pytest.raises(InputError, match="images"):
            exported.score(bad)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"picture is 20x20 pixels, smaller than the 24x16 crop"):
        exported.score(batch(64, 64)[1])


def test_a_picture_smaller_than_the_crop_becomes_no_image() -> None:
    prepare = Preprocessing(replace(SHORTER, resize=20, crop=(16, 24)), torch.float32, torch.device("cpu"))
    for height, width, fits in ((64, 64, False), (50, 53, False), (64, 20, False), (20, 24, True)):
        found = prepare(batch(height, width)[1])
        assert bool(found.isfinite().all() if fits else found.isnan().all()), (height, width)


def test_a_picture_smaller_than_the_crop_has_no_score_where_onnxruntime_runs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Accepted, "check", lambda self, x: None)
    preset = replace(SHORTER, resize=20, crop=(16, 24))
    detector = GaiaZ(zoo.build("parallel"))
    detector.threshold = 1e9
    path = detector.export(tmp_path / "model.onnx", zoo.images(3, 24)[:, :, :16], preset=preset)
    alone = open_program(path)
    for height, width, fits in ((64, 64, False), (50, 53, False), (64, 20, False), (20, 24, True)):
        _, score, is_ood = alone(batch(height, width)[1])
        assert score.isfinite().tolist() == [fits] * 2, (height, width)
        assert is_ood.tolist() == [not fits] * 2


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        (
            replace(SHORTER, interpolation="nearest"),
            "'nearest', which a file does not; choose one of bilinear",
        ),
        (replace(SHORTER, resolution=18), "brings pictures down to 18 pixels first"),
        (replace(SHORTER, crop=None), "size depends on the picture"),
        (replace(SHORTER, crop=12), r"makes images of \(3, 12, 12\), and the example's are \(3, 16, 16\)"),
        (replace(SHORTER, resize=15), "smaller than its crop"),
        ("imagenot", "There is no preset 'imagenot'; choose one of cifar10"),
        ("imagenet", "makes images of"),
    ],
)
def test_presets_that_a_file_does_not_hold(tmp_path: Path, preset: Preset | str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        GaiaZ(zoo.build("parallel")).export(tmp_path / "model.onnx", zoo.images(3), preset=preset)
    assert not list(tmp_path.iterdir())


def test_a_preset_is_for_one_size(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="makes images of one size, and there are examples of 2"):
        GaiaZ(zoo.build("parallel")).export(tmp_path / "model.onnx", [zoo.images(2), zoo.images(2, 20)], preset=SHORTER)


def test_a_file_that_prepares_otherwise_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocessing, "_BITS", 3)
    with pytest.raises(CompilationError, match=r"model\.onnx is not written, since it would be off by"):
        GaiaA(zoo.build("parallel")).export(tmp_path / "model.onnx", zoo.images(3), preset=SHORTER)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "record",
    [
        "", "[", "3", "null", "[]", "{}", '{"name": "a"}', "[" * 100_000,
        preset_record(SHORTER).replace("bicubic", "no"),
        preset_record(SHORTER).replace('"crop": 16', '"crop": [1, 2, 3]'),
        preset_record(SHORTER).replace('"crop": 16', '"crop": {}'),
        preset_record(SHORTER).replace('"resize": 20', '"resize": "20"'),
        preset_record(SHORTER).replace('"name"', '"other"'),
    ],
)  # fmt: skip
def test_records_that_are_no_preset(record: str) -> None:
    with pytest.raises((ValueError, TypeError, RecursionError)):
        preset_of(record)
    assert preset_of(preset_record(STRETCHED)) == STRETCHED
