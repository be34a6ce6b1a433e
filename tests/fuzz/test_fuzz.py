"""Some hundred random networks, scored by every engine and held to the oracle; `make fuzz` draws thousands."""

import sys
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import nn

from gaia_fast.compiler.onnx.conversion import missing

from fuzz import run
from fuzz.draws import DTYPES, draw
from fuzz.judging import Found, Truth
from fuzz.oracle import Question, answer
from fuzz.parts import Do, Gated, amax, equal_within
from fuzz.subjects import SUBJECTS, USUAL, silence, verdicts

GAIA_Z = Question("gaia-z", "division", "abs_mean", 2.0, None, None)
# How many draws; a program takes a second to make, a file some.
PROGRAM_DRAWS = {"eager": 30, "native": 25, "onnxruntime": 8, "onnx": 8, "cuda": 10, "cuda-large": 10}
STEP = 25  # draws of one test


@pytest.fixture(autouse=True)
def one_thread(set_threads: Callable[[int], None]) -> None:
    set_threads(1)  # networks this small lose more by waking threads than they win
    silence()


def check(seeds: range, subjects: tuple[str, ...], dtypes: tuple[torch.dtype, ...]) -> None:
    outcomes: Counter[str] = Counter()
    wrong = []
    for seed in seeds:
        drawn = draw(seed, dtypes)
        found = list(verdicts(drawn, subjects))
        outcomes.update(each.outcome for each in found)
        wrong += [f"{v.subject} on {v.batch!r}: {v.why}\n    {drawn}" for v in found if v.outcome == "wrong"]
    assert not wrong, "\n".join(wrong)
    assert 2 * outcomes["right"] > outcomes["refused"]


@pytest.mark.parametrize("begin", range(0, 300, STEP))
def test_hooks(begin: int) -> None:
    check(range(begin, begin + STEP), ("hooks",), DTYPES)


def test_reference() -> None:
    check(range(1000, 1000 + 2 * STEP), ("reference",), DTYPES)


@pytest.mark.parametrize("subject", PROGRAM_DRAWS)
def test_programs(subject: str) -> None:
    """In float64 where a program can be: every count must be exact there."""
    if subject in ("onnxruntime", "onnx") and (reason := missing()):
        pytest.skip(reason)
    dtype = torch.float64 if subject == "eager" else torch.float32
    begin = 2000 + 100 * list(PROGRAM_DRAWS).index(subject)
    check(range(begin, begin + PROGRAM_DRAWS[subject]), (subject,), (dtype,))


def test_a_seed_draws_the_same_again() -> None:
    one, other = draw(3), draw(3)
    assert str(one) == str(other)
    tensors = zip(
        [*one.model.state_dict().values(), *one.batches.values()],
        [*other.model.state_dict().values(), *other.batches.values()],
        strict=True,
    )
    assert all(torch.equal(a, b) for a, b in tensors)


def test_the_oracle_by_hand() -> None:
    """One map of 2 x 2 through a norm that only scales, a ReLU and a weighted sum: two units are open."""
    norm, relu = nn.BatchNorm2d(1, eps=0), nn.ReLU(inplace=True)
    model = nn.Sequential(norm, relu, nn.Flatten(), nn.Linear(4, 2)).double().eval()
    with torch.no_grad():
        model.get_parameter("3.weight").copy_(torch.tensor([[1.0, 2, 3, 4], [0, 0, 0, 0]]))
        model.get_parameter("3.bias").zero_()
    x = torch.tensor([[[[1.0, -1], [2, -2]]]], dtype=torch.float64)
    found = answer(model, x, GAIA_Z)
    assert torch.equal(found.gradients[0], torch.tensor([[[[1.0, 0], [3, 0]]]], dtype=torch.float64))
    assert found.score().tolist() == [0.5]
    other = answer(model, x, GAIA_Z, classes=torch.tensor([1]))
    assert other.score().tolist() == [0.0]


def test_noise_reaches_classes_that_are_all_but_equally_likely() -> None:
    """Logits of 1e-4 leave 1 - C p four digits less, however exact the logits are."""
    model = nn.Sequential(nn.BatchNorm2d(1, eps=0), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)).double().eval()
    with torch.no_grad():
        model.get_parameter("3.weight").copy_(torch.tensor([[1e-4, 2e-4, 3e-4, 4e-4], [0, 0, 0, 0]]))
        model.get_parameter("3.bias").zero_()
    x = torch.tensor([[[[1.0, -1], [2, -2]]]], dtype=torch.float64)
    gaia_a = Question("gaia-a", "division", "abs_mean", 2.0, None, None)
    exact = answer(model, x, gaia_a)
    torch.manual_seed(0)
    others = [answer(model, x, gaia_a, noise=1e-6) for _ in range(8)]
    assert max(float((each.logits / exact.logits - 1)[:, 0].abs()) for each in others) < 1e-5
    assert max(float((each.score() / exact.score() - 1).abs()) for each in others) > 1e-4


def test_noise_reaches_a_gate_before_a_norm() -> None:
    """A norm with statistics of its own takes a gate's size out again: what is left of the gate's gradient is small."""
    torch.manual_seed(0)
    gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.Sigmoid())
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3),
        Gated(gate, residual=False),
        nn.GroupNorm(2, 2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2, 3),
    )
    model = model.double().eval()
    x = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    top1 = Question("gaia-a", "top1", "mean_abs", 2.0, ["1.gate.2"], None)
    exact = answer(model, x, top1).score()
    others = torch.stack([answer(model, x, top1, noise=1e-6).score() for _ in range(8)])
    off = (others / exact - 1).abs().amax(0)
    assert bool((off > 1e-3).all()), off


def test_noise_reaches_values_that_are_all_but_the_largest() -> None:
    """Of two that differ by rounding, either is the largest, or both: then the gradient comes to both."""
    model = nn.Sequential(nn.BatchNorm2d(1, eps=0), Do("maximum", lambda x: amax(x, (2, 3))), nn.Linear(1, 2))
    model = model.double().eval()
    x = torch.tensor([[[[1.0, 1 - 1e-7], [0.5, -2]]]], dtype=torch.float64)
    exact = answer(model, x, GAIA_Z)
    assert exact.score().tolist() == [0.25]
    torch.manual_seed(0)
    others = torch.stack([answer(model, x, GAIA_Z, noise=1e-6).gradients[0] for _ in range(8)])
    assert (others != 0).any(0).tolist() == [[[[True, True], [False, False]]]]
    assert int((others != 0).flatten(1).sum(1).max()) == 2


def test_nothing_overflows_among_equal_maxima() -> None:
    x = torch.full((1, 1, 16, 16), 300.0, dtype=torch.float16, requires_grad=True)
    token = equal_within.set(1e-3)
    try:
        y = amax(x, (2, 3))
    finally:
        equal_within.reset(token)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert y.tolist() == [[300.0]]
    assert gradient.unique().tolist() == [1 / 256]


def test_a_long_run_takes_the_usual_subjects_and_knows_no_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert {"hooks", "eager", "native", "onnx", "cuda", "cuda-large"} < set(USUAL) < set(SUBJECTS)
    monkeypatch.setattr(sys, "argv", ["fuzz", "--draws", "0"])
    run.main()
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[:-1]] == [*USUAL]
    monkeypatch.setattr(sys, "argv", ["fuzz", "--subjects", "eager,for cuda"])
    with pytest.raises(SystemExit):
        run.main()
    assert "no subject is called for cuda; there are reference, hooks, eager, cuda" in capsys.readouterr().err


def test_what_is_wrong_is_called_wrong() -> None:
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
