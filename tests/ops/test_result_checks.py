import pytest
import torch
from torch import Tensor

from gaia_fast.ops import result_checks

from cases import INF, NAN

ONES = torch.ones(1000)


@pytest.mark.parametrize("value", [INF, -INF, NAN])
@pytest.mark.parametrize("at", [0, 7, 4095, 4096, 12287, -1])
def test_one_number_is_enough(value: float, at: int) -> None:
    x = torch.full((3, 5, 29, 31), torch.finfo(torch.float32).max)
    x[2, 4, 28, 30] = -1e-45
    for layout in (torch.contiguous_format, torch.channels_last):
        map_ = x.clone(memory_format=layout)
        assert result_checks.all_finite(map_) is True
        flat = map_.as_strided((map_.numel(),), (1,))
        flat[at] = value
        assert result_checks.all_finite(map_) is False


def test_what_the_kernel_cannot_read_is_asked_of_torch() -> None:
    for x in (torch.ones(2, 3, 4, 4).half(), torch.ones(2, 3, 4, 8)[..., ::2], torch.ones(3).double()):
        assert result_checks.together([result_checks.all_finite(x)])
        x[0] = NAN
        assert not result_checks.together([result_checks.all_finite(x)])
    assert result_checks.all_finite(torch.ones(0)) is True
    assert result_checks.all_finite(torch._efficientzerotensor((2, 3, 4, 4)))  # without memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_all_hold(dtype: torch.dtype) -> None:
    answers = torch.ones(6, dtype=dtype)
    answers[1::2] = 0
    assert result_checks.together([result_checks.all_hold(answers[::2])])
    assert result_checks.together([result_checks.all_hold(answers[::2].contiguous())])
    answers[4] = 0
    assert not result_checks.together([result_checks.all_hold(answers[::2])])
    assert not result_checks.together([result_checks.all_hold(answers[::2].contiguous())])


def results(dtype: torch.dtype) -> dict[str, Tensor]:
    logits = torch.arange(12.0).reshape(4, 3) ** 1.5
    found = {"logits": logits, "score": ONES[:4], "preconditions": torch.ones(4, 2), "component": ONES[:4] * 1e-3}
    return {name: each.to(dtype).clone() for name, each in found.items()}


FAULTS = {
    "a logit": ("logits", (3, 2), INF),
    "a score": ("score", (2,), NAN),
    "a closed window": ("preconditions", (1, 1), 0.0),
    "a condition that is not a number": ("preconditions", (3, 0), NAN),
    "a component of zero": ("component", (0,), 0.0),
    "a component that is not a number": ("component", (3,), NAN),
    "equal logits": ("logits", (1,), 2.5),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "at", "value"), FAULTS.values(), ids=FAULTS)
def test_one_fault_is_enough(name: str, at: tuple[int, ...], value: float, dtype: torch.dtype) -> None:
    found = results(dtype)
    assert result_checks.together([result_checks.results_hold(**found)])
    assert result_checks.results_hold_per_image(**found).tolist() == [True] * 4
    found[name][at] = value
    assert not result_checks.together([result_checks.results_hold(**found)])
    assert result_checks.results_hold_per_image(**found).tolist() == [image != at[0] for image in range(4)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_not_there_is_not_asked(dtype: torch.dtype) -> None:
    found = results(dtype)
    found["logits"][1] = 2.5  # equal, and nothing is divided
    assert result_checks.together([result_checks.results_hold(found["logits"], found["score"])])
    none = torch.ones(4, 0, dtype=dtype)
    assert result_checks.together([result_checks.results_hold(found["logits"], found["score"], none)])
    assert result_checks.results_hold_per_image(found["logits"], found["score"], none).all()


@pytest.mark.parametrize("classes", [1, 2, 10, 1000])
@pytest.mark.parametrize("step", [0.0, 1e-9, 1e-7, 1e-5, 1e-3, 1.0])
def test_kernel_and_formula_call_the_same_logits_equal(classes: int, step: float) -> None:
    logits = torch.zeros(1, classes)
    logits[0, 0] = step
    told = result_checks.results_hold(logits, ONES[:1], None, ONES[:1])
    assert result_checks.together([told]) == bool(result_checks.divisible(ONES[:1], logits).all())


def test_answers_are_looked_at_together() -> None:
    yes, no = torch.tensor(True), torch.tensor(False)
    assert result_checks.together([])
    assert result_checks.together([True, yes])
    assert not result_checks.together([True, no, yes])
    assert not result_checks.together([False, yes])
