from collections.abc import Callable, Collection, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from gaia_fast.errors import BackendError
from gaia_fast.ops.convolution import Weights, convolution, packing
from gaia_fast.ops.convolution.packing import Algorithm, cheapest_algorithm
from gaia_fast.ops.convolution.parts import Pair
from gaia_fast.ops.convolution.reference import convolution_reference

from cases import INF, INTERPRETED, NAN, TARGETS, Target

if INTERPRETED:
    pytest.skip("the convolution has no Triton kernel", allow_module_level=True)

LEVELS = [each for each in TARGETS if each.backend == "cpu"]

# How many times PyTorch's own error a algorithm may have: what the transforms of Winograd's filtering cost.
ROUNDING = {Algorithm.INDIRECT_GEMM: 2, Algorithm.WINOGRAD_F2: 6, Algorithm.WINOGRAD_F4: 24}

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
}
ENDINGS: dict[str, Collection[str]] = {
    "plain": {},
    "forward": {"bias", "residual", "relu", "positive"},
    "backward": {"residual", "relu_mask", "sum", "scale", "skip"},
    "absolute": {"relu_mask", "abs_sum"},
    "everything": {"bias", "residual", "relu", "relu_mask", "abs_sum", "scale", "skip"},
}


@pytest.fixture(params=LEVELS, ids=str)
def level(request: pytest.FixtureRequest) -> Iterator[Target]:
    with request.param.active() as each:
        yield each


class Case:
    """A convolution with random arguments."""

    def __init__(self, shape: Shape, ending: Collection[str] = frozenset(), seed: int = 0) -> None:
        images, inputs, outputs, height, width, window, self.stride, self.padding, self.dilation = shape
        generator = torch.Generator().manual_seed(seed)

        def random(*size: int) -> Tensor:
            return torch.randn(size, generator=generator)

        self.x = random(images, inputs, height, width)
        self.weights = Weights(random(outputs, inputs, *window) / (inputs * window[0] * window[1]) ** 0.5)
        out = torch.conv2d(self.x, self.weights.weight, None, self.stride, self.padding, self.dilation).shape
        self.bias = random(outputs) if "bias" in ending else None
        self.scale = random(outputs) if "scale" in ending else None
        self.residual = random(*out) if "residual" in ending else None
        self.relu_mask = random(*out).relu() if "relu_mask" in ending else None
        self.skip = random(*out) if "skip" in ending else None
        self.relu = "relu" in ending
        self.input_size: tuple[int, int] | None = None
        self.statistic = next((each for each in ("sum", "abs_sum", "positive") if each in ending), None)

    @property
    def algorithms(self) -> list[Algorithm]:
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
            x, self.weights, **given, **self.window, relu=self.relu, statistic=self.statistic, algorithm=algorithm
        )

    def reference(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        maps = (self.bias, self.residual, self.relu_mask, self.scale, self.skip)
        bias, residual, relu_mask, scale, skip = [None if each is None else each.to(dtype) for each in maps]
        window = self.stride, self.padding, self.dilation, self.input_size
        options = *window, self.relu, self.statistic
        weight = self.weights.weight.to(dtype)
        return convolution_reference(self.x.to(dtype), weight, bias, residual, relu_mask, scale, skip, *options)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_against_the_formula(level: Target, shape: str, ending: str) -> None:
    case = Case(SHAPES[shape], ENDINGS[ending])
    truth, _ = case.reference(torch.float64)
    plain, _ = case.reference(torch.float32)
    own = float((plain.double() - truth).abs().max())
    for algorithm in case.algorithms:
        y, sums = case.run(algorithm)
        assert y.shape == truth.shape
        assert y.is_contiguous(memory_format=torch.channels_last)
        error = float((y.double() - truth).abs().max())
        assert error <= ROUNDING[algorithm] * own + 2e-7 * float(truth.abs().max()), f"algorithm {algorithm}"
        if case.statistic is None:
            assert sums is None
        else:
            assert sums is not None
            check_sums(case, algorithm, sums)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("shape", ADJOINTS)
def test_the_adjoint_of_a_strided_convolution(level: Target, shape: str, ending: str) -> None:
    images, inputs, outputs, height, width, window, stride, padding = ADJOINTS[shape]
    forward = Case((images, inputs, outputs, height, width, window, stride, padding, (1, 1)))
    small = torch.conv2d(forward.x, forward.weights.weight, None, stride, padding)
    # The endings of a case whose outputs are as the map that the adjoint leads to.
    case = Case((images, 1, inputs, height, width, (1, 1), (1, 1), (0, 0), (1, 1)), ENDINGS[ending], seed=1)
    case.x, case.weights, case.stride, case.padding = small, forward.weights, stride, padding
    case.input_size = (height, width)
    truth, _ = case.reference(torch.float64)
    plain, _ = case.reference(torch.float32)
    y, sums = case.run()
    allowed = 2 * float((plain.double() - truth).abs().max()) + 2e-7 * float(truth.abs().max())
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert float((y.double() - truth).abs().max()) <= allowed
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
        assert torch.equal(sums, (z > 0).sum((2, 3)).float())
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


@pytest.mark.parametrize("algorithm", [Algorithm.INDIRECT_GEMM, Algorithm.WINOGRAD_F2, Algorithm.WINOGRAD_F4])
def test_any_strides(level: Target, algorithm: Algorithm) -> None:
    case = Case(SHAPES["square"], ENDINGS["everything"])
    y, _ = case.run(algorithm)
    assert case.relu_mask is not None
    wide = torch.zeros(3, 64, 18, 7)
    wide[:, ::2, ::2] = case.x
    again, _ = case.run(
        algorithm, x=wide[:, ::2, ::2], relu_mask=case.relu_mask.contiguous(memory_format=torch.channels_last)
    )
    assert torch.equal(y, again)


@pytest.mark.parametrize("algorithm", [Algorithm.INDIRECT_GEMM, Algorithm.WINOGRAD_F2, Algorithm.WINOGRAD_F4])
def test_a_closed_gate_lets_nothing_through_and_a_nan_stays_one(level: Target, algorithm: Algorithm) -> None:
    case = Case(SHAPES["square"], {"relu_mask", "sum"})
    assert case.relu_mask is not None
    case.residual = torch.full_like(case.relu_mask, INF)
    case.relu_mask = torch.zeros_like(case.relu_mask)
    y, sums = case.run(algorithm)
    assert sums is not None
    assert not y.any()
    assert not sums.any()
    case = Case(SHAPES["square"], {"relu", "positive"})
    x = case.x.clone()
    x[1, 0, 4, 4] = NAN
    y, _ = case.run(algorithm, x=x)
    assert y[1, :, 3:6, 3:6].isnan().all()
    assert not y[[0, 2]].isnan().any()


def test_no_images(level: Target) -> None:
    case = Case(SHAPES["square"], {"relu", "positive"})
    y, sums = case.run(x=case.x[:0])
    assert y.shape == (0, 48, 9, 7)
    assert sums is not None
    assert sums.shape == (0, 48)


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
    with pytest.raises(BackendError, match="outputs in whole sixteens"):
        convolution(case.x, Weights(torch.zeros(10, 32, 3, 3)))
    with pytest.raises(BackendError, match="float32"):
        convolution(case.x.bfloat16(), case.weights)
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
    weights, matrix, others = Weights(torch.ones(16, 16, 3, 3)), packing._filter_matrix, list[Tensor]()

    def meanwhile(algorithm: Algorithm) -> Tensor:
        monkeypatch.setattr(packing, "_filter_matrix", matrix)
        others.append(weights.packed(algorithm))
        return matrix(algorithm)

    monkeypatch.setattr(packing, "_filter_matrix", meanwhile)
    assert weights.packed(Algorithm.WINOGRAD_F4) is others[0] is weights.packed(Algorithm.WINOGRAD_F4)
