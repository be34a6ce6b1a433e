from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gaia_fast.errors import BackendError
from gaia_fast.ops.check_results import check_results, pieces_of
from gaia_fast.ops.result_checks import rounding

from cases import HALVES_AND_FLOAT, INF, INTERPRETED, NAN, TARGETS, Target

EACH = [each for each in TARGETS if each.backend != "cpu"]
each_target = pytest.mark.parametrize("target", EACH, ids=str)
each_target_and_dtype = pytest.mark.parametrize(
    ("target", "dtype"), [(each, dtype) for each in EACH for dtype in each.dtypes], ids=str
)
CLASSES = (1, 2, 10, 127, 1000) if INTERPRETED else (1, 2, 10, 127, 128, 129, 1000, 1025, 2500)


def logits_of(images: int, classes: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.randn((images, classes), generator=torch.Generator().manual_seed(classes)).to(dtype).to(device)


def gaps(values: Tensor) -> Tensor:
    """Returns the values in every other place of a buffer of NaN, in every dimension."""
    buffer = torch.full([2 * size for size in values.shape], NAN, device=values.device).to(values.dtype)
    view = buffer[tuple(slice(1, None, 2) for _ in values.shape)]
    return view.copy_(values)


def counters(target: Target) -> tuple[Tensor, Tensor]:
    counts = torch.zeros(3, dtype=torch.int64, device=target.device)
    return counts, torch.zeros(2, dtype=torch.int64, pin_memory=target.device == "cuda")


def wait(target: Target) -> None:
    if target.device == "cuda":
        torch.cuda.synchronize()


@each_target_and_dtype
@pytest.mark.parametrize("classes", CLASSES)
def test_one_number_is_enough(classes: int, target: Target, dtype: torch.dtype) -> None:
    images = 4
    logits, score = logits_of(images, classes, dtype, target.device), torch.ones(images, device=target.device)
    limit = torch.finfo(dtype).max
    for at, value in ((0, INF), (classes - 1, -INF), (classes // 2, NAN)):
        bad = logits.clone()
        bad[1, at], bad[2, at], bad[3, at] = value, limit, -limit
        for each in (bad, gaps(bad)):
            assert check_results(each, [score], backend=target.backend).tolist() == [True, False, True, True]
    for value in (INF, -INF, NAN):
        bad = score.clone()
        bad[2], bad[3] = value, torch.finfo(torch.float32).max
        for each in (bad, gaps(bad)):
            found = check_results(logits, [score, each], backend=target.backend)
            assert found.tolist() == [True, True, False, True]


@each_target
@pytest.mark.parametrize("dtype", HALVES_AND_FLOAT)
def test_preconditions(dtype: torch.dtype, target: Target) -> None:
    logits, score = logits_of(6, 3, device=target.device), torch.ones(6, device=target.device)
    for count in (1, 7, 130, 1500):
        holds = torch.ones((6, count), dtype=dtype, device=target.device)
        for image, value in enumerate((0.0, -0.0, -1.0, NAN, 1e-7), start=1):
            holds[image, (image * 41) % count] = value
        for each in (holds, gaps(holds)):
            found = check_results(logits, [score], each, backend=target.backend)
            assert found.tolist() == [True, False, False, False, False, True]
    assert check_results(logits, [score], holds[:, :0], backend=target.backend).all()


@each_target
@pytest.mark.parametrize("parts", [1, 37, 1100])
def test_parts_of_images(parts: int, target: Target) -> None:
    finite = torch.ones((3, parts), dtype=torch.uint8, device=target.device)
    finite[1, parts - 1] = 0
    logits, score = logits_of(3, 3, device=target.device), torch.ones(3, device=target.device)
    for each in (finite, finite.repeat(1, 2)[:, parts:], finite.T.contiguous().T):
        assert check_results(logits, [score], finite=each, backend=target.backend).tolist() == [True, False, True]


@each_target
def test_output_components(target: Target) -> None:
    logits, score = logits_of(7, 10, device=target.device), torch.ones(7, device=target.device)
    component = torch.tensor([1.0, 0.0, -0.0, -1.0, NAN, 1e-45, INF], device=target.device)
    expected = [True, False, False, False, False, True, True]
    for each in (component, gaps(component)):
        assert check_results(logits, [score], components=[each], backend=target.backend).tolist() == expected
        found = check_results(logits, [], components=[score, each], backend=target.backend)
        assert found.tolist() == expected


@each_target_and_dtype
@pytest.mark.parametrize("classes", CLASSES)
def test_logits_that_are_level(classes: int, target: Target, dtype: torch.dtype) -> None:
    """The rule of `divisible`, told from what rounding leaves of a gradient."""
    level = torch.full((4, classes), 3.0, dtype=dtype, device=target.device)
    level[1, -1], level[2, 0], level[3, classes // 2] = 4, 2, -INF
    if classes > 1:
        level[3, classes // 2] = 3 - 64 * 3 * torch.finfo(dtype).eps
    ones = torch.ones(4, device=target.device)
    found = check_results(level, [ones], components=[ones], backend=target.backend)
    assert found.tolist() == [False] + [classes > 1] * 2 + [bool(found[3])]
    reference = check_results(level, [ones], components=[ones], backend="torch")
    if dtype != torch.float32 or classes < 2:  # there it lies on the border
        assert torch.equal(found, reference)
    assert bool(check_results(level[:1], [ones[:1]], backend=target.backend).all()), "nothing is divided"


@each_target
def test_the_border_of_rounding(target: Target) -> None:
    """The slope of logits (0, d) is tanh(d / 2), near d / 2."""
    border = 2 * rounding(2, torch.float32)
    for factor, holds in ((0.0, False), (0.9, False), (1.1, True), (1e3, True)):
        logits = torch.tensor([[0.0, border * factor], [border * factor, 0.0]], device=target.device)
        ones = torch.ones(2, device=target.device)
        assert check_results(logits, [ones], components=[ones], backend=target.backend).tolist() == [holds] * 2


def views_of(buffer: Tensor, places: Sequence[tuple[int, int]]) -> list[Tensor]:
    return [buffer[begin : begin + size] for begin, size in places]


PLACES = ((0, 64), (64, 256), (333, 1), (335, 7), (400, 63), (1001, 256), (1280, 1000), (2300, 4))


@each_target
def test_memory(target: Target) -> None:
    buffer = torch.arange(4096, device=target.device).to(torch.uint8)
    memory = views_of(buffer, PLACES)
    expected, pieces = torch.cat(memory), pieces_of(memory)
    logits, ones = logits_of(2, 3, device=target.device), torch.ones(2, device=target.device)
    counts, told = counters(target)

    def failures(table: Tensor | None = pieces) -> int:
        before = told.tolist()
        found = check_results(
            logits, [ones], None, [], None, memory, expected, table, counts, told, backend=target.backend
        )
        wait(target)
        assert bool(found.all()), "an image's own answer"
        assert told[1] == before[1] + 1
        return int(told[0]) - before[0]

    assert failures() == failures(None) == 0
    for begin, size in PLACES:
        for at in {begin, begin + size // 2, begin + size - 1}:
            buffer[at] ^= 1
            assert failures() == 1, at
            buffer[at] ^= 1
    for at in (320, 334, 2280, 2304, 4095):
        buffer[at] ^= 255
        assert failures() == 0, "what is not compared"
    assert counts.tolist() == [0, int(told[1]), int(told[0])]


@each_target
@pytest.mark.parametrize("images", [0, 1, 2, 5])
def test_launches_are_counted(images: int, target: Target) -> None:
    logits, score = logits_of(images, 3, device=target.device), torch.ones(images, device=target.device)
    counts, told = counters(target)
    given: dict[str, Any] = {"counts": counts, "told": told, "backend": target.backend}
    check_results(logits, [score], **given)
    wait(target)
    assert told.tolist() == [0, 1]
    for image in range(images):
        bad = score.clone()
        bad[image] = NAN
        check_results(logits, [bad], **given)
        check_results(logits, [score], **given)
        wait(target)
        assert told.tolist() == [1 + image, 3 + 2 * image]
    check_results(logits, [score * NAN], **given)
    wait(target)
    assert told.tolist() == [images + (images > 0), 2 + 2 * images]
    assert counts[0] == 0


@each_target
@given(data=st.data())
def test_as_in_plain_pytorch(target: Target, data: st.DataObject) -> None:
    images, classes = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 12))
    values = st.sampled_from([0.0, 1.0, -2.5, 1e-30, 3e38, INF, -INF, NAN])
    device = target.device

    def matrix(columns: int, dtypes: Sequence[torch.dtype] = (torch.float32,)) -> Tensor:
        rows = data.draw(
            st.lists(st.lists(values, min_size=columns, max_size=columns), min_size=images, max_size=images)
        )
        return torch.tensor(rows, dtype=torch.float32, device=device).to(data.draw(st.sampled_from(dtypes)))

    logits = matrix(classes, HALVES_AND_FLOAT)
    scores = [matrix(1)[:, 0] for _ in range(data.draw(st.integers(0, 3)))]
    components = [matrix(1)[:, 0] for _ in range(data.draw(st.integers(0, 3)))]
    preconditions = data.draw(st.sampled_from([None, 0, 3]))
    given = (logits, scores, None if preconditions is None else matrix(preconditions), components)
    assert torch.equal(check_results(*given, backend=target.backend), check_results(*given, backend="torch"))


L, S = torch.ones(2, 3), torch.ones(2)
M = torch.zeros(8, dtype=torch.uint8)
COUNTS, TOLD = torch.zeros(3, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
BAD: dict[str, tuple[str, dict[str, Any]]] = {
    "logits of one dimension": ("logits must be", {"logits": S}),
    "integer logits": ("logits must be", {"logits": L.int()}),
    "a score of another length": ("a score must be", {"scores": [torch.ones(3)]}),
    "a score of two dimensions": ("a score must be", {"scores": [torch.ones(2, 1)]}),
    "a component of another length": ("an output component must be", {"components": [torch.ones(3)]}),
    "preconditions of another length": ("preconditions must be", {"preconditions": torch.ones(3, 2)}),
    "finite of bools": ("finite must be", {"finite": torch.ones(2, 1, dtype=torch.bool)}),
    "finite of one dimension": ("finite must be", {"finite": torch.ones(2, dtype=torch.uint8)}),
    "memory of floats": ("memory must be", {"memory": [S], "expected": M}),
    "memory with gaps": ("memory must be contiguous", {"memory": [M[::2]], "expected": M[:4]}),
    "nothing expected": ("expected is missing", {"memory": [M]}),
    "too little expected": ("expected must be", {"memory": [M], "expected": M[:4]}),
    "counts alone": ("counts and told go together", {"counts": COUNTS}),
    "counts of another length": ("counts must be", {"counts": TOLD, "told": TOLD}),
    "told of another dtype": ("told must be", {"counts": COUNTS, "told": TOLD.int()}),
}


@pytest.mark.parametrize("target", [each for each in EACH if each.device == "cpu"], ids=str)
@pytest.mark.parametrize(("message", "arguments"), BAD.values(), ids=BAD)
def test_bad_arguments(target: Target, message: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(BackendError, match=f"^{message}"):
        check_results(**{"logits": L, "scores": [S], **arguments}, backend=target.backend)


@each_target
def test_too_many_scores(target: Target) -> None:
    logits, ones = L.to(target.device), S.to(target.device)
    assert bool(check_results(logits, [ones] * 6, backend=target.backend).all())
    if target.backend == "torch":
        assert bool(check_results(logits, [ones] * 7, backend=target.backend).all())
    else:
        with pytest.raises(BackendError, match="4 scores and 3 output components; the kernels take 6"):
            check_results(logits, [ones] * 4, components=[ones] * 3, backend=target.backend)
