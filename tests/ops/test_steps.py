"""Executables as the C++ side runs them: each step against the operation it stands for."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from gaia_fast import ops
from gaia_fast.backends import KERNEL_DTYPES, kernels
from gaia_fast.errors import BackendError
from gaia_fast.ops.active_everywhere import active_everywhere
from gaia_fast.ops.convolution import Part, Weights, convolution, packing
from gaia_fast.ops.convolution.packing import Algorithm
from gaia_fast.ops.convolution.steps import (
    ACTIVATIONS,
    NULL,
    POOLINGS,
    RELU,
    STATISTICS,
    Pointer,
    Step,
    address,
    convolution_steps,
    epilogue,
)
from gaia_fast.ops.maps import DTYPE_CODES

from cases import INTERPRETED, TARGETS, Target

if TYPE_CHECKING:
    from gaia_fast._kernels import CheckStep, Epilogue, PointwiseStep

if INTERPRETED:
    pytest.skip("executables have no Triton kernel", allow_module_level=True)

LEVELS = [each for each in TARGETS if each.backend == "cpu"]
IMAGES, CHANNELS, SIDE = 3, 32, 64  # enough work for several threads


@pytest.fixture(params=LEVELS, ids=str)
def level(request: pytest.FixtureRequest) -> Iterator[Target]:
    with request.param.active() as each:
        yield each


def random(*size: int) -> Tensor:
    return torch.randn(size)


def behind(y: Pointer, **options: Any) -> "Epilogue":
    """What stands behind a step that writes so many channels as most here."""
    return epilogue(CHANNELS, y, **options)


def check(
    wave: int,
    y: Pointer,
    shape: torch.Size,
    out: Pointer,
    out_stride: int,
    begin: int,
    step: int,
    first: int,
    last: int,
) -> "CheckStep":
    return kernels.CheckStep(
        wave=wave,
        y=y,
        shape=shape,
        begin=begin,
        step=step,
        first=first,
        last=last,
        out=out,
        out_stride=out_stride,
    )


def empty_map() -> Tensor:
    return torch.empty(IMAGES, CHANNELS, SIDE, SIDE).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_waves_wait_for_each_other_and_sums_go_where_they_are_wanted(level: Target, threads: int) -> None:
    torch.manual_seed(0)
    x = random(IMAGES, CHANNELS, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
    weights, factor, shift = Weights(random(CHANNELS, CHANNELS, 3, 3) / 17), random(CHANNELS), random(CHANNELS)
    part = Part(weights, (1, 1), (1, 1), (1, 1))
    first, second, third = empty_map(), empty_map(), empty_map()
    packed, answers = torch.empty(IMAGES, 3 * CHANNELS), torch.empty(IMAGES, 2)
    # The maps are given at each run: places 0 to 4.
    row, out = 3 * CHANNELS, (SIDE, SIDE)
    steps: list[Step] = []
    steps += convolution_steps(
        0,
        [part],
        None,
        address(x),
        x.shape,
        out,
        behind(Pointer(0, 0, CHANNELS), sums=Pointer(3, 0), sums_stride=row, activation=RELU, statistic="sum"),
    )
    steps += [
        kernels.PointwiseStep(
            wave=1,
            x=Pointer(0, 0, CHANNELS),
            shape=x.shape,
            factor=address(factor),
            epilogue=behind(
                Pointer(1, 0, CHANNELS),
                bias=shift,
                sums=Pointer(3, CHANNELS),
                sums_stride=row,
                activation=RELU,
                statistic="positive",
            ),
        ),
        check(1, Pointer(0, 0, CHANNELS), x.shape, Pointer(4, 0), 2, 1, 3, 0, CHANNELS),
    ]
    steps += convolution_steps(
        2,
        [part],
        None,
        Pointer(1, 0, CHANNELS),
        x.shape,
        out,
        behind(
            Pointer(2, 0, CHANNELS),
            relu_mask=Pointer(0, 0, CHANNELS),
            sums=Pointer(3, 2 * CHANNELS),
            sums_stride=row,
            statistic="abs_sum",
        ),
    )
    steps.append(check(2, Pointer(1, 0, CHANNELS), x.shape, Pointer(4, 1), 2, 0, 1, 5, 9))
    executable = kernels.Executable(steps)
    for _ in range(3):
        for each in (first, second, third, packed, answers):
            each.fill_(float("nan"))
        given = [each.data_ptr() for each in (first, second, third, packed, answers)]
        assert executable.run(given, threads)
        y, sums = convolution(x, weights, padding=(1, 1), activation=RELU, statistic="sum")
        assert sums is not None
        assert torch.equal(first, y)
        assert torch.equal(packed[:, :CHANNELS], sums)
        z, counts = ops.relu_forward_count(y, factor, shift, backend="torch")
        assert torch.equal(second, z)
        assert torch.equal(packed[:, CHANNELS : 2 * CHANNELS], counts)
        g, magnitudes = convolution(z, weights, relu_mask=y, padding=(1, 1), statistic="abs_sum")
        assert magnitudes is not None
        assert torch.equal(third, g)
        assert torch.equal(packed[:, 2 * CHANNELS :], magnitudes)
        assert torch.equal(answers[:, 0], active_everywhere(y, 1, 3))
        assert torch.equal(answers[:, 1], active_everywhere(z, 0, 1, 5, 9))


def test_a_wave_waits_for_the_thread_that_began_later(level: Target) -> None:
    """Two long items, the second of them begun when the other thread has woken up; who is done first asks for both."""
    x = torch.ones(1, 512, 8, 8).contiguous(memory_format=torch.channels_last)
    part = Part(Weights(torch.ones(512, 512, 3, 3)), (1, 1), (1, 1), (1, 1))
    y, answer = torch.empty_like(x), torch.empty(1)
    steps = convolution_steps(
        0, [part], Algorithm.INDIRECT_GEMM, address(x), x.shape, (8, 8), epilogue(512, address(y))
    )
    executable = kernels.Executable([*steps, check(1, address(y), x.shape, address(answer), 1, 0, 1, 0, 512)])
    for _ in range(5):
        y.fill_(float("nan"))
        assert executable.run([], 2)
        assert answer.item() == 1


def test_a_long_chain_of_small_steps(level: Target, set_threads: Callable[[int], None]) -> None:
    """Threads that are late find waves that are over; nothing is done twice, or left out."""
    torch.manual_seed(0)
    ones = torch.ones(CHANNELS)
    x = torch.zeros(1, CHANNELS, 2, 2).contiguous(memory_format=torch.channels_last)
    maps = [torch.empty_like(x) for _ in range(400)]
    steps: list[Step] = []
    for i, y in enumerate(maps):
        source = maps[i - 1] if i else x
        steps.append(
            kernels.PointwiseStep(
                wave=i,
                x=address(source),
                shape=x.shape,
                factor=NULL,
                epilogue=behind(address(y), bias=ones, activation=RELU),
            )
        )
    # Enough work for several threads.
    part = Part(Weights(torch.zeros(CHANNELS, CHANNELS, 3, 3)), (1, 1), (1, 1), (1, 1))
    large = torch.zeros(1, CHANNELS, 64, 64).contiguous(memory_format=torch.channels_last)
    last = torch.empty_like(large)
    steps += convolution_steps(
        400, [part], Algorithm.INDIRECT_GEMM, address(large), large.shape, (64, 64), behind(address(last))
    )
    executable = kernels.Executable(steps)
    for threads in (1, 2, 4):
        assert executable.run([], threads)
        assert all(bool((y == i + 1).all()) for i, y in enumerate(maps))
        assert not last.any()


SHAPE = torch.Size((1, CHANNELS, 8, 8))
Y = Pointer(0, 0, CHANNELS)
NARROW = Pointer(0, 0, CHANNELS - 1)  # positions that lie nearer to each other than their channels are many
TOO_NARROW = f"a map of {CHANNELS} channels, positions {CHANNELS - 1} apart"


def pointwise(wave: int = 0, **changed: Any) -> "PointwiseStep":
    given: dict[str, Any] = {"y": Y, "channels": CHANNELS}
    ending = kernels.Epilogue(**given | changed)
    return kernels.PointwiseStep(wave=wave, x=Y, shape=SHAPE, factor=NULL, epilogue=ending)


def check_refusal(make: Callable[..., Any], given: dict[str, Any], changed: dict[str, Any], message: str) -> None:
    """Checks that a record can be made, and is refused with what is changed."""
    make(**given)
    with pytest.raises(ValueError, match=message):
        make(**given | changed)


@pytest.mark.parametrize("waves", [(1,), (-1,), (0, 2), (0, 1, 0)])
def test_waves_that_are_not_numbered_one_by_one_are_refused(waves: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=r"a step of wave -?\d behind (none|one of wave \d); waves are numbered from 0"
    ):
        kernels.Executable([pointwise(wave) for wave in waves])


def test_what_is_no_step_is_refused() -> None:
    with pytest.raises(ValueError, match="a tuple in place of a step"):
        kernels.Executable([pointwise(), (1, 2)])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="a Windows in place of a step"):
        kernels.Executable([kernels.Windows(**WINDOWS)])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="on 0 threads"):
        kernels.Executable([pointwise()]).run([0], 0)


@pytest.mark.parametrize(
    ("epilogue", "message"),
    [
        ({"statistic": 7}, "unknown statistic 7"),
        ({"statistic": -1}, "unknown statistic -1"),
        ({"y": NULL}, "without y"),
        ({"sums": Y, "sums_stride": CHANNELS - 1}, f"sums of {CHANNELS} channels, images {CHANNELS - 1} apart"),
        ({"activation": 3}, "unknown activation 3"),
        ({"activation": -1}, "unknown activation -1"),
        ({"upper": 0.0}, "whose activation is at most 0"),
        ({"upper": -1.0}, "whose activation is at most -1"),
        ({"upper": float("nan")}, "whose activation is at most"),
        ({"channels": CHANNELS - 16}, "of 16 channels behind 32 outputs"),
        ({"channels": CHANNELS + 1}, "of 33 channels behind 32 outputs"),
        ({"channels": CHANNELS - 15, "sums": Y, "sums_stride": 16}, "sums of 17 channels, images 16 apart"),
        ({"y": NARROW}, TOO_NARROW),
        ({"residual": NARROW}, TOO_NARROW),
        ({"relu_mask": NARROW}, TOO_NARROW),
        ({"skip": NARROW}, TOO_NARROW),
    ],
)
def test_epilogues_that_mean_nothing_are_refused(epilogue: dict[str, Any], message: str) -> None:
    check_refusal(pointwise, {}, epilogue, message)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": NULL}, "without x"),
        ({"x": NARROW}, TOO_NARROW),
        ({"shape": (1, CHANNELS, 0, 8)}, "with a size of 0"),
        ({"shape": (1, CHANNELS - 8, 8, 8)}, "with 24 channels"),
        ({"shape": (1, CHANNELS + 16, 8, 8), "x": Y._replace(pitch=64)}, "of 32 channels behind 48 outputs"),
    ],
)
def test_pointwise_steps_that_do_not_fit_are_refused(changed: dict[str, Any], message: str) -> None:
    given = {"wave": 0, "x": Y, "shape": SHAPE, "factor": NULL, "epilogue": behind(Y)}
    check_refusal(kernels.PointwiseStep, given, changed, message)


CONVOLUTION: dict[str, Any] = {
    "wave": 0,
    "algorithm": 1,
    "x": Y,
    "shape": SHAPE,
    "packed": Pointer(0, 0),
    "packed_size": 9 * CHANNELS * CHANNELS,
    "out": (8, 8),
    "outputs": CHANNELS,
    "kernel": (3, 3),
    "stride": (1, 1),
    "padding": (1, 1),
    "dilation": (1, 1),
    "y_size": (8, 8),
    "begin": (0, 0),
    "step": (1, 1),
}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"algorithm": 5}, "algorithm 5, which does not exist"),
        ({"algorithm": 0}, "algorithm 0, which does not exist"),
        ({"x": NULL}, "without x"),
        ({"packed": NULL}, "without its packed weights"),
        ({"packed_size": 16 * CHANNELS * CHANNELS}, "32 inputs and 32 outputs, and 16384 packed weights"),
        ({"algorithm": 2}, "32 inputs and 32 outputs, and 9216 packed weights"),
        ({"algorithm": 4, "packed_size": 36 * CHANNELS**2, "stride": (2, 2)}, "takes 3x3 windows side by side"),
        ({"algorithm": 4, "packed_size": 36 * CHANNELS**2, "y_size": (9, 9)}, "and all of y"),
        ({"outputs": 24, "packed_size": 9 * CHANNELS * 24}, "24 outputs"),
        ({"shape": torch.Size((0, CHANNELS, 8, 8))}, "size or distance of 0"),
        ({"step": (1, 0)}, "size or distance of 0"),
        ({"kernel": (3, -3)}, "window of -3 positions"),
        ({"begin": (0, 1)}, "outputs outside of y"),
        ({"step": (2, 1)}, "outputs outside of y"),
        ({"x": NARROW}, TOO_NARROW),
        ({"algorithm": 2, "packed_size": 16 * 24 * CHANNELS, "shape": (1, 24, 8, 8)}, "channels in whole groups"),
        ({"epilogue": epilogue(16, Y)}, "of 16 channels behind 32 outputs"),
    ],
)
def test_convolutions_that_would_leave_their_memory_are_refused(changed: dict[str, Any], message: str) -> None:
    check_refusal(kernels.ConvolutionStep, CONVOLUTION | {"epilogue": behind(Y)}, changed, message)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"group": 0}, "in groups of 0 channels"),
        ({"group": -8}, "in groups of -8 channels"),
        ({"group": 3, "packed_size": 9 * 3 * CHANNELS}, "in groups of 3 channels"),
        ({"group": 24, "packed_size": 9 * 24 * CHANNELS}, "in groups of 24 channels"),
        ({"group": 64, "packed_size": 9 * 64 * CHANNELS}, "in groups of 64 channels"),
        ({"x": Y._replace(pitch=24), "shape": (1, 24, 8, 8)}, "in groups of 8 channels"),  # no whole panels to read
        ({"shape": (1, 16, 8, 8)}, "in groups of 8 channels"),  # fewer inputs than outputs
        ({"packed_size": 9 * CHANNELS * CHANNELS}, "32 inputs and 32 outputs, and 9216 packed weights"),
        ({"outputs": 24, "packed_size": 9 * 8 * 24}, "32 inputs and 24 outputs, and 1728 packed weights"),
        ({"packed": NULL}, "without its packed weights"),
    ],
)
def test_convolutions_in_groups_that_do_not_fit_are_refused(changed: dict[str, Any], message: str) -> None:
    given = CONVOLUTION | {"algorithm": int(Algorithm.GROUPED), "group": 8, "packed_size": 9 * 8 * CHANNELS}
    check_refusal(kernels.ConvolutionStep, given | {"epilogue": behind(Y)}, changed, message)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"y": NULL}, "without a map"),
        ({"out": NULL}, "or a place for its answers"),
        ({"first": 9, "last": 8}, "channels 9 to 8 of 32"),
        ({"last": 33}, "channels 0 to 33 of 32"),
        ({"test": 3}, "unknown test 3"),
        ({"begin": -1}, "from -1 on"),
        ({"step": 0}, "0 apart"),
        ({"out_stride": 0}, "answers are 0 apart"),
        ({"shape": torch.Size((1, 0, 8, 8))}, "a size of 0"),
    ],
)
def test_checks_outside_of_their_map_are_refused(changed: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"wave": 0, "y": Y, "shape": SHAPE, "begin": 0, "step": 1, "first": 0, "last": CHANNELS}
    given |= {"out": Pointer(1, 0), "out_stride": 1}
    check_refusal(kernels.CheckStep, given, changed, message)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": NULL}, "a copy without a map"),
        ({"y": NULL}, "or a place for it"),
        ({"y": NARROW}, TOO_NARROW),
        ({"shape": torch.Size((1, CHANNELS, 0, 8))}, "a copy with a size of 0"),
    ],
)
def test_copies_of_images_that_do_not_fit_are_refused(changed: dict[str, Any], message: str) -> None:
    check_refusal(kernels.ChannelsLastStep, {"wave": 0, "x": Y, "shape": SHAPE, "y": Y}, changed, message)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": NULL}, "a mean's gradient without a map"),
        ({"mean": NARROW}, TOO_NARROW),
        ({"shape": torch.Size((1, 24, 8, 8))}, "a mean's gradient of 24 channels"),
        ({"shape": torch.Size((0, CHANNELS, 8, 8))}, "a mean's gradient with a size of 0"),
    ],
)
def test_gradients_of_means_that_do_not_fit_are_refused(changed: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"wave": 0, "x": Y, "shape": SHAPE, "mean": Y, "y": Y}
    check_refusal(kernels.MeanGradientStep, given, changed, message)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"gate": NULL}, "a gate's gradient without a map"),
        ({"out": NARROW}, TOO_NARROW),
        ({"shape": torch.Size((1, 24, 8, 8))}, "a gate's gradient of 24 channels"),
    ],
)
def test_gradients_of_gates_that_do_not_fit_are_refused(changed: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"wave": 0, "g": Y, "y": Y, "shape": SHAPE, "gate": Y, "out": Y}
    check_refusal(kernels.GateGradientStep, given, changed, message)


AT = Pointer(1, 0)
ROWS: dict[str, tuple[type, dict[str, Any]]] = {
    "copy": (
        kernels.CopyColumnsStep,
        {"wave": 0, "x": AT, "x_stride": 4, "images": 2, "width": 4, "y": AT, "y_stride": 9},
    ),
    "slopes": (kernels.LogitSlopesStep, {"wave": 0, "logits": AT, "stride": 7, "images": 2, "classes": 7, "out": Y}),
    "means": (
        kernels.MeanRootStep,
        {"wave": 0, "x": AT, "x_stride": 7, "images": 2, "columns": 7, "factor": 1.0, "out": AT, "out_stride": 1},
    ),
    "score": (
        kernels.ScoreStep,
        {
            "wave": 0,
            "packed": AT,
            "stride": 12,
            "images": 2,
            "widths": [7, 5],
            "inverse_area": [0.5, 0.25],
            "component": AT,
            "component_stride": 1,
            "out": AT,
            "out_stride": 1,
        },
    ),
    "results": (
        kernels.ResultCheckStep,
        {
            "wave": 0,
            "images": 2,
            "classes": 7,
            "precondition_count": 3,
            "logits": AT,
            "score": AT,
            "preconditions": AT,
            "component": AT,
            "finite": AT,
            "out": AT,
            "strides": [7, 1, 3, 1, 1, 1],
            "rounding": 0.0,
        },
    ),
}


@pytest.mark.parametrize(
    ("step", "changed", "message"),
    [
        ("copy", {"x": NULL}, "a copy of columns without them"),
        ("copy", {"y": NULL}, "or a place for them"),
        ("copy", {"x_stride": 3}, "columns that overlap"),
        ("copy", {"y_stride": 3}, "rows of 4 numbers, 3 apart"),
        ("copy", {"images": 0}, "0 rows"),
        ("slopes", {"logits": NULL}, "slopes without logits"),
        ("slopes", {"classes": 8}, "rows of 8 numbers, 7 apart"),
        ("slopes", {"out": Pointer(1, 0, 6)}, "a map of 7 channels, positions 6 apart"),
        ("means", {"x": NULL}, "means without numbers"),
        ("means", {"columns": 8}, "rows of 8 numbers, 7 apart"),
        ("means", {"out_stride": 0}, "roots of 2 rows"),
        ("score", {"packed": NULL}, "a score without sums"),
        ("score", {"inverse_area": [1.0]}, "2 layers with 1 areas"),
        ("score", {"widths": [0, 5]}, "a layer of 0 columns"),
        ("score", {"stride": 11}, "rows of 12 numbers, 11 apart"),
        ("score", {"component_stride": 0}, "components are in one place"),
        ("results", {"score": NULL}, "without logits, score"),
        ("results", {"strides": [6, 1, 3, 1, 1, 1]}, "logits of 2 rows of 7 numbers, 6 apart"),
        ("results", {"strides": [7, 1, 2, 1, 1, 1]}, "preconditions that overlap"),
        ("results", {"strides": [7, 1, 3, 0, 1, 1]}, "components in one place"),
        ("results", {"strides": [7, 1, 3, 1, 0, 1]}, "answers in one place"),
        ("results", {"strides": [7, 1, 3, 1, 1, 0]}, "a check of results of 2 rows"),
    ],
)
def test_rows_that_do_not_fit_are_refused(step: str, changed: dict[str, Any], message: str) -> None:
    kind, given = ROWS[step]
    kind(**given)
    check_refusal(kind, given, changed, message)


WINDOWS: dict[str, Any] = {
    "shape": SHAPE,
    "out": (8, 8),
    "kernel": (3, 3),
    "stride": (1, 1),
    "padding": (1, 1),
    "dilation": (1, 1),
}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"shape": (0, CHANNELS, 8, 8)}, "size or distance of 0"),
        ({"shape": (1, CHANNELS, 8, -8)}, "size or distance of -8"),
        ({"out": (0, 8)}, "size or distance of 0"),
        ({"kernel": (3, 0)}, "size or distance of 0"),
        ({"stride": (-1, 1)}, "size or distance of -1"),
        ({"dilation": (1, 0)}, "size or distance of 0"),
        ({"shape": (1, 24, 8, 8)}, "windows over 24 channels"),
        ({"padding": (-1, 1)}, "one is outside of the map"),
        ({"padding": (1, 3)}, "one is outside of the map"),
        ({"out": (10, 8)}, "one is outside of the map"),
        ({"stride": (1, 2)}, "one is outside of the map"),
    ],
)
def test_windows_outside_of_their_map_are_refused(changed: dict[str, Any], message: str) -> None:
    check_refusal(kernels.Windows, WINDOWS, changed, message)
    # What hangs over the edge is not outside.
    kernels.Windows(**WINDOWS | {"out": (9, 9)})
    kernels.Windows(**WINDOWS | {"padding": (2, 2)})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": NULL}, "without x"),
        ({"y": NULL}, "or anything to write"),
        ({"kind": 2}, "of unknown kind 2"),
        ({"kind": -1}, "of unknown kind -1"),
        ({"divisor": -1}, "with divisor -1"),
        ({"kind": POOLINGS["mean"], "counts": Y, "counts_stride": CHANNELS}, "with counts that has none"),
        ({"counts": Y, "counts_stride": CHANNELS - 1}, "or no room for them"),
        ({"x": NARROW}, TOO_NARROW),
        ({"y": NARROW}, TOO_NARROW),
    ],
)
def test_poolings_that_do_not_fit_are_refused(changed: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"wave": 0, "x": Y, "y": Y, "windows": kernels.Windows(**WINDOWS), "channels": CHANNELS}
    given["kind"] = POOLINGS["maximum"]
    check_refusal(kernels.PoolStep, given, changed, message)
    kernels.PoolStep(**given | {"y": NULL, "counts": Y, "counts_stride": CHANNELS})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": NULL}, "without a map or a vector"),
        ({"y": NULL}, "without a map or a vector"),
        ({"scale": NULL}, "without a map or a vector"),
        ({"shift": NULL}, "without a map or a vector"),
        ({"shape": (1, CHANNELS, 0, 8)}, "with a size of 0"),
        ({"groups": 0}, "of 32 channels in 0 groups"),
        ({"groups": 5}, "of 32 channels in 5 groups"),
        ({"shape": (1, 24, 8, 8)}, "of 24 channels in 4 groups"),
        ({"sums": Y, "sums_stride": CHANNELS - 1}, "without room for its sums"),
        ({"x": NARROW}, TOO_NARROW),
        ({"y": NARROW}, TOO_NARROW),
    ],
)
def test_group_norms_that_do_not_fit_are_refused(changed: dict[str, Any], message: str) -> None:
    given = {"wave": 0, "x": Y, "y": Y, "shape": SHAPE, "groups": 4, "scale": Y, "shift": Y, "epsilon": 1e-5}
    check_refusal(kernels.GroupNormStep, given, changed, message)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"inner": NULL}, "a mask of nothing"),
        ({"group": 0}, "in groups of 0 channels"),
        ({"group": -16}, "in groups of -16 channels"),
        ({"group": 3}, "in groups of 3 channels"),
        ({"group": 24}, "in groups of 24 channels"),
        ({"group": 64}, "in groups of 64 channels"),
        ({"counts": Y, "counts_stride": CHANNELS - 1}, "without room for its counts"),
        ({"channels": CHANNELS + 1}, "without room for its counts"),
    ],
)
def test_masks_that_do_not_fit_are_refused(changed: dict[str, Any], message: str) -> None:
    given = {"wave": 0, "windows": kernels.Windows(**WINDOWS), "inner": Y, "channels": CHANNELS}
    check_refusal(kernels.MaskStep, given, changed, message)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mask": NULL}, "without a mask"),
        ({"out": NULL}, "or a place for its answers"),
        ({"shape": (1, CHANNELS, 8, 0)}, "with a size of 0"),
        ({"shape": (1, 24, 8, 8)}, "of a mask of 24 channels"),
        ({"begin": -1}, "positions from -1 on"),
        ({"step": 0}, "0 apart"),
        ({"out_stride": 0}, "a check of positions"),
    ],
)
def test_checks_of_masks_that_do_not_fit_are_refused(changed: dict[str, Any], message: str) -> None:
    given = {"wave": 0, "mask": Y, "shape": SHAPE, "begin": 0, "step": 1, "out": Y, "out_stride": 1}
    check_refusal(kernels.MaskCheckStep, given, changed, message)


def test_weights_packed_for_another_algorithm_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    part = Part(Weights(torch.zeros(CHANNELS, CHANNELS, 3, 3)), (1, 1), (1, 1), (1, 1))
    packed = Weights.packed
    im2col, f2, _, f4 = Algorithm
    for algorithm, other in ((im2col, f2), (f2, f4), (f4, im2col)):
        monkeypatch.setattr(Weights, "packed", lambda self, _, other=other: packed(self, other))
        message = f"algorithm {int(algorithm)} with {CHANNELS} inputs and {CHANNELS} outputs"
        with pytest.raises(ValueError, match=message):
            convolution_steps(0, [part], algorithm, Y, SHAPE, (8, 8), behind(Y))
        with pytest.raises(BackendError, match=f"{message}.*It is of another version than the package"):
            convolution(torch.zeros(SHAPE), part.weights, padding=(1, 1), algorithm=algorithm)


def test_packing_and_numbers_are_the_extensions() -> None:
    assert (packing.NR, packing.PANELS, packing.KC) == (
        kernels.PACKED_NR,
        kernels.PACKED_PANELS,
        kernels.PACKED_KC,
    )
    assert {each.name.lower(): each.value for each in Algorithm} == kernels.ALGORITHMS
    assert kernels.STATISTICS == STATISTICS
    assert kernels.ACTIVATIONS == ACTIVATIONS
    assert kernels.POOLINGS == POOLINGS
    assert set(STATISTICS) == {"sum", "abs_sum", "positive"}
    assert set(ACTIVATIONS) == {"identity", "relu", "sigmoid"}
    assert set(POOLINGS) == {"maximum", "mean"}
    assert {str(dtype).removeprefix("torch."): code for dtype, code in DTYPE_CODES.items()} == kernels.DTYPES
    assert tuple(DTYPE_CODES) == KERNEL_DTYPES
