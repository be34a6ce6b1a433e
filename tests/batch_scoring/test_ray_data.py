"""Chunks scored by Ray's workers: what comes back, and what goes wrong there."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from gaia_fast import GaiaZ
from gaia_fast.batch_scoring import ray_data
from gaia_fast.batch_scoring.chunks import ChunkScorer, Prepared, score_chunks, split
from gaia_fast.batch_scoring.rows import columns
from gaia_fast.data import PRESETS, ImageSource
from gaia_fast.data.digits import held_out_pictures
from gaia_fast.errors import BackendError, DataError, ModelError
from gaia_fast.models import digits_resnet
from gaia_fast.options import Tune

from digit_sources import Damaged, source

pytest.importorskip("ray", reason="Ray is not installed")


@pytest.fixture(scope="module")
def workers() -> Iterator[ray_data.Workers]:
    threads = torch.get_num_threads()
    with ray_data.connected(None, 2) as found:
        yield found
    assert torch.get_num_threads() == threads


def scorer(model: nn.Module) -> ChunkScorer:
    return ChunkScorer({"gaia-z": GaiaZ(model, engine="hooks")}, columns(["gaia-z"], {"gaia-z": 10.0}), 4)


class Faulty(nn.Module):
    """A network that fails, or ends its process, on images of one colour all over."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.inner, self.how = digits_resnet(pretrained=True), how

    def forward(self, x: Tensor) -> Tensor:
        if bool((x == x[:, :1, :1, :1]).flatten(1).all(1).any()):
            if self.how == "ends":
                os._exit(1)
            return self.inner(x) * float("nan")
        return self.inner(x)


def digits(blank: int | None = None) -> ImageSource:
    pictures = held_out_pictures()[0][:30].copy()
    if blank is not None:
        pictures[blank] = 7
    return source(pictures)


def test_what_comes_back_is_what_is_found_here(workers: ray_data.Workers) -> None:
    model, images, chunks = digits_resnet(pretrained=True), Damaged(digits()), split(30, 8)
    expected = dict(score_chunks(scorer(model), images, chunks, lambda done: None))
    advanced: list[int] = []
    found = list(workers.score_chunks(scorer(model), images, chunks, advance=advanced.append))
    assert sorted(chunk for chunk, _ in found) == chunks
    assert dict(found) == expected
    assert expected[chunks[0]].unreadable == [("3", "damaged"), ("7", "damaged")]
    assert sorted(advanced) == [6, 8, 8, 8]


def test_an_image_without_a_score_is_left_out_there_as_here(workers: ray_data.Workers) -> None:
    failing = scorer(Faulty("fails").eval())
    here = dict(score_chunks(failing, digits(blank=13), split(30, 8), lambda done: None))
    assert dict(workers.score_chunks(failing, digits(blank=13), split(30, 8))) == here
    assert [name for part in here.values() for name, _ in part.unreadable] == ["13"]


def test_errors_are_those_that_are_raised_here(workers: ray_data.Workers, tmp_path: Path) -> None:
    gone = ImageSource(["a", "b"], [tmp_path / "a.png", tmp_path / "b.png"], PRESETS["digits"])
    scoring = scorer(digits_resnet(pretrained=True))
    with pytest.raises(DataError) as here:
        list(score_chunks(scoring, gone, split(2, 2), lambda done: None))
    with pytest.raises(DataError) as there:
        list(workers.score_chunks(scoring, gone, split(2, 2)))
    assert str(there.value) == str(here.value)


def test_images_that_end_every_worker_end_the_run(workers: ray_data.Workers) -> None:
    with pytest.raises(BackendError, match=r"the images from 8 to 15 ended without a word, 3 of 3 times"):
        list(workers.score_chunks(scorer(Faulty("ends").eval()), digits(blank=13), split(30, 8)))


@pytest.mark.parametrize("tune", list(Tune))
def test_programs_are_sent(tune: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker reads the program that was prepared before, and makes none of its own."""
    detector = GaiaZ(digits_resnet(pretrained=True), engine="compiled", runtime="native")
    scoring = ChunkScorer({"gaia-z": detector}, columns(["gaia-z"], {}), 8)
    example = next(digits().batches(8)).images
    detector.prepare(example, tune, tmp_path / "programs")
    packed = ray_data._packed(scoring, Prepared(example, tune), tmp_path / "programs")
    made: list[object] = []
    monkeypatch.setattr("gaia_fast.compiler.preparation._Preparation._new", lambda *args: made.append(args))
    monkeypatch.setattr("gaia_fast.compiler.program_cache.ProgramCache.store", made.append)
    arrived = ray_data._unpacked(packed, torch.get_num_threads())
    assert arrived.score(digits()) == scoring.score(digits())
    assert not made


@pytest.mark.usefixtures("deadline")
def test_an_address_where_nobody_is(capfd: pytest.CaptureFixture[str]) -> None:
    with (
        pytest.raises(BackendError, match=r"Ray at 127\.0\.0\.1:1 cannot be reached: .*refused"),
        ray_data.connected("127.0.0.1:1", 2),
    ):
        pass
    assert "Ray" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("nodes", "asked", "on_gpus", "expected"),
    [
        ([{"CPU": 2.0}], None, False, ray_data.Workers(1, 2, 2, 0)),
        ([{"CPU": 9.0}], None, False, ray_data.Workers(4, 2, 2, 0)),
        ([{"CPU": 2.0}], 3, False, ray_data.Workers(3, 1, 0.6666, 0)),
        ([{"CPU": 8.0, "GPU": 2.0}], None, True, ray_data.Workers(2, 4, 4, 1)),
        ([{"CPU": 8.0, "GPU": 2.0}], 4, True, ray_data.Workers(4, 2, 2, 0.5)),
        # A third of two GPUs each lies on both of them.
        ([{"CPU": 8.0, "GPU": 2.0}], 3, True, ray_data.Workers(3, 2, 2, 0.5)),
        # No node has half of all processors.
        ([{"CPU": 4.0}] * 4, 2, False, ray_data.Workers(2, 4, 4, 0)),
        ([{"CPU": 12.0}, {"CPU": 4.0}], 4, False, ray_data.Workers(4, 4, 4, 0)),
        ([{"CPU": 3.0}, {"memory": 1e9}], 2, False, ray_data.Workers(2, 1, 1, 0)),
        # What has no GPU takes no worker.
        ([{"CPU": 64.0}, {"CPU": 4.0, "GPU": 2.0}], None, True, ray_data.Workers(2, 2, 2, 1)),
    ],
)
def test_how_processors_are_shared(
    nodes: list[dict[str, float]], asked: int | None, on_gpus: bool, expected: ray_data.Workers
) -> None:
    found = ray_data._workers(nodes, asked, on_gpus)
    assert found == expected
    places = 0
    for node in nodes:
        by_processors = int(node.get("CPU", 0) / found.cpus)
        places += min(by_processors, int(node.get("GPU", 0)) * int(1 / found.gpus)) if on_gpus else by_processors
    assert places >= found.count


@pytest.mark.parametrize(
    ("nodes", "on_gpus", "message"),
    [
        ([{"CPU": 8.0}], True, "no node of Ray's has a GPU and a processor; leave --device out"),
        ([{"memory": 1e9}], False, "no node of Ray's has a processor"),
        ([], False, "no node of Ray's has a processor"),
    ],
)
def test_a_cluster_that_has_nothing_to_compute_on(nodes: list[dict[str, float]], on_gpus: bool, message: str) -> None:
    with pytest.raises(BackendError, match=message):
        ray_data._workers(nodes, 2, on_gpus)


def test_a_chunk_is_counted_before_anything_can_end_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []

    class Begin:
        def remote(self, start: int) -> int:
            begun.append(start)
            return len(begun)

    def ends(*_: object) -> None:
        raise SystemExit

    monkeypatch.setattr("ray.get", lambda reference: reference)
    monkeypatch.setattr(ray_data, "_unpacked", ends)
    attempts = SimpleNamespace(begin=Begin())
    for _ in range(3):
        with pytest.raises(SystemExit):
            ray_data._Worker([b""], {0: b""}, attempts, 1)._scored(0, "8 to 15")
    with pytest.raises(BackendError, match="3 of 3 times"):
        ray_data._Worker([b""], {0: b""}, attempts, 1)._scored(0, "8 to 15")


def test_what_ray_raises_when_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise Exception("The current node timed out during startup")

    monkeypatch.setattr(ray_data, "_connect", fails)
    with (
        pytest.raises(BackendError, match="Ray cannot be started here: The current node timed out"),
        ray_data.connected(None, 2),
    ):
        pass


def test_a_model_that_cannot_be_sent() -> None:
    model = digits_resnet(pretrained=True)
    setattr(model, "lock", threading.Lock())  # noqa: B010
    with pytest.raises(ModelError, match="cannot be sent to Ray's workers"):
        ray_data._packed(scorer(model), None, None)
