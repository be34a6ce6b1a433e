"""The choice between a convolution's algorithms by timing them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gaia_fast import timing_cache
from gaia_fast.ops.convolution import Part, Weights, measured
from gaia_fast.ops.convolution.measured import ANSWERS, measured_algorithm
from gaia_fast.ops.convolution.packing import Algorithm, packed_size

from cases import INTERPRETED, TARGETS

if INTERPRETED or not any(each.backend == "cpu" for each in TARGETS):
    pytest.skip("the convolution is in C++ alone", allow_module_level=True)

GEMM, F2, F4 = Algorithm.INDIRECT_GEMM, Algorithm.WINOGRAD_F2, Algorithm.WINOGRAD_F4
PART = Part(Weights(torch.ones(32, 16, 3, 3)), (1, 1), (1, 1), (1, 1))
SHAPE = torch.Size((2, 16, 8, 8))


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("GAIA_FAST_CACHE", str(tmp_path))
    ANSWERS.forget()
    yield
    ANSWERS.forget()


class Clock:
    """Says how long an algorithm takes, and counts how often it is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
        self.seconds, self.asked, self.bytes = seconds, list[Algorithm](), list[int]()
        monkeypatch.setattr(measured, "_seconds", self)

    def __call__(
        self, part: Part, x: torch.Size, out: tuple[int, int], algorithm: Algorithm, weight_bytes: int
    ) -> float:
        self.asked.append(algorithm)
        self.bytes.append(weight_bytes)
        return self.seconds[algorithm.name]


def chosen(model: Algorithm = F2, network_bytes: int = 9 << 20) -> Algorithm:
    return measured_algorithm(
        PART, SHAPE, (8, 8), model, [each for each in (GEMM, F2, F4) if each is not model], network_bytes
    )


def test_the_models_choice_stands_unless_another_is_clearly_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch, INDIRECT_GEMM=2, WINOGRAD_F2=1, WINOGRAD_F4=0.97)
    assert chosen() is F2
    ANSWERS.forget()
    monkeypatch.setenv("GAIA_FAST_CACHE", "")
    Clock(monkeypatch, INDIRECT_GEMM=2, WINOGRAD_F2=1, WINOGRAD_F4=0.9)
    assert chosen() is F4


def test_what_was_measured_is_asked_once_and_kept_for_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, INDIRECT_GEMM=1, WINOGRAD_F2=2, WINOGRAD_F4=2)
    assert chosen() is chosen() is GEMM
    assert clock.asked == [F2, GEMM, F4]
    ANSWERS.forget()  # as another process would begin
    assert chosen() is GEMM
    assert len(clock.asked) == 3


def test_networks_of_other_sizes_have_answers_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read between two uses of a layer's weights decides where they come from."""
    clock = Clock(monkeypatch, INDIRECT_GEMM=1, WINOGRAD_F2=2, WINOGRAD_F4=2)
    for megabytes in (9, 16, 17, 65, 900):
        chosen(network_bytes=megabytes << 20)
    assert clock.bytes == [each << 20 for each in (16, 32, 64) for _ in range(3)]


def test_threads_and_builds_have_answers_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, INDIRECT_GEMM=1, WINOGRAD_F2=2, WINOGRAD_F4=2)
    chosen()
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        chosen()
    finally:
        torch.set_num_threads(threads)
    assert len(clock.asked) == 6
    ANSWERS.forget()
    monkeypatch.setattr(timing_cache, "machine", lambda: "another")
    chosen()
    assert len(clock.asked) == 9


@pytest.mark.parametrize("text", ["", "no JSON", "[]", '{"a": 77}'])
def test_a_damaged_file_is_measured_anew(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    path = ANSWERS.file()
    assert path is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    Clock(monkeypatch, INDIRECT_GEMM=1, WINOGRAD_F2=2, WINOGRAD_F4=2)
    assert chosen() is GEMM
    ANSWERS.forget()
    assert chosen() is GEMM


def test_where_nothing_can_be_kept_it_is_measured_all_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    Clock(monkeypatch, INDIRECT_GEMM=1, WINOGRAD_F2=2, WINOGRAD_F4=2)
    monkeypatch.setenv("GAIA_FAST_CACHE", str(tmp_path / "file" / "folder"))
    assert chosen() is GEMM
    ANSWERS.forget()
    monkeypatch.setenv("GAIA_FAST_CACHE", "")
    assert ANSWERS.file() is None
    assert chosen() is GEMM


@pytest.mark.parametrize("algorithm", [GEMM, F2, F4])
@pytest.mark.parametrize("images", [1, 100_000])
def test_every_algorithm_is_timed(algorithm: Algorithm, images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many images by a part of them."""
    monkeypatch.setattr(measured, "_MOST_OPERATIONS", 1e7)
    assert packed_size(PART.weights, algorithm) == PART.weights.packed(algorithm).numel()
    assert 0 < measured._seconds(PART, torch.Size((images, *SHAPE[1:])), (8, 8), algorithm, 1 << 20) < 1
