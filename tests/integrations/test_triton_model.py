"""model.py, asked as Triton Inference Server asks it: answers are those of the exported file, to the bit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import triton_python_backend_utils as pb_utils
from torch import Tensor

from gaia_fast import Gaia, GaiaZ, load
from gaia_fast.data.digits import held_out_digits, held_out_pictures
from gaia_fast.errors import ArgumentError, BackendError
from gaia_fast.integrations.triton_inference_server import export_model
from gaia_fast.models import digits_resnet

import zoo
from triton_config import read_config
from triton_instances import answer, instance, refusal, request

INVALID, INTERNAL, CANCELLED = (
    pb_utils.TritonError.INVALID_ARG,
    pb_utils.TritonError.INTERNAL,
    pb_utils.TritonError.CANCELLED,
)


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """(20, 3, 8, 8) uint8 digits."""
    return np.repeat(held_out_pictures()[0][:20, None], 3, axis=1)


@pytest.fixture(scope="module")
def of_pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GaiaZ]:
    """A file that prepares pictures of any size itself, and its detector."""
    x, _ = held_out_digits()
    detector = GaiaZ(digits_resnet(pretrained=True), engine="hooks").calibrate(x[:200])
    return export_model(detector, tmp_path_factory.mktemp("models"), x[:4], preset="digits"), detector


@pytest.fixture(scope="module")
def of_images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Gaia]:
    """A file of several scores, for images of two sizes, and its detector."""
    detector = Gaia(zoo.build("parallel"), scores=("gaia-z", "gaia-a", "msp"))
    detector.thresholds = {"gaia-z": 2.5, "msp": -0.5}
    examples = [zoo.images(3, 16), zoo.images(3, 24)]
    return export_model(detector, tmp_path_factory.mktemp("models"), examples, name="several"), detector


def calls(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of what the exported file is asked to score from now on."""
    shapes: list[tuple[int, ...]] = []
    score = model._detector.outputs

    def recorded(x: Tensor) -> dict[str, Tensor]:
        assert torch.is_inference_mode_enabled()
        shapes.append(tuple(x.shape))
        return score(x)

    monkeypatch.setattr(model._detector, "outputs", recorded)
    return shapes


def check_configured(path: Path, found: dict[str, np.ndarray]) -> None:
    """An answer has the outputs, types and sizes that config.pbtxt promises."""
    config = read_config(path.parents[1] / "config.pbtxt")
    assert list(found) == [each["name"] for each in config["output"]]
    for each in config["output"]:
        assert found[each["name"]].dtype == pb_utils.triton_string_to_numpy(each["data_type"])
        assert list(found[each["name"]].shape[1:]) == each["dims"]


def test_an_answer_is_the_files_and_the_detectors(of_pictures: tuple[Path, GaiaZ], pictures: np.ndarray) -> None:
    path, detector = of_pictures
    (response,) = instance(path).execute([request(pictures)])
    found = answer(response)
    check_configured(path, found)
    for name, expected in load(path).outputs(torch.from_numpy(pictures)).items():
        assert np.array_equal(found[name].squeeze(-1) if name != "logits" else found[name], expected.numpy())
    own = detector.score(held_out_digits()[0][:20])
    assert np.allclose(found["score"][:, 0], own.score.numpy(), rtol=1e-4)
    assert np.allclose(found["logits"], own.logits.numpy(), rtol=1e-4, atol=1e-4)


def test_requests_of_one_size_are_scored_in_one_call(
    of_pictures: tuple[Path, GaiaZ], pictures: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = of_pictures
    model = instance(path)
    shapes = calls(model, monkeypatch)
    larger = np.random.default_rng(0).integers(0, 256, (5, 3, 20, 31), dtype=np.uint8)
    asked = [pictures[:1], larger[:2], pictures[1:4], pictures[4:5], larger[2:]]
    found = [answer(each) for each in model.execute([request(each) for each in asked])]
    assert shapes == [(5, 3, 8, 8), (5, 3, 20, 31)]
    for places, together in (((0, 2, 3), pictures[:5]), ((1, 4), larger)):
        expected = load(path).outputs(torch.from_numpy(together))["score"].numpy()
        assert np.array_equal(np.concatenate([found[place]["score"][:, 0] for place in places]), expected)
    assert [len(each["is_ood"]) for each in found] == [1, 2, 3, 1, 3]


def test_several_scores_and_sizes(of_images: tuple[Path, Gaia]) -> None:
    path, detector = of_images
    asked = [zoo.images(2, 16), zoo.images(3, 24)]
    for x, response in zip(asked, instance(path).execute([request(each) for each in asked]), strict=True):
        found = answer(response)
        check_configured(path, found)
        assert list(found) == ["logits", "gaia_z", "gaia_a", "msp", "is_ood_gaia_z", "is_ood_msp"]
        out = detector.score(x)
        for name, score in out.scores.items():
            assert np.allclose(found[name.replace("-", "_")][:, 0], score.numpy(), rtol=1e-4, atol=1e-6)


def test_a_bad_request_is_refused_by_itself(of_pictures: tuple[Path, GaiaZ], pictures: np.ndarray) -> None:
    path, _ = of_pictures
    bad = {
        "four channels": (request(np.zeros((1, 4, 8, 8), np.uint8)), "images are torch.uint8 (1, 4, 8, 8)"),
        "floats": (request(np.zeros((1, 3, 8, 8), np.float32)), "exported for torch.uint8"),
        "no batch": (request(pictures[0]), "(N, C, H, W)"),
        "none": (request(pictures[:0]), "one or more"),
        "text": (request(np.array([["a"]], object)), "cannot be images"),
        "another name": (request(pictures, "image"), 'no input "images"'),
    }
    asked = [request(pictures[:1]), *(each for each, _ in bad.values()), request(pictures[1:2])]
    first, *refused, last = instance(path).execute(asked)
    expected = load(path).outputs(torch.from_numpy(pictures[:2]))["score"].numpy()
    assert np.array_equal([answer(first)["score"][0, 0], answer(last)["score"][0, 0]], expected)
    for (name, (_, message)), response in zip(bad.items(), refused, strict=True):
        code, said = refusal(response)
        assert code == INVALID, name
        assert message in said, name


def test_a_request_that_the_program_fails_on_fails_alone(
    of_pictures: tuple[Path, GaiaZ], pictures: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = instance(of_pictures[0])
    score, poison = model._detector.outputs, np.full((1, 3, 8, 8), 77, np.uint8)

    def fails(x: Tensor) -> dict[str, Tensor]:
        if (x == 77).flatten(1).all(1).any():
            raise BackendError("out of memory")
        return score(x)

    monkeypatch.setattr(model._detector, "outputs", fails)
    responses = model.execute([request(pictures[:2]), request(poison), request(pictures[2:3])])
    assert [len(answer(responses[place])["score"]) for place in (0, 2)] == [2, 1]
    assert refusal(responses[1]) == (INTERNAL, "out of memory")


def test_a_request_that_was_taken_back_is_not_scored(
    of_pictures: tuple[Path, GaiaZ], pictures: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = instance(of_pictures[0])
    shapes = calls(model, monkeypatch)
    cancelled = request(pictures[:1])
    cancelled.cancelled = True
    first, second = model.execute([cancelled, request(pictures[1:2])])
    assert refusal(first)[0] == CANCELLED
    assert len(answer(second)["score"]) == 1
    assert shapes == [(1, 3, 8, 8)]


def test_no_requests_and_none_after_the_end(of_pictures: tuple[Path, GaiaZ], pictures: np.ndarray) -> None:
    model = instance(of_pictures[0])
    assert model.execute([]) == []
    model.finalize()
    assert not hasattr(model, "_detector")


@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_what_cannot_be_scored_is_nan_and_out_of_distribution(tmp_path: Path, format: str) -> None:
    model, good, bad = zoo.sometimes_closed()
    detector = GaiaZ(model, engine="hooks")
    detector.threshold = 1e6
    path = export_model(detector, tmp_path, good[:3], format=format)
    assert path == tmp_path / "gaia" / "1" / f"model.{format}"
    first, second = map(answer, instance(path).execute([request(good), request(bad)]))
    expected = load(path).outputs(torch.cat([good, bad]))["score"].numpy()
    assert np.array_equal(np.concatenate([first["score"], second["score"]])[:, 0], expected, equal_nan=True)
    assert np.isnan(second["score"]).all()
    assert not first["is_ood"].any()
    assert second["is_ood"].all()


def test_a_number_of_images_that_the_model_fixes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = export_model(GaiaZ(zoo.FixedBatch(3).eval()), tmp_path, zoo.images(3))
    config = read_config(tmp_path / "gaia" / "config.pbtxt")
    assert config["max_batch_size"] == 0
    assert "dynamic_batching" not in config
    assert config["input"][0]["dims"] == [3, 3, 16, 16]
    assert config["output"][1]["dims"] == [3, 1]
    model = instance(path)
    shapes = calls(model, monkeypatch)
    first, second = map(answer, model.execute([request(zoo.images(3)), request(zoo.images(3).flip(0))]))
    assert shapes == [(3, 3, 16, 16)] * 2
    assert np.allclose(first["score"], second["score"][::-1], rtol=1e-5)


def test_threads_are_those_of_the_configuration(
    of_pictures: tuple[Path, GaiaZ], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    instance(of_pictures[0])
    assert given == []
    instance(of_pictures[0], threads="3")
    assert given == [3]


def test_an_instance_of_another_kind_is_refused(of_pictures: tuple[Path, GaiaZ]) -> None:
    with pytest.raises(ArgumentError, match=r"runs on cpu, and the instance gaia_0_0 is of kind GPU.*KIND_CPU"):
        instance(of_pictures[0], kind="GPU")


def test_a_package_for_a_gpu_takes_the_gpu_of_the_instance(
    of_pictures: tuple[Path, GaiaZ], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_file(path: Path) -> None:
        raise RuntimeError("as far as a machine without a GPU goes")

    given: list[int] = []
    monkeypatch.setattr("gaia_fast.read_metadata", lambda path: {"device": "cuda"})
    monkeypatch.setattr("gaia_fast.load", no_file)
    monkeypatch.setattr(torch.cuda, "set_device", given.append)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: given[-1])
    with pytest.raises(ArgumentError, match="KIND_GPU"):
        instance(of_pictures[0])
    with pytest.raises(RuntimeError, match="as far as"):
        instance(of_pictures[0], kind="GPU")
    assert given == [0]


def test_a_folder_without_the_file(of_pictures: tuple[Path, GaiaZ], tmp_path: Path) -> None:
    version = tmp_path / "gaia" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(of_pictures[0].with_name("model.py").read_text())
    (version.parent / "config.pbtxt").write_text((of_pictures[0].parents[1] / "config.pbtxt").read_text())
    with pytest.raises(ArgumentError, match=r"model\.onnx and model\.pt2 is to be there, and 0 are"):
        instance(version / "model.onnx")
