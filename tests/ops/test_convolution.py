from collections.abc import Callable, Collection, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from gaia_fast.errors import BackendError
from gaia_fast.ops.convolution import Weights, convolution, packing
from gaia_fast.ops.convolution.packing import Algorithm, cheapest_algorithm, padded
from gaia_fast.ops.convolution.parts import Pair
from gaia_fast.ops.convolution.reference import convolution_reference
from gaia_fast.ops.convolution.steps import Activation

from cases import INF, INTERPRETED, NAN, TARGETS, Target

if INTERPRETED:
    pytest.skip("the convolution has no Triton kernel", allow_module_level=True)

LEVELS = [each for each in TARGETS if each.backend == "cpu"]

# How many times PyTorch's own error an algorithm may have: what the transforms of Winograd's filtering cost.
ROUNDING = {
    Algorithm.INDIRECT_GEMM: 2,
    Algorithm.WINOGRAD_F2: 6,
    Algorithm.WINOGRAD_F4: 24,
    Algorithm.GROUPED: 2,
}

Shape = tuple[int, int, int, int, int, Pair, Pair, Pair, Pair]

# (images, inputs, outputs, height, width, window, stride, padding, dilation). Rows and channels go by 3, 6 or 12 and by
# 16 or 32, depths by 256, tiles by 2 or 4: each boundary is crossed, with and without a remainder.
SHAPES: dict[str, Shape] = {
    "one position": (1, 16, 16, 1, 1, (1, 1), (1, 1), (0, 0), (1, 1)),
    "stem": (2, 3, 16, 13, 11, (3, 3), (1, 1), (1, 1), (1, 1)),
    "square": (3, 32, 48, 9, 7, (3, 3), (1, 1), (1, 1), (1, 1)),
    "small maps": (5, 48, 64, 4, 4, (3, 3), (1, 1), (1, 1), (1, 1)),
    "pieces": (2, 16, 32, 45, 42, (3, 3), (1, 1), (1, 1), (1, 1)),
    "deep": (2, 272, 16, 6, 6, (3, 3), (1, 1), (1, 1), (1, 1)),
    "no padding": (2, 16, 16, 8, 9, (3, 3), (1, 1), (0, 0), (1, 1)),
    "much padding": (2, 16, 16, 5, 5, (3, 3), (1, 1), (2, 2), (1, 1)),
    "strided": (2, 20, 32, 9, 8, (3, 3), (2, 2), (1, 1), (1, 1)),
    "pointwise": (2, 40, 32, 6, 5, (1, 1), (1, 1), (0, 0), (1, 1)),
    "pointwise, strided": (2, 16, 80, 7, 7, (1, 1), (2, 2), (0, 0), (1, 1)),
    "large window": (1, 3, 16, 20, 20, (7, 7), (2, 2), (3, 3), (1, 1)),
    "dilated, oblong": (2, 16, 16, 12, 9, (3, 5), (1, 2), (2, 1), (2, 1)),
    "24 outputs": (2, 16, 24, 9, 7, (3, 3), (1, 1), (1, 1), (1, 1)),
    "10 outputs": (3, 24, 10, 7, 7, (3, 3), (1, 1), (1, 1), (1, 1)),
    "40 outputs, strided": (2, 10, 40, 9, 9, (3, 3), (2, 2), (1, 1), (1, 1)),
    "40 outputs, pointwise": (2, 40, 40, 8, 8, (1, 1), (1, 1), (0, 0), (1, 1)),
    "104 outputs, pieces": (1, 16, 104, 33, 34, (3, 3), (1, 1), (1, 1), (1, 1)),
}
# (images, channels, groups, height, width, window, stride, padding, dilation). Columns go by 4 or 8; windows of 3 and 5
# columns in strides of 1 and 2 have their own code; groups are of one vector or less, or of several.
GROUPED: dict[str, Shape] = {
    "one position": (1, 16, 16, 1, 1, (1, 1), (1, 1), (0, 0), (1, 1)),
    "depthwise": (2, 24, 24, 9, 11, (3, 3), (1, 1), (1, 1), (1, 1)),
    "depthwise, strided": (3, 16, 16, 9, 18, (3, 3), (2, 2), (1, 1), (1, 1)),
    "depthwise, 5x5": (2, 40, 40, 10, 19, (5, 5), (1, 1), (2, 2), (1, 1)),
    "depthwise, 5x5, strided": (2, 48, 48, 13, 12, (5, 5), (2, 2), (2, 2), (1, 1)),
    "depthwise, 7x7": (1, 32, 32, 12, 12, (7, 7), (1, 1), (3, 3), (1, 1)),
    "depthwise, dilated": (2, 32, 32, 12, 13, (3, 3), (1, 1), (2, 2), (2, 2)),
    "depthwise, dilated and strided": (2, 16, 16, 12, 13, (3, 5), (2, 2), (2, 4), (1, 2)),
    "depthwise, 3x5": (2, 10, 10, 9, 10, (3, 5), (1, 1), (1, 2), (1, 1)),
    "depthwise, 5x3, strided otherwise": (2, 16, 16, 10, 13, (5, 3), (1, 3), (1, 1), (1, 1)),
    "depthwise, no padding": (2, 16, 16, 5, 6, (3, 3), (1, 1), (0, 0), (1, 1)),
    "depthwise, much padding": (1, 16, 16, 3, 2, (3, 3), (2, 2), (2, 2), (1, 1)),
    "depthwise, pieces": (2, 16, 16, 51, 50, (3, 3), (1, 1), (1, 1), (1, 1)),
    "groups of 2": (2, 24, 12, 9, 10, (3, 3), (1, 1), (1, 1), (1, 1)),
    "groups of 4": (2, 16, 4, 9, 10, (3, 3), (2, 2), (1, 1), (1, 1)),
    "groups of 4, 1x1": (2, 24, 6, 5, 7, (1, 1), (1, 1), (0, 0), (1, 1)),
    "groups of 8": (2, 104, 13, 8, 9, (3, 3), (1, 1), (1, 1), (1, 1)),
    "groups of 8, 3x5": (2, 104, 13, 7, 9, (3, 5), (2, 2), (1, 2), (1, 1)),
    "groups of 16": (2, 48, 3, 9, 9, (3, 3), (1, 1), (1, 1), (1, 1)),
    "groups of 16, dilated": (2, 32, 2, 9, 9, (3, 3), (1, 1), (2, 2), (2, 2)),
    "groups of 32": (2, 96, 3, 9, 9, (3, 3), (2, 2), (1, 1), (1, 1)),
    "groups of 32, 5x5": (1, 64, 2, 9, 9, (5, 5), (1, 1), (2, 2), (1, 1)),
    "groups of 80": (1, 160, 2, 5, 5, (3, 3), (1, 1), (1, 1), (1, 1)),
}
# (images, channels led to, gradients, height, width led to, window, stride, padding): taps of every remainder of the
# stride, remainders without a tap, and rows that no window reaches.
ADJOINTS = {
    "square": (2, 32, 20, 9, 8, (3, 3), (2, 2), (1, 1)),
    "even": (3, 48, 16, 8, 8, (3, 3), (2, 2), (1, 1)),
    "pointwise": (2, 16, 40, 7, 7, (1, 1), (2, 2), (0, 0)),
    "unread rows": (1, 16, 16, 10, 11, (2, 3), (4, 3), (0, 0)),
    "large window": (2, 16, 16, 15, 14, (7, 5), (2, 3), (3, 1)),
    "not strided": (2, 16, 32, 6, 5, (3, 3), (1, 1), (1, 0)),
    "deep": (1, 16, 272, 6, 6, (3, 3), (2, 2), (1, 1)),
    "pieces": (2, 16, 16, 70, 70, (3, 3), (2, 2), (1, 1)),
    "24 channels": (2, 24, 40, 9, 8, (3, 3), (2, 2), (1, 1)),
    "10 channels, unread rows": (2, 10, 24, 10, 11, (2, 3), (4, 3), (0, 0)),
}
# (images, channels, groups, height, width, window, stride, padding), as above.
GROUPED_ADJOINTS = {
    "depthwise": (2, 24, 24, 9, 8, (3, 3), (2, 2), (1, 1)),
    "depthwise, 5x5": (2, 16, 16, 12, 13, (5, 5), (2, 2), (2, 2)),
    "depthwise, unread rows": (1, 10, 10, 10, 11, (2, 3), (4, 3), (0, 0)),
    "depthwise, pieces": (2, 16, 16, 70, 70, (3, 3), (2, 2), (1, 1)),
    "groups of 2, 3x5": (2, 32, 16, 9, 14, (3, 5), (2, 3), (1, 2)),
    "groups of 4": (2, 24, 6, 8, 8, (3, 3), (2, 2), (1, 1)),
    "groups of 8": (2, 104, 13, 7, 8, (3, 3), (2, 2), (1, 1)),
    "groups of 16, 1x1": (2, 48, 3, 7, 7, (1, 1), (2, 2), (0, 0)),
    "groups of 32": (2, 64, 2, 8, 7, (3, 3), (2, 2), (1, 1)),
}
ENDINGS: dict[str, Collection[str]] = {
    "plain": {},
    "forward": {"bias", "residual", "relu", "positive"},
    "backward": {"residual", "relu_mask", "sum", "scale", "skip"},
    "absolute": {"relu_mask", "abs_sum"},
    "everything": {"bias", "residual", "relu", "relu_mask", "abs_sum", "scale", "skip"},
    "bounded forward": {"bias", "residual", "relu", "upper", "positive"},
    "bounded backward": {"relu_mask", "upper", "sum", "scale", "skip"},
    "sigmoid": {"bias", "sigmoid", "sum"},
    "sigmoid, everything": {"bias", "residual", "sigmoid", "relu_mask", "positive", "scale", "skip"},
}
UPPER = 1.5  # which many units reach


@pytest.fixture(params=LEVELS, ids=str)
def level(request: pytest.FixtureRequest) -> Iterator[Target]:
    with request.param.active() as each:
        yield each


class Case:
    """A convolution with random arguments."""

    def __init__(self, shape: Shape, ending: Collection[str] = frozenset(), seed: int = 0, groups: int = 1) -> None:
        images, inputs, outputs, height, width, window, self.stride, self.padding, self.dilation = shape
        generator = torch.Generator().manual_seed(seed)

        def random(*size: int) -> Tensor:
            return torch.randn(size, generator=generator)

        self.x = random(images, inputs, height, width)
        each = inputs // groups
        self.weights = Weights(random(outputs, each, *window) / (each * window[0] * window[1]) ** 0.5, groups)
        out = torch.conv2d(self.x, self.weights.weight, None, self.stride, self.padding, self.dilation, groups).shape
        upper = UPPER if "upper" in ending else INF
        self.bias = random(outputs) if "bias" in ending else None
        self.scale = random(outputs) if "scale" in ending else None
        self.residual = random(*out) if "residual" in ending else None
        self.relu_mask = random(*out).relu().clamp(max=upper) if "relu_mask" in ending else None
        self.skip = random(*out) if "skip" in ending else None
        name = next((each for each in ("relu", "sigmoid") if each in ending), "identity")
        self.activation = Activation(name, upper)
        self.input_size: tuple[int, int] | None = None
        self.statistic = next((each for each in ("sum", "abs_sum", "positive") if each in ending), None)

    @property
    def algorithms(self) -> list[Algorithm]:
        if self.weights.groups > 1:
            return [Algorithm.GROUPED]
        simple = self.weights.shape[2:] == (3, 3) and self.stride == self.dilation == (1, 1)
        return (
            [Algorithm.INDIRECT_GEMM, Algorithm.WINOGRAD_F2, Algorithm.WINOGRAD_F4]
            if simple and self.weights.shape[1] % 16 == 0
            else [Algorithm.INDIRECT_GEMM]
        )

    @property
    def window(self) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "input_size": self.input_size,
        }

    def run(self, algorithm: Algorithm | None = None, **changed: Tensor) -> tuple[Tensor, Tensor | None]:
        given = {
            name: changed.get(name, getattr(self, name)) for name in ("bias", "residual", "relu_mask", "scale", "skip")
        }
        x = changed.get("x", self.x)
        return convolution(
            x,
            self.weights,
            **given,
            **self.window,
            activation=self.activation,
            statistic=self.statistic,
            algorithm=algorithm,
        )

    def reference(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        maps = (self.bias, self.residual, self.relu_mask, self.scale, self.skip)
        bias, residual, relu_mask, scale, skip = [None if each is None else each.to(dtype) for each in maps]
        window = self.stride, self.padding, self.dilation, self.input_size
        options = *window, self.activation, self.statistic
        weight, groups = self.weights.weight.to(dtype), self.weights.groups
        return convolution_reference(self.x.to(dtype), weight, bias, residual, relu_mask, scale, skip, *options, groups)


def allowed(case: Case, algorithm: Algorithm, truth: Tensor) -> float:
    """The error that it may have: so many times PyTorch's own, and what rounding the largest summand costs."""
    plain, _ = case.reference(torch.float32)
    largest = max(float(each.abs().max()) for each in (truth, case.residual, case.skip) if each is not None)
    return ROUNDING[algorithm] * float((plain.double() - truth).abs().max()) + 2e-7 * largest


def in_groups(shape: Shape, ending: Collection[str] = frozenset()) -> Case:
    images, channels, groups, height, width, window, stride, padding, dilation = shape
    return Case((images, channels, channels, height, width, window, stride, padding, dilation), ending, groups=groups)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_against_the_formula(level: Target, shape: str, ending: str) -> None:
    check_against_the_formula(Case(SHAPES[shape], ENDINGS[ending]))


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("shape", GROUPED)
def test_groups_against_the_formula(level: Target, shape: str, ending: str) -> None:
    check_against_the_formula(in_groups(GROUPED[shape], ENDINGS[ending]))


def check_against_the_formula(case: Case) -> None:
    truth, _ = case.reference(torch.float64)
    for algorithm in case.algorithms:
        y, sums = case.run(algorithm)
        assert y.shape == truth.shape
        check_panels(y)
        error = float((y.double() - truth).abs().max())
        assert error <= allowed(case, algorithm, truth), f"algorithm {algorithm}"
        if case.statistic is None:
            assert sums is None
        else:
            assert sums is not None
            check_sums(case, algorithm, sums)


def check_panels(y: Tensor) -> None:
    """Checks that a map lies channels-last in whole panels, with zeros behind its channels."""
    images, channels, height, width = y.shape
    whole = y.as_strided((images, padded(channels), height, width), y.stride())
    assert whole.is_contiguous(memory_format=torch.channels_last)
    assert not whole[:, channels:].any()


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("shape", ADJOINTS)
def test_the_adjoint_of_a_strided_convolution(level: Target, shape: str, ending: str) -> None:
    images, inputs, outputs, height, width, window, stride, padding = ADJOINTS[shape]
    forward = Case((images, inputs, outputs, height, width, window, stride, padding, (1, 1)))
    check_adjoint(forward, ENDINGS[ending])


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("shape", GROUPED_ADJOINTS)
def test_the_adjoint_of_a_strided_convolution_in_groups(level: Target, shape: str, ending: str) -> None:
    check_adjoint(in_groups((*GROUPED_ADJOINTS[shape], (1, 1))), ENDINGS[ending])


def check_adjoint(forward: Case, ending: Collection[str]) -> None:
    stride, padding, groups = forward.stride, forward.padding, forward.weights.groups
    images, inputs, height, width = forward.x.shape
    small = torch.conv2d(forward.x, forward.weights.weight, None, stride, padding, groups=groups)
    # The endings of a case whose outputs are as the map that the adjoint leads to.
    case = Case((images, 1, inputs, height, width, (1, 1), (1, 1), (0, 0), (1, 1)), ending, seed=1)
    case.x, case.weights, case.stride, case.padding = small, forward.weights, stride, padding
    case.input_size = (height, width)
    truth, _ = case.reference(torch.float64)
    y, sums = case.run()
    check_panels(y)
    algorithm = Algorithm.INDIRECT_GEMM if case.weights.groups == 1 else Algorithm.GROUPED
    assert float((y.double() - truth).abs().max()) <= allowed(case, algorithm, truth)
    assert (sums is None) == (case.statistic is None)
    if sums is not None:
        check_sums(case, None, sums)
    again, same = case.run()
    assert torch.equal(again, y)
    if sums is not None:
        assert same is not None
        assert torch.equal(same, sums)


def check_sums(case: Case, algorithm: Algorithm | None, sums: Tensor) -> None:
    """The sums are of what the algorithm itself computed, before scale and skip."""
    scale, skip = case.scale, case.skip
    case.scale = case.skip = None
    z, _ = case.run(algorithm)
    case.scale, case.skip = scale, skip
    if case.statistic == "positive":
        assert torch.equal(sums, ((z > 0) & (z < case.activation.upper)).sum((2, 3)).float())
        return
    z = z.abs() if case.statistic == "abs_sum" else z
    error = (sums.double() - z.double().sum((2, 3))).abs()
    assert bool((error <= 1e-6 * z.double().abs().sum((2, 3)) + 1e-12).all())


@pytest.mark.parametrize("algorithm", [Algorithm.INDIRECT_GEMM, Algorithm.WINOGRAD_F2, Algorithm.WINOGRAD_F4])
def test_an_image_knows_nothing_of_the_others_or_of_threads(
    level: Target, algorithm: Algorithm, set_threads: Callable[[int], None]
) -> None:
    for shape in ((7, 32, 64, 8, 8), (3, 16, 48, 34, 33), (40, 64, 64, 12, 12)):
        case = Case((*shape, (3, 3), (1, 1), (1, 1), (1, 1)), {"residual", "relu", "sum"})
        check_independence(case, algorithm, set_threads)


@pytest.mark.parametrize("stride", [(1, 1), (2, 2)])
@pytest.mark.parametrize(
    ("channels", "groups", "size"), [(64, 64, 41), (24, 12, 70), (104, 13, 33), (48, 3, 34), (96, 3, 33)]
)
def test_in_groups_an_image_knows_nothing_of_the_others_or_of_threads(
    level: Target, channels: int, groups: int, size: int, stride: Pair, set_threads: Callable[[int], None]
) -> None:
    # Enough work for several threads, and, but for one case, for several pieces of an image.
    case = in_groups((7, channels, groups, size, size, (3, 3), stride, (1, 1), (1, 1)), {"residual", "relu", "sum"})
    check_independence(case, Algorithm.GROUPED, set_threads)


def check_independence(case: Case, algorithm: Algorithm, set_threads: Callable[[int], None]) -> None:
    y, sums = case.run(algorithm)
    assert case.residual is not None
    assert sums is not None
    for threads in (1, 2, 3):
        set_threads(threads)
        again, same = case.run(algorithm)
        assert torch.equal(again, y)
        assert same is not None
        assert torch.equal(same, sums)
    alone, own = case.run(algorithm, x=case.x[1:2], residual=case.residual[1:2])
    assert torch.equal(alone, y[1:2])
    assert own is not None
    assert torch.equal(own, sums[1:2])


def square(algorithm: Algorithm, ending: Collection[str]) -> Case:
    """A case for any algorithm."""
    grouped = algorithm is Algorithm.GROUPED
    return in_groups(GROUPED["groups of 16"], ending) if grouped else Case(SHAPES["square"], ending)


@pytest.mark.parametrize("algorithm", Algorithm)
def test_any_strides(level: Target, algorithm: Algorithm) -> None:
    case = square(algorithm, ENDINGS["everything"])
    y, _ = case.run(algorithm)
    assert case.relu_mask is not None
    images, channels, height, width = case.x.shape
    wide = torch.zeros(images, 2 * channels, 2 * height, width)
    wide[:, ::2, ::2] = case.x
    again, _ = case.run(
        algorithm, x=wide[:, ::2, ::2], relu_mask=case.relu_mask.contiguous(memory_format=torch.channels_last)
    )
    assert torch.equal(y, again)


@pytest.mark.parametrize("algorithm", Algorithm)
def test_a_closed_gate_lets_nothing_through_and_a_nan_stays_one(level: Target, algorithm: Algorithm) -> None:
    case = square(algorithm, {"relu_mask", "sum"})
    assert case.relu_mask is not None
    case.residual = torch.full_like(case.relu_mask, INF)
    case.relu_mask = torch.zeros_like(case.relu_mask)
    y, sums = case.run(algorithm)
    assert sums is not None
    assert not y.any()
    assert not sums.any()
    case = square(algorithm, {"relu", "positive", "upper"})
    x = case.x.clone()
    x[1, 0, 4, 4] = NAN
    y, _ = case.run(algorithm, x=x)
    reached = case.weights.shape[0] // case.weights.groups  # the first group's
    assert y[1, :reached, 3:6, 3:6].isnan().all()
    assert not y[1, reached:].isnan().any()
    assert not y[[each for each in range(len(y)) if each != 1]].isnan().any()


def test_a_sigmoid_of_anything(level: Target) -> None:
    """1 / (1 + exp(-x)), also where exp overflows, and nothing in the channels of whole panels."""
    given = torch.tensor([-INF, -1e30, -100.0, -50.0, -1.0, -0.0, 1e-8, 1.0, 50.0, 100.0, 1e30, INF, NAN])
    x = given.view(1, 1, 1, -1)
    y, sums = convolution(x, Weights(torch.ones(3, 1, 1, 1)), activation=Activation("sigmoid"), statistic="sum")
    check_panels(y)
    torch.testing.assert_close(y, x.sigmoid().expand(1, 3, -1, -1), rtol=5e-7, atol=1e-37, equal_nan=True)
    assert sums is not None
    assert sums.isnan().all()


def test_a_unit_at_its_bound_is_not_active(level: Target) -> None:
    x = torch.tensor([-1.0, 0.0, 3.0, 6.0, 7.0, INF]).view(1, 1, 1, -1)
    weights, six = Weights(torch.ones(1, 1, 1, 1)), Activation("relu", 6.0)
    y, counts = convolution(x, weights, activation=six, statistic="positive")
    assert y.flatten().tolist() == [0, 0, 3, 6, 6, 6]
    assert counts is not None
    assert counts.item() == 1
    bound = Activation("identity", 6.0)
    g, _ = convolution(torch.ones_like(y), weights, relu_mask=y, activation=bound)
    assert g.flatten().tolist() == [0, 0, 1, 0, 0, 0]


def test_no_images(level: Target) -> None:
    for case in (Case(SHAPES["24 outputs"], {"relu", "positive"}), in_groups(GROUPED["depthwise"], {"positive"})):
        y, sums = case.run(x=case.x[:0])
        assert y.shape == (0, 24, *case.x.shape[2:])
        assert sums is not None
        assert sums.shape == (0, 24)


def test_the_cheapest_form_reads_little_for_few_positions_and_multiplies_little_for_many() -> None:
    def algorithm(channels: int, size: int, images: int) -> int:
        return cheapest_algorithm((channels, channels, 3, 3), (1, 1), (1, 1), images, (size, size))

    assert [algorithm(512, 4, images) for images in (1, 4, 32)] == [
        Algorithm.INDIRECT_GEMM,
        Algorithm.WINOGRAD_F2,
        Algorithm.WINOGRAD_F4,
    ]
    assert algorithm(64, 32, 1) == Algorithm.WINOGRAD_F4
    assert cheapest_algorithm((64, 8, 3, 3), (1, 1), (1, 1), 32, (32, 32)) == Algorithm.INDIRECT_GEMM
    assert cheapest_algorithm((64, 64, 3, 3), (2, 2), (1, 1), 32, (32, 32)) == Algorithm.INDIRECT_GEMM
    assert cheapest_algorithm((64, 64, 5, 5), (1, 1), (1, 1), 32, (32, 32)) == Algorithm.INDIRECT_GEMM


def test_what_does_not_fit_is_refused_by_name() -> None:
    case = Case(SHAPES["square"], ENDINGS["everything"])
    assert case.residual is not None
    assert case.scale is not None
    with pytest.raises(BackendError, match=r"x has 31 channels, the weights \(48, 32, 3, 3\) take 32"):
        case.run(x=case.x[:, 1:])
    with pytest.raises(BackendError, match="residual must be"):
        case.run(residual=case.residual[:, :, 1:])
    with pytest.raises(BackendError, match="scale must be"):
        case.run(scale=case.scale[1:])
    with pytest.raises(BackendError, match="smaller than the window"):
        convolution(torch.zeros(1, 32, 2, 2), case.weights)
    with pytest.raises(BackendError, match="statistic='mean' does not exist"):
        convolution(case.x, case.weights, statistic="mean")
    with pytest.raises(BackendError, match="float32"):
        convolution(case.x.bfloat16(), case.weights)
    with pytest.raises(BackendError, match=r"groups of a divisor or a multiple of 16 channels, .* in 2 groups"):
        convolution(torch.zeros(1, 48, 9, 7), Weights(torch.zeros(48, 24, 3, 3), 2))
    with pytest.raises(BackendError, match=r"as many in as out, .*weights \(64, 16, 3, 3\) in 2 groups"):
        convolution(case.x, Weights(torch.zeros(64, 16, 3, 3), 2))
    with pytest.raises(BackendError, match=r"x has 48 channels, the weights \(32, 16, 3, 3\) take 32"):
        convolution(torch.zeros(1, 48, 9, 7), Weights(torch.zeros(32, 16, 3, 3), 2))
    with pytest.raises(
        BackendError, match=r"no convolution with stride \(2, 2\), .* makes \(9, 7\) positions of \(9, 9\)"
    ):
        convolution(torch.zeros(1, 48, 9, 7), case.weights, stride=(2, 2), input_size=(9, 9))
    with pytest.raises(BackendError, match="x has 32 channels, the weights .* take 48"):
        convolution(case.x, case.weights, stride=(2, 2), input_size=(17, 13))
    with pytest.raises(BackendError, match="backend='triton' has no convolution"):
        convolution(case.x, case.weights, backend="triton")


def test_threads_that_pack_at_once_get_one_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    # An executable keeps the address alone of what it was given.
    weights, pack, others = Weights(torch.ones(16, 16, 3, 3)), packing._pack_group, list[Tensor]()

    def meanwhile(weight: Tensor, algorithm: Algorithm, packed: Tensor) -> None:
        monkeypatch.setattr(packing, "_pack_group", pack)
        others.append(weights.packed(algorithm))
        pack(weight, algorithm, packed)

    monkeypatch.setattr(packing, "_pack_group", meanwhile)
    assert weights.packed(Algorithm.WINOGRAD_F4) is others[0] is weights.packed(Algorithm.WINOGRAD_F4)


def test_what_the_kernels_could_not_read_is_not_packed() -> None:
    """They are given addresses of float32 numbers in an order of 3x3 windows."""
    weight = torch.randn(40, 300, 3, 3)
    for algorithm in Algorithm:
        packed = Weights(weight.double()).packed(algorithm)
        assert packed.dtype == torch.float32
        assert torch.equal(packed, Weights(weight).packed(algorithm))
    for size in ((1, 1), (1, 9), (5, 5)):
        for algorithm in (Algorithm.WINOGRAD_F2, Algorithm.WINOGRAD_F4):
            with pytest.raises(
                BackendError, match=rf"{algorithm.name} takes 3x3 windows, not \({size[0]}, {size[1]}\)"
            ):
                Weights(torch.ones(16, 16, *size)).packed(algorithm)


def test_windows_without_a_tap_are_packed() -> None:
    """As the adjoint of a strided 1x1 convolution has them, at positions that no window reads."""
    assert Weights(torch.ones(2 * 64 + 1, 16, 0, 1)).packed(Algorithm.INDIRECT_GEMM).numel() == 0
