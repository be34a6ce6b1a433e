"""The kernels that end a program, against what they give by themselves and what they are by definition."""

from math import inf, nan

import pytest
import torch
from executing import alone, both, map_of
from torch import Tensor

from gaia_fast.compiler.native.executable import Executable, Instruction
from gaia_fast.compiler.native.kernels import IDENTITY, Convolution, Pointwise
from gaia_fast.compiler.native.result_kernels import Columns, FiniteCheck, LogitSlopes, MeanRoot, ResultCheck, Score
from gaia_fast.ops import frobenius
from gaia_fast.ops.convolution import Part, Weights
from gaia_fast.ops.convolution.steps import RELU

from cases import Target
from tolerance import assert_close

IMAGES = [1, 3]


@pytest.mark.parametrize("images", IMAGES)
def test_columns_from_outside_and_rows_that_are_the_same_for_all(level: Target, images: int) -> None:
    one, other, row = torch.randn(images, 5), torch.randn(images, 1), torch.randn(7)
    (found,) = alone(Columns([row, None, row, None, None]), [one, other, one], [0])
    assert torch.equal(found, torch.cat([row.expand(images, -1), one, row.expand(images, -1), other, one], 1))
    answers = torch.rand(images).round()
    (stacked,) = alone(Columns([None, None]), [answers, 1 - answers], [0])
    assert torch.equal(stacked, torch.stack([answers, 1 - answers], 1))


@pytest.mark.parametrize("images", IMAGES)
def test_columns_of_columns(level: Target, images: int) -> None:
    """As heads for more and more classes are put together: each of what came before and of a new one."""
    given = {i: torch.randn(images, 3 + i) for i in range(3)}
    x = map_of(images, 16)
    conv = [convolution(16, outputs) for outputs in (5, 7, 20)]
    instructions = [
        *(Instruction(each, (3, None, None, None), (4 + 2 * i, 5 + 2 * i, None)) for i, each in enumerate(conv)),
        Instruction(Columns([None, None]), (5, 7), (10,)),
        Instruction(Columns([None, None]), (10, 9), (11,)),
        Instruction(Columns([None, None, None, None]), (0, 11, 10, 2), (12,)),
        Instruction(MeanRoot(1e6), (12,), (13,)),
    ]
    for wanted in ([13], [12], [11, 12], [10, 11, 13]):
        both(instructions, {0: given[0], 2: given[2], 3: x}, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("component", [False, True])
def test_scores(level: Target, component: bool, images: int) -> None:
    packed, divisor = torch.randn(images, 12) * 100, torch.rand(images) + 0.1 if component else None
    areas = [1 / 49] * 7 + [1 / 16] * 5
    (score,) = alone(Score(areas), [packed, divisor], [0], rtol=1e-6)
    expected = frobenius(packed, [7, 5], [1 / 49, 1 / 16], divisor, backend="torch")
    torch.testing.assert_close(score, expected, rtol=1e-6, atol=0)


def convolution(inputs: int, outputs: int) -> Convolution:
    part = Part(Weights(torch.randn(outputs, inputs, 3, 3)), (1, 1), (1, 1), (1, 1))
    return Convolution([part], None, None, None, IDENTITY, "abs_sum")


def component_of(logits: Tensor, weight: Tensor, factor: float) -> Tensor:
    """By its definition: through autograd and the map that the head averages."""
    last = torch.zeros(len(logits), weight.shape[1], 1, 1, dtype=logits.dtype, requires_grad=True)
    moved = last.mean((2, 3)) @ weight.t() * factor
    summed = torch.log_softmax(logits + moved, 1).sum()
    (g,) = torch.autograd.grad(summed, last)
    return g.mean((2, 3)).abs().mean(1).sqrt()


def output_component(logits: Tensor, weight: Tensor, factor: float) -> Tensor:
    part = Part(Weights(weight.t()[:, :, None, None].contiguous()), (1, 1), (0, 0), (1, 1))
    product = Convolution([part], None, None, None, IDENTITY, "abs_sum")
    instructions = [
        Instruction(LogitSlopes(), (0,), (1,)),
        Instruction(product, (1, None, None, None), (2, 3, None)),
        Instruction(MeanRoot(factor), (3,), (4,)),
    ]
    return both(instructions, {0: logits}, [4], rtol=1e-3, atol=1e-6)[0]


@pytest.mark.parametrize(
    ("images", "classes", "channels"), [(1, 10, 512), (3, 7, 16), (2, 1, 48), (5, 33, 32), (2, 5, 19)]
)
@pytest.mark.parametrize("scale", [0.1, 3.0, 200.0])
def test_the_output_component_of_a_linear_head(
    level: Target, images: int, classes: int, channels: int, scale: float
) -> None:
    weight, logits = torch.randn(classes, channels), torch.randn(images, classes) * scale
    found = output_component(logits, weight, 0.25)
    if classes == 1:  # one class has no gradient
        assert not found.any()
        return
    truth = component_of(logits.double(), weight.double(), 0.25)
    plain = component_of(logits, weight, 0.25)
    assert_close(found, truth, plain, "component", count=classes, typical=truth.max().item())


def test_an_output_component_of_logits_that_are_not_finite_is_not(level: Target) -> None:
    logits = torch.randn(2, 6)
    logits[1, 5] = nan
    component = output_component(logits, torch.randn(6, 32), 0.25)
    assert component[0] > 0
    assert component[1].isnan()


@pytest.mark.parametrize("channels", [1, 3, 24])
@pytest.mark.parametrize("value", [inf, -inf, nan])
def test_images_that_are_not_finite(level: Target, value: float, channels: int) -> None:
    x = map_of(4, channels)
    x[0].fill_(torch.finfo(torch.float32).max)
    x[1, -1, -1, -1] = value
    x[3, 0, 0, 0] = value
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        assert alone(FiniteCheck(), [given], [0])[0].tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("channels", [3, 24])
def test_images_in_panels_that_are_not_finite(level: Target, channels: int) -> None:
    """Another reader wants whole panels: zeros stand behind the channels."""
    x = map_of(3, channels)
    x[1, -1, -1, -1] = nan
    pointwise = Pointwise(torch.ones(channels), None, None, RELU, None)
    instructions = [
        Instruction(FiniteCheck(), (0,), (1,)),
        Instruction(pointwise, (0, None, None, None), (2, None, None)),
    ]
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        assert both(instructions, {0: given}, [1, 2])[0].tolist() == [1, 0, 1]


LOGITS = torch.arange(12.0).reshape(4, 3) ** 1.5
FAULTS = {
    "logits": (0, (2, 1), inf),
    "score": (1, (2,), nan),
    "a precondition": (2, (2, 1), 0.0),
    "a precondition that is not a number": (2, (2, 0), nan),
    "component": (3, (2,), 0.0),
    "equal logits": (0, (2,), 2.5),
    "pixels": (4, (2,), 0.0),
}


@pytest.mark.parametrize(("which", "at", "value"), FAULTS.values(), ids=FAULTS)
def test_results_that_mean_nothing(level: Target, which: int, at: tuple[int, ...], value: float) -> None:
    results = [LOGITS.clone(), torch.ones(4), torch.ones(4, 2), torch.full((4,), 1e-3), torch.ones(4)]
    assert alone(ResultCheck(), results, [0])[0].tolist() == [1, 1, 1, 1]
    results[which][at] = value
    assert alone(ResultCheck(), results, [0])[0].tolist() == [1, 1, 0, 1]
    if which not in (2, 3) and value != 2.5:
        assert alone(ResultCheck(), [*results[:2], None, None, results[4]], [0])[0].tolist() == [1, 1, 0, 1]


def test_the_end_of_a_program_image_by_image(level: Target) -> None:
    """What images have of their own, and what is the same for all, are where the next image's are."""
    torch.manual_seed(0)
    conv = convolution(16, 20)
    instructions = [
        Instruction(FiniteCheck(), (0,), (1,)),
        Instruction(conv, (0, None, None, None), (2, 3, None)),
        Instruction(Columns([None, torch.arange(4.0)]), (3,), (4,)),
        Instruction(LogitSlopes(), (3,), (5,)),
        Instruction(MeanRoot(2.0), (4,), (6,)),
        Instruction(Score([0.25] * 20 + [1.0] * 4), (4, 1), (7,)),
        Instruction(ResultCheck(), (3, 7, None, None, 1), (8,)),
    ]
    executable = Executable(instructions, [(0, None)], (3, 4, 5, 6, 7, 8))
    x = map_of(5, 16)
    x[3, 2, 1, 0] = nan
    expected = executable(None, x)
    assert expected[-1].tolist() == [1, 1, 1, 0, 1]
    executable.one_by_one = {5}
    for one, other in zip(executable(None, x), expected, strict=True):
        assert torch.equal(one.nan_to_num(nan=1e30), other.nan_to_num(nan=1e30))
