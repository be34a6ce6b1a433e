"""Some hundred random networks, scored by every engine and held to the oracle; `make fuzz` draws thousands."""

from collections import Counter

import pytest
import torch
from torch import nn

from gaia_fast.compiled.onnx import missing

from fuzz.draws import draw
from fuzz.judging import Truth
from fuzz.oracle import Question, answer
from fuzz.subjects import PROGRAMS, QUICK, SUBJECTS, Found, silence, verdicts

GAIA_Z = Question("gaia-z", "division", "abs_mean", 2.0, None, None)
STEP = 20  # draws a test


@pytest.fixture(autouse=True)
def one_thread(set_threads) -> None:
    set_threads(1)  # networks this small lose more by waking threads than they win
    silence()


def check(seeds: range, subjects: tuple[str, ...], dtypes: tuple[torch.dtype, ...]) -> None:
    outcomes: Counter[str] = Counter()
    for seed in seeds:
        drawn = draw(seed, dtypes)
        for each in verdicts(drawn, subjects):
            outcomes[each.outcome] += 1
            assert each.outcome != "wrong", f"{each.subject} on {each.batch!r}: {each.why}\n{drawn}"
    assert outcomes["right"] > outcomes["refused"]


@pytest.mark.parametrize("begin", range(0, 300, STEP))
def test_engines_without_a_program(begin):
    check(range(begin, begin + STEP), QUICK, (torch.float64, torch.float32, torch.bfloat16, torch.float16))


@pytest.mark.parametrize("subject", PROGRAMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_programs(subject, dtype):
    if subject in ("onnxruntime", "onnx") and (reason := missing()):
        pytest.skip(reason)
    if dtype == torch.float64 and subject != "eager":
        pytest.skip("computes in float32: the other half of the test")
    seed = 1000 * (1 + list(SUBJECTS).index(subject))
    check(range(seed, seed + STEP), (subject,), (dtype,))


def test_the_oracle_by_hand():
    """One map of 2 x 2 through a norm that only scales, a ReLU and a weighted sum: two units are open."""
    norm, relu = nn.BatchNorm2d(1, eps=0), nn.ReLU(inplace=True)
    model = nn.Sequential(norm, relu, nn.Flatten(), nn.Linear(4, 2)).double().eval()
    with torch.no_grad():
        model[3].weight.copy_(torch.tensor([[1.0, 2, 3, 4], [0, 0, 0, 0]]))
        model[3].bias.zero_()
    x = torch.tensor([[[[1.0, -1], [2, -2]]]], dtype=torch.float64)
    found = answer(model, x, GAIA_Z)
    assert torch.equal(found.gradients[0], torch.tensor([[[[1.0, 0], [3, 0]]]], dtype=torch.float64))
    assert found.score().tolist() == [0.5]
    other = answer(model, x, GAIA_Z, classes=torch.tensor([1]))
    assert other.score().tolist() == [0.0]


def test_what_is_wrong_is_called_wrong():
    """One entry counted too much or too little, one logit off by what no rounding explains."""
    drawn = draw(5, (torch.float64,))
    x = next(iter(drawn.batches.values()))
    truth = Truth(drawn.model, x, GAIA_Z)
    exact = answer(drawn.model, x, GAIA_Z)
    logits, score = exact.logits, exact.score()
    assert not truth.fault(Found(logits, score.float()), torch.float64)
    one_more = exact.gradients[0].clone()
    one_more[0, 0].flatten()[int((one_more[0, 0].flatten() == 0).nonzero()[0])] = 1
    wrong = type(exact)(logits, [one_more, *exact.gradients[1:]], exact.component, GAIA_Z).score()
    assert "score off" in truth.fault(Found(logits, wrong.float()), torch.float64)
    assert "logits off" in truth.fault(Found(logits * 1.0001, score.float()), torch.float64)
    assert "not finite" in truth.fault(Found(logits, score.float() * torch.nan), torch.float64)
