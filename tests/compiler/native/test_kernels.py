"""Each kernel in an executable, at every instruction-set level, against what it gives by itself."""

from collections.abc import Callable, Sequence
from math import inf, nan
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from executing import HEIGHT, WIDTH, Values, alone, bools, both, map_of, mask_of, one_by_one, together, words
from torch import Tensor

from gaia_fast.backends import kernels
from gaia_fast.compiler.native.executable import Executable, Instruction
from gaia_fast.compiler.native.kernels import (
    BoundCheck,
    Check,
    Concatenation,
    Convolution,
    GateGradient,
    GroupNorm,
    Kernel,
    Mask,
    MaskCheck,
    MeanGradient,
    Pointwise,
    Pool,
    Windows,
)
from gaia_fast.compiler.native.result_kernels import Columns
from gaia_fast.ops.convolution import Part, Weights, adjoint_parts
from gaia_fast.ops.convolution.packing import NR, Algorithm, padded
from gaia_fast.ops.convolution.parts import Pair
from gaia_fast.ops.convolution.steps import IDENTITY, RELU, SIGMOID, Activation, Pointer, address

from cases import Target

IMAGES = [1, 3]
CHANNELS = [16, 24, 64]  # 24 are padded to two panels
RELU6 = Activation("relu", 6.0)
NARROW = Activation("relu", 0.5)  # which many units reach


def windows(
    kernel: Pair, stride: Pair = (1, 1), padding: Pair = (0, 0), dilation: Pair = (1, 1), ceil: bool = False
) -> Windows:
    """Windows over a map of HEIGHT x WIDTH; with `ceil` the last may hang over the edge."""
    out = []
    for size, k, s, p, d in zip((HEIGHT, WIDTH), kernel, stride, padding, dilation, strict=True):
        free = size + 2 * p - d * (k - 1) - 1
        last = -(-free // s) if ceil else free // s
        out.append(min(last, (size + p - 1) // s) + 1)
    return Windows(kernel, stride, padding, dilation, (out[0], out[1]))


WINDOWS = {
    "2x2": windows((2, 2), (2, 2)),
    "3x3": windows((3, 3), (1, 1), (1, 1)),
    "3x3, strided": windows((3, 3), (2, 2), (1, 1)),
    "3x3, hanging over": windows((3, 3), (2, 2), ceil=True),
    "4x3, strided by 3 and hanging over": windows((4, 3), (3, 3), (1, 0), ceil=True),
    "5x5": windows((5, 5), (1, 1), (2, 2)),
    "2x3, oblong": windows((2, 3), (1, 2), (1, 0)),
    "dilated": windows((3, 3), (1, 1), (1, 1), (2, 2)),
    "dilated otherwise": windows((2, 3), (2, 1), (1, 1), (3, 2)),
    "far apart": windows((2, 2), (3, 3)),
    "whole": windows((HEIGHT, WIDTH)),
}


def tied(images: int, channels: int) -> Tensor:
    """A map in which maxima are found more than once, and windows without a positive entry."""
    return (torch.randn(images, channels, HEIGHT, WIDTH).round() - 0.5).relu() - torch.randint(0, 2, (channels, 1, 1))


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("name", WINDOWS)
def test_maxima_and_the_units_that_are_one(level: Target, name: str, zeros: bool, channels: int, images: int) -> None:
    kernel, x = Pool("maximum", WINDOWS[name], zeros), tied(images, channels)
    alive = mask_of(images, channels, *WINDOWS[name].out, density=0.5)
    (y,) = alone(kernel, [x, None], [0])
    again, counts = alone(kernel, [x, None], [0, 1])
    assert torch.equal(again, y)
    (same_counts,) = alone(kernel, [x, None], [1])
    assert torch.equal(same_counts, counts)
    (fewer,) = alone(kernel, [x, alive], [1])
    assert bool((fewer <= counts).all())
    assert not torch.equal(fewer, counts)
    if not zeros:  # and against PyTorch's choice, which is the first maximum
        truth, winners = pooled(x, WINDOWS[name])
        assert torch.equal(y, truth)
        assert torch.equal(counts, first_maxima(x, winners, torch.ones_like(alive)))
        assert torch.equal(fewer, first_maxima(x, winners, alive))


def pooled(x: Tensor, windows: Windows) -> tuple[Tensor, Tensor]:
    """PyTorch's maxima, and where they are, of windows that it takes."""
    (top, left), ceil = windows.padding, True
    around = F.pad(x, (left, left, top, top), value=-inf)
    y, winners = F.max_pool2d(
        around, windows.kernel, windows.stride, 0, windows.dilation, ceil_mode=ceil, return_indices=True
    )
    height, width = windows.out
    y, winners = y[:, :, :height, :width], winners[:, :, :height, :width]
    rows, columns = winners // around.shape[3] - top, winners % around.shape[3] - left
    return y, rows * x.shape[3] + columns


def first_maxima(x: Tensor, winners: Tensor, alive: Tensor) -> Tensor:
    won = torch.zeros(x.shape[0], x.shape[1], x.shape[2] * x.shape[3])
    # A window without a finite entry has no winner inside of the map.
    won.scatter_add_(2, winners.flatten(2).clamp(min=0), (alive & (winners >= 0)).float().flatten(2))
    return ((won.view_as(x) > 0) & (x > 0)).float().sum((2, 3))


def test_the_first_of_equal_maxima_wins(level: Target) -> None:
    x = torch.zeros(1, 16, HEIGHT, WIDTH)
    x[:, 0, 0, :3] = 2  # the second is the first of the window that begins there
    x[:, 1, 0, 0] = x[:, 1, 1, 1] = 3
    x[:, 2] = 1  # each window's upper left
    x[:, 3] = -1
    _, counts = alone(Pool("maximum", windows((2, 2), (2, 2))), [x, None], [0, 1])
    assert counts[0, :4].tolist() == [2, 1, 12, 0]
    overlapping = Pool("maximum", windows((3, 3), (1, 1), (1, 1)))
    (counts,) = alone(overlapping, [x, None], [1])
    # Of all windows around it each entry but those of the last two rows and columns is the first of one.
    assert counts[0, 2] == (HEIGHT - 1) * (WIDTH - 1)


@pytest.mark.parametrize("channels", [16, 24])
@pytest.mark.parametrize("zeros", [False, True])
def test_maxima_of_what_is_not_finite(level: Target, zeros: bool, channels: int) -> None:
    x = tied(2, channels)
    x[0, 1, 4, 4] = x[0, 2, 0, 0] = x[1, 3, 8, 6] = nan
    x[0, 4, 2:5, 2:5] = -inf
    x[0, 5] = -inf
    x[0, 6, 3, 3] = inf
    y, counts = alone(Pool("maximum", windows((3, 3), (1, 1), (1, 1)), zeros), [x, None], [0, 1])
    assert y[0, 1, 3:6, 3:6].isnan().all()
    assert y.isnan().sum() == 9 + 4 + 4
    assert y[0, 5].max() == (0 if zeros else -inf)
    assert counts[0, 6] > 0
    assert counts[0, 5] == 0


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("divisor", [0, 1, 7])
@pytest.mark.parametrize("name", WINDOWS)
def test_means(level: Target, name: str, divisor: int, channels: int, images: int) -> None:
    kernel, x = Pool("mean", WINDOWS[name], divisor=divisor), map_of(images, channels)
    (y,) = alone(kernel, [x, None], [0], rtol=1e-5, atol=1e-5)
    truth = kernel(x.double(), None)[0]
    own = float((kernel(x, None)[0] - truth).abs().max())
    assert float((y - truth).abs().max()) <= 2 * own + 2e-7 * float(truth.abs().max())


@pytest.mark.parametrize("channels", CHANNELS)
def test_a_mean_and_a_maximum_of_all_of_a_map(level: Target, channels: int) -> None:
    x = map_of(2, channels, 45, 44) + 3
    (mean,) = alone(Pool("mean", None), [x, None], [0], rtol=1e-6)
    torch.testing.assert_close(mean.double(), x.double().mean((2, 3), keepdim=True), rtol=1e-6, atol=0)
    maximum, counts = alone(Pool("maximum", None), [x, None], [0, 1])
    assert torch.equal(maximum, x.amax((2, 3), keepdim=True))
    assert bool((counts == 1).all())


# (channels, groups): 2 and 8 of a vector or less, one, more than a panel together, and whole panels.
GROUPS = [(64, 32), (256, 32), (32, 32), (48, 48), (96, 2), (48, 4), (64, 4), (160, 2), (16, 1)]


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("channels", "groups"), GROUPS)
def test_group_norms(level: Target, channels: int, groups: int, relu: bool, images: int) -> None:
    assert GroupNorm.takes(channels, groups)
    for height, width, spread, offset in ((9, 7, 1, 0), (1, 2, 1, 0), (28, 29, 1, 1000), (12, 13, 30, -20)):
        x = map_of(images, channels, height, width) * spread + offset * torch.rand(channels, 1, 1)
        kernel = GroupNorm(groups, torch.randn(channels), torch.randn(channels), 1e-5, relu)
        expected = one_by_one([Instruction(kernel, (0,), (1, 2))], {0: x})
        y, counts = together([Instruction(kernel, (0,), (1, 2))], {0: x}, [1, 2], expected)
        truth = F.group_norm(x.double(), groups, kernel.scale.double(), kernel.shift.double(), 1e-5)
        truth = truth.relu() if relu else truth
        own = float((expected[1] - truth).abs().max())
        assert float((y - truth).abs().max()) <= 2 * own + 1e-6, (height, width, offset)
        assert torch.equal(counts, (y > 0).float().sum((2, 3)))


@pytest.mark.parametrize(("channels", "groups"), [(32, 32), (64, 32), (96, 2)])
@pytest.mark.parametrize("size", [(30, 30), (112, 112)])
def test_a_group_norm_of_what_is_constant(level: Target, size: Pair, channels: int, groups: int) -> None:
    """The variance is nil, and what rounding leaves of a mean is multiplied by 300."""
    x = (3 * torch.randn(2, groups, 1, 1, 1)).expand(-1, -1, channels // groups, *size).flatten(1, 2)
    kernel = GroupNorm(groups, torch.ones(channels), torch.zeros(channels), 1e-5, False)
    expected = one_by_one([Instruction(kernel, (0,), (1, None))], {0: x})
    (y,) = together([Instruction(kernel, (0,), (1, None))], {0: x}, [1], expected)
    own = float(expected[1].abs().max())
    assert float(y.abs().max()) <= 2 * own + 1e-6


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("channels", CHANNELS)
def test_gradients_of_gates(level: Target, channels: int, images: int) -> None:
    for height, width in ((HEIGHT, WIDTH), (1, 1), (40, 30)):
        g, y = map_of(images, channels, height, width), map_of(images, channels, height, width)
        gate = map_of(images, channels, 1, 1).sigmoid()
        (found,) = alone(GateGradient(), [g, y, gate], [0], rtol=1e-5, atol=1e-5)
        z = torch.logit(gate.double()).requires_grad_()
        (truth,) = torch.autograd.grad((y.double() * z.sigmoid() * g.double()).sum(), z)
        assert float((found - truth).abs().max()) <= 1e-5 * max(1.0, float(truth.abs().max()))


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("channels", CHANNELS)
def test_gradients_of_means(level: Target, channels: int, images: int) -> None:
    for height, width in ((HEIGHT, WIDTH), (1, 1), (40, 30)):
        x, mean = map_of(images, channels, height, width), map_of(images, channels, 1, 1)
        (found,) = alone(MeanGradient(), [x, mean], [0], rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(found.double(), x.double() + mean.double() / (height * width), rtol=1e-6, atol=1e-6)


def test_a_group_norm_keeps_a_nan_to_its_group(level: Target) -> None:
    x = map_of(2, 64)
    x[1, 5, 4, 4] = nan
    kernel = GroupNorm(32, torch.ones(64), torch.zeros(64), 1e-5, True)
    y, counts = alone(kernel, [x], [0, 1], rtol=1e-5, atol=1e-6)
    assert y[1, 4:6].isnan().all()
    assert y.isnan().sum() == 2 * HEIGHT * WIDTH
    assert counts[1, 4:6].tolist() == [0, 0]


# Windows of a convolution, which lead from a map to another, or of a pooling.
REACH = {
    "1x1": windows((1, 1)),
    "1x1, strided": windows((1, 1), (2, 2)),
    "3x3": windows((3, 3), (1, 1), (1, 1)),
    "3x3, strided": windows((3, 3), (2, 2), (1, 1)),
    "3x3, no padding": windows((3, 3)),
    "5x5, strided": windows((5, 5), (2, 2), (2, 2)),
    "3x5, strided otherwise": windows((3, 5), (1, 3), (1, 2)),
    "dilated": windows((3, 3), (1, 1), (2, 2), (2, 2)),
    "dilated and strided": windows((2, 3), (2, 3), (1, 2), (2, 2)),
    "far apart": windows((2, 2), (4, 3)),
}


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize(
    ("channels", "group"),
    [(16, 1), (24, 1), (64, 1), (24, 2), (24, 8), (64, 4), (16, 16), (64, 16), (64, 32), (96, 48), (64, 64)],
)
@pytest.mark.parametrize("name", REACH)
def test_masks_of_what_windows_look_at(level: Target, name: str, channels: int, group: int, images: int) -> None:
    inner = mask_of(images, channels, density=0.5)
    outer = mask_of(images, channels, *REACH[name].out, density=0.1 / group**0.5)
    outer[:, :, 0, 0] = outer[:, : channels // 2, -1, -1] = True
    for either in (False, True):
        kernel = Mask(REACH[name], group, either=either)
        mask, counts = alone(kernel, [inner, outer], [0, 1])
        assert torch.equal(counts, mask.float().sum((2, 3)))
        (same_mask,) = alone(kernel, [inner, outer], [0])
        assert torch.equal(same_mask, mask)
        (same_counts,) = alone(kernel, [inner, outer], [1])
        assert torch.equal(same_counts, counts)
    kernel = Mask(REACH[name], group, (HEIGHT, WIDTH))
    mask, counts = alone(kernel, [None, outer], [0, 1])
    assert torch.equal(mask, reached(outer, REACH[name], group))
    assert 0 < float(counts.sum()) <= mask.numel()


# Windows that do not lie at the map's positions times their stride, and windows as wide as the map.
FAR = {
    "far apart": ((9, 4), Windows((5, 5), (3, 3), (2, 2), (1, 1), (3, 2))),
    "dilated as far as the map": ((4, 4), Windows((3, 3), (1, 1), (2, 2), (2, 2), (4, 4))),
    "the last beyond the edge": ((4, 4), Windows((3, 3), (2, 2), (1, 1), (1, 1), (3, 3))),
    "padded on one side": ((8, 8), Windows((3, 3), (1, 1), (0, 0), (1, 1), (8, 8))),
}


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize(("channels", "group"), [(24, 1), (64, 4), (64, 32)])
@pytest.mark.parametrize("name", FAR)
def test_masks_of_windows_that_lie_otherwise(level: Target, name: str, channels: int, group: int, images: int) -> None:
    size, over = FAR[name]
    outer = mask_of(images, channels, over.out[0], over.out[1], 0.2 / group**0.5)
    outer[:, :, -1, -1] = True
    mask, counts = alone(Mask(over, group, size), [None, outer], [0, 1])
    assert torch.equal(mask, reached(outer, over, group, size))
    assert torch.equal(counts, mask.float().sum((2, 3)))


def reached(outer: Tensor, windows: Windows, group: int, size: Pair = (HEIGHT, WIDTH)) -> Tensor:
    """The positions that a window looks at in which some channel of the group is, by the definition."""
    images, channels = outer.shape[:2]
    mask = torch.zeros(images, channels, *size, dtype=torch.bool)
    any_of = outer.unflatten(1, (-1, group)).any(2).repeat_interleave(group, 1)
    for i in range(windows.out[0]):
        for j in range(windows.out[1]):
            for a in range(windows.kernel[0]):
                for b in range(windows.kernel[1]):
                    row = i * windows.stride[0] - windows.padding[0] + a * windows.dilation[0]
                    column = j * windows.stride[1] - windows.padding[1] + b * windows.dilation[1]
                    if 0 <= row < size[0] and 0 <= column < size[1]:
                        mask[:, :, row, column] |= any_of[:, :, i, j]
    return mask


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("either", [False, True])
@pytest.mark.parametrize(
    ("channels", "others", "slices"),
    [
        (64, 64, (None, None)),
        (24, 24, (None, None)),
        (64, 32, ((16, 32), None)),
        (32, 96, (None, (48, 32))),
        (64, 96, ((16, 48), (32, 48))),
        (56, 40, ((48, 8), (32, 8))),
    ],
)
def test_masks_of_two_and_of_their_slices(
    level: Target,
    channels: int,
    others: int,
    slices: tuple[tuple[int, int] | None, tuple[int, int] | None],
    either: bool,
    images: int,
) -> None:
    inner, outer = mask_of(images, channels, density=0.5), mask_of(images, others, density=0.4)
    mask, counts = alone(Mask(None, either=either, slices=slices), [inner, outer], [0, 1])
    one, other = (
        each if part is None else each[:, part[0] : part[0] + part[1]]
        for each, part in zip((inner, outer), slices, strict=True)
    )
    assert torch.equal(mask, one | other if either else one & other)
    assert torch.equal(counts, mask.float().sum((2, 3)))


@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("size", [(16, 31), (16, 32), (23, 23), (112, 112), (300, 301)])
def test_counts_of_large_masks(level: Target, size: Pair, density: float) -> None:
    """These are counted many words at a time."""
    inner, outer = mask_of(2, 24, size[0], size[1], density), mask_of(2, 24, size[0], size[1], 0.5)
    (counts,) = alone(Mask(None), [inner, outer], [1])
    assert torch.equal(counts, (inner & outer).float().sum((2, 3)))


@pytest.mark.parametrize("size", [(3, 90), (40, 33), (64, 64)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
def test_what_windows_look_at_in_large_maps(level: Target, size: Pair, stride: int, kernel: int) -> None:
    out = (size[0] - 1) // stride + 1, (size[1] - 1) // stride + 1
    outer = mask_of(2, 24, out[0], out[1], 0.05)
    ones = torch.ones(24, 1, kernel, kernel)
    spare = [each - ((o - 1) * stride + kernel - 2 * (kernel // 2)) for each, o in zip(size, out, strict=True)]
    reached_by = F.conv_transpose2d(outer.float(), ones, None, stride, kernel // 2, spare, groups=24) > 0
    over = Windows((kernel, kernel), (stride, stride), (kernel // 2, kernel // 2), (1, 1), out)
    mask, counts = alone(Mask(over, 1, size), [None, outer], [0, 1])
    assert torch.equal(mask, reached_by)
    assert torch.equal(counts, mask.float().sum((2, 3)))


def test_a_slice_of_what_windows_look_at(level: Target) -> None:
    outer = mask_of(3, 96, *REACH["3x3, strided"].out)
    kernel = Mask(REACH["3x3, strided"], 8, (HEIGHT, WIDTH), slices=(None, (32, 48)))
    (mask,) = alone(kernel, [None, outer], [0])
    assert torch.equal(mask, reached(outer[:, 32:80], REACH["3x3, strided"], 8))


@pytest.mark.parametrize("channels", [16, 24])
def test_a_mask_of_one_is_that_one(level: Target, channels: int) -> None:
    """What the compiler does not ask for."""
    inner, counts = mask_of(2, channels), torch.empty(2, channels)
    lying, out = words(inner), words(torch.ones_like(inner))
    over = kernels.Windows(
        shape=(2, padded(channels), HEIGHT, WIDTH),
        out=(HEIGHT, WIDTH),
        kernel=(1, 1),
        stride=(1, 1),
        padding=(0, 0),
        dilation=(1, 1),
    )
    step = kernels.MaskStep(
        wave=0,
        windows=over,
        inner=Pointer(-1, lying.data_ptr()),
        out=Pointer(-1, out.data_ptr()),
        counts=address(counts),
        counts_stride=channels,
        channels=channels,
    )
    assert kernels.Executable([step]).run([], 1)
    assert torch.equal(bools(out, channels), inner)
    assert torch.equal(counts, inner.float().sum((2, 3)))


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize(("begin", "step"), [(0, 1), (1, 3), (0, 2), (2, 5), (20, 1)])
def test_checks_of_masks(level: Target, begin: int, step: int, channels: int, images: int) -> None:
    mask = torch.zeros(images, channels, HEIGHT, WIDTH, dtype=torch.bool)
    grid = mask[:, :, begin::step, begin::step]
    some = torch.randint(0, channels, (images, 1, *grid.shape[2:]))
    grid.scatter_(1, some, True)
    (answers,) = alone(MaskCheck(begin, step), [mask], [0])
    assert answers.tolist() == [1] * images
    for row in range(begin, HEIGHT, step):
        less = mask.clone()
        less[-1, :, row, begin] = False
        (answers,) = alone(MaskCheck(begin, step), [less], [0])
        assert answers.tolist() == [1] * (images - 1) + [0]


@pytest.mark.parametrize("channels", CHANNELS)
def test_checks_of_maps(level: Target, channels: int) -> None:
    """Channels that are padded are no reason to say that one is active."""
    y = map_of(3, channels).abs()
    y[1, :, 4, 4] = 0
    y[2, : channels // 2, 4, 4] = -1
    assert alone(Check(1, 3), [y], [0])[0].tolist() == [1, 0, 1]
    assert alone(Check(0, 2, 0, channels // 2), [y], [0])[0].tolist() == [1, 0, 0]
    assert alone(Check(0, 2, channels // 2), [y], [0])[0].tolist() == [1, 0, 1]
    assert alone(Check(2, 3), [y], [0])[0].tolist() == [1, 1, 1]


@pytest.mark.parametrize("channels", [8, 16, 40])
@pytest.mark.parametrize("size", [(1, 1), (HEIGHT, WIDTH)])
def test_checks_that_all_is_above_a_bound(level: Target, size: Pair, channels: int) -> None:
    y = 0.25 + torch.rand(4, channels, *size)
    y[1, -1, -1, -1], y[2, 0, 0, 0] = 0.25, nan
    assert alone(BoundCheck(0.25), [y], [0])[0].tolist() == [1, 0, 0, 1]
    assert alone(BoundCheck(0.0), [y], [0])[0].tolist() == [1, 1, 0, 1]


def pointwise(
    channels: int,
    activation: Activation = IDENTITY,
    statistic: str | None = None,
    factor: bool = False,
    shift: bool = False,
    scale: bool = False,
) -> Pointwise:
    return Pointwise(
        torch.randn(channels) if factor else None,
        torch.randn(channels) if shift else None,
        torch.randn(channels) if scale else None,
        activation,
        statistic,
    )


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("activation", [RELU, NARROW])
def test_norms_and_activations(level: Target, activation: Activation, channels: int, images: int) -> None:
    x, residual = map_of(images, channels), map_of(images, channels)
    kernel = pointwise(channels, activation, "positive", factor=True, shift=True)
    y, counts, mask = alone(kernel, [x, None, None, None], [0, 1, 2])
    assert torch.equal(counts, mask.float().sum((2, 3)))
    assert torch.equal(mask, (y > 0) & (y < activation.upper))
    alone(kernel, [x, residual, None, None], [0, 1, 2])
    alone(pointwise(channels, activation), [x, residual, None, None, None], [0, 2])


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("upper", [inf, 0.5])
@pytest.mark.parametrize("statistic", ["sum", "abs_sum"])
def test_gradients_through_an_activation(
    level: Target, statistic: str, upper: float, channels: int, images: int
) -> None:
    g, y, skip, more = (map_of(images, channels) for _ in range(4))
    kernel = pointwise(channels, Activation("identity", upper), statistic, scale=True)
    alone(kernel, [g, None, y.relu().clamp(max=upper), None], [0, 1], rtol=2e-6, atol=2e-6)
    alone(kernel, [g, more, y.relu().clamp(max=upper), skip], [0, 1], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("channels", CHANNELS)
def test_a_gate(level: Target, channels: int, images: int) -> None:
    x, gate, skip = map_of(images, channels), torch.rand(images, channels, 1, 1), map_of(images, channels)
    (y,) = alone(pointwise(channels), [x, None, None, None, gate], [0])
    assert torch.equal(y, x * gate)
    alone(pointwise(channels, RELU, "positive", shift=True), [x, skip, None, None, gate], [0, 1, 2])
    alone(pointwise(channels, scale=True), [x, None, None, skip, gate], [0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("channels", [16, 24])
def test_a_gate_that_is_made_in_the_executable(level: Target, channels: int, images: int) -> None:
    """Squeeze and excitation: a mean over a map, two convolutions of it, a sigmoid, and the map times that."""
    x = map_of(images, channels)
    squeeze, excite = convolution(channels, 4, 1, activation=RELU), convolution(4, channels, 1, activation=SIGMOID)
    instructions = [
        Instruction(Pool("mean", None), (0, None), (1, None)),
        Instruction(squeeze, (1, None, None, None), (2, None, None)),
        Instruction(excite, (2, None, None, None), (3, None, None)),
        Instruction(pointwise(channels), (0, None, None, None, 3), (4, None, None)),
        Instruction(convolution(channels, channels, 3, groups=channels), (4, None, None, None), (5, None, None)),
    ]
    (y, gated) = both(instructions, {0: x}, [5, 4], rtol=1e-5, atol=1e-6)
    assert y.isfinite().all()
    gate = torch.sigmoid(excite(squeeze(x.mean((2, 3), keepdim=True), None, None, None)[0], None, None, None)[0])
    assert gate.shape == (images, channels, 1, 1)
    assert bool((gated.abs() <= x.abs()).all())


def convolution(
    inputs: int,
    outputs: int,
    size: int = 3,
    stride: int = 1,
    groups: int = 1,
    activation: Activation = IDENTITY,
    statistic: str | None = None,
    bias: bool = True,
    scale: bool = False,
    algorithm: Algorithm | None = None,
) -> Convolution:
    weight = torch.randn(outputs, inputs // groups, size, size) / (inputs // groups * size * size) ** 0.5
    part = Part(Weights(weight, groups), (stride, stride), (size // 2, size // 2), (1, 1))
    shift, factor = (torch.randn(outputs) if each else None for each in (bias, scale))
    return Convolution([part], shift, factor, None, activation, statistic, algorithm)


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize(
    ("inputs", "outputs", "groups"),
    [(3, 16, 1), (16, 24, 1), (24, 10, 1), (24, 64, 1), (64, 64, 1), (24, 24, 24), (24, 24, 3), (64, 64, 2)],
)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("activation", [RELU, NARROW])
def test_convolutions(
    level: Target, activation: Activation, stride: int, inputs: int, outputs: int, groups: int, images: int
) -> None:
    x = map_of(images, inputs)
    for algorithm in [None] if stride > 1 or inputs % NR or groups > 1 else Algorithm:
        if algorithm is Algorithm.GROUPED:
            continue
        kernel = convolution(inputs, outputs, 3, stride, groups, activation, "positive", algorithm=algorithm)
        y, counts, mask = alone(kernel, [x, None, None, None], [0, 1, 2])
        assert torch.equal(mask, (y > 0) & (y < activation.upper))
        assert torch.equal(counts, mask.float().sum((2, 3)))
        assert mask.any()
        assert not mask.all()
        others = [map_of(*y.shape) for _ in range(3)]
        kernel = convolution(
            inputs, outputs, 3, stride, groups, Activation(upper=0.5), "abs_sum", False, True, algorithm
        )
        alone(kernel, [x, others[0], others[1].relu().clamp(max=0.5), others[2]], [0, 1])


@pytest.mark.parametrize("outputs", [10, 24, 64])
def test_sigmoids(level: Target, outputs: int) -> None:
    """Which are a half of nothing: none stands behind the channels."""
    instructions = [
        Instruction(convolution(16, outputs, activation=SIGMOID), (0, None, None, None), (1, None, None)),
        Instruction(pointwise(outputs, statistic="sum"), (1, None, None, None), (2, 3, None)),
    ]
    both(instructions, {0: map_of(3, 16)}, [1, 2, 3], rtol=1e-5)


@pytest.mark.parametrize("groups", [1, 3, 24])
def test_the_adjoint_of_a_strided_convolution(level: Target, groups: int) -> None:
    weight = torch.randn(24, 24 // groups, 3, 3)
    parts = adjoint_parts(weight, (2, 2), (1, 1), groups)
    y = map_of(3, 24).relu()
    g = map_of(3, 24, (HEIGHT + 1) // 2, (WIDTH + 1) // 2)
    kernel = Convolution(parts, None, torch.randn(24), (HEIGHT, WIDTH), IDENTITY, "sum")
    alone(kernel, [g, None, y, map_of(3, 24)], [0, 1])


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("outputs", CHANNELS)
@pytest.mark.parametrize("group", [1, 8])
def test_masks_that_kernels_write_and_read(level: Target, group: int, outputs: int, images: int) -> None:
    """Of a strided convolution behind a ReLU6, the units that are active, and those that a window with one reads."""
    first = convolution(3, outputs, activation=RELU6, statistic="positive")
    second = convolution(outputs, outputs, 3, 2, outputs // group)
    norm = pointwise(outputs, RELU, "positive", factor=True, shift=True)
    over = windows((3, 3), (2, 2), (1, 1))
    instructions = [
        Instruction(first, (0, None, None, None), (1, 2, 3)),
        Instruction(second, (1, None, None, None), (4, None, None)),
        Instruction(norm, (4, None, None, None, None), (5, 6, 7)),
        Instruction(Mask(over, group), (3, 7), (None, 8)),
        Instruction(Mask(over, group, (HEIGHT, WIDTH)), (None, 7), (9, 10)),
        Instruction(Mask(None, either=True), (9, 3), (None, 11)),
        Instruction(MaskCheck(1, 3), (9,), (12,)),
    ]
    both(instructions, {0: map_of(images, 3)}, [2, 6, 8, 10, 11, 12, 5])


@pytest.mark.parametrize("outputs", [16, 24])
def test_maxima_by_a_mask_that_kernels_made(level: Target, outputs: int) -> None:
    first = convolution(3, outputs, activation=RELU, statistic="positive")
    second = convolution(outputs, outputs, activation=RELU)
    over = WINDOWS["3x3, strided"]
    instructions = [
        Instruction(first, (0, None, None, None), (1, 2, None)),
        Instruction(Pool("maximum", over), (1, None), (3, None)),
        Instruction(second, (3, None, None, None), (4, None, 5)),
        Instruction(Pool("maximum", over), (1, 5), (None, 6)),
    ]
    both(instructions, {0: map_of(3, 3)}, [2, 6, 4])


def test_sums_that_are_wanted_side_by_side(level: Target) -> None:
    """Rows of more columns than a kernel has sums, channels that are no whole panels, and one of them twice."""
    wide, narrow = convolution(3, 24, statistic="sum"), convolution(24, 10, 3, 2, activation=RELU, statistic="positive")
    norm = GroupNorm(8, torch.randn(16), torch.randn(16), 1e-5, True)
    instructions = [
        Instruction(wide, (0, None, None, None), (1, 2, None)),
        Instruction(narrow, (1, None, None, None), (3, 4, 5)),
        Instruction(convolution(3, 16), (0, None, None, None), (6, None, None)),
        Instruction(norm, (6,), (7, 8)),
        Instruction(Pool("maximum", WINDOWS["3x3"]), (7, None), (None, 9)),
        Instruction(Mask(windows((3, 3), (2, 2), (1, 1)), 1, (HEIGHT, WIDTH)), (None, 5), (10, 11)),
        Instruction(MaskCheck(0, 1), (10,), (12,)),
        Instruction(Check(0, 2), (7,), (13,)),
        Instruction(Columns([None] * 7), (4, 8, 9, 2, 11, 8, 4), (14,)),
        Instruction(Columns([None, torch.arange(5.0), None, None]), (12, 13, 12), (15,)),
        Instruction(Columns([None, None]), (4, 2), (16,)),
    ]
    given = {0: map_of(3, 3)}
    both(instructions, given, [14, 15, 16, 3], rtol=1e-5, atol=1e-5)
    both(instructions, given, [14, 15, 16, 8], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("channels", CHANNELS)
def test_a_number_for_each_channel_behind_a_relu(level: Target, channels: int, images: int) -> None:
    """The gradient of a sum of means, say: the same at every position."""
    factor, y = torch.randn(channels), map_of(images, channels)
    for relu, bound in ((RELU, inf), (NARROW, 0.5)):
        kernel = Pointwise(factor, None, torch.randn(channels), Activation("identity", relu.upper), "abs_sum")
        z, sums = alone(kernel, [None, None, y, None, None], [0, 1], rtol=1e-6, atol=1e-6)
        passed = (y > 0) & (y < bound)
        assert torch.equal(z != 0, passed)
        torch.testing.assert_close(sums, passed.sum((2, 3)) * factor.abs(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reader", ["residual", "relu_mask", "skip", "x of groups", "gate", "pool", "pointwise"])
def test_zeros_stand_behind_the_channels_of_inputs(level: Target, reader: str) -> None:
    """A map of 24 channels that is part of a larger one, of NaN, is read in whole panels; so is what it leads to."""
    whole = torch.full((3, 32, HEIGHT, WIDTH), nan).contiguous(memory_format=torch.channels_last)
    whole[:, :24] = torch.randn(3, 24, HEIGHT, WIDTH)
    part, x = whole[:, :24], map_of(3, 24)
    given: Values = {0: x, 1: part}
    grouped = convolution(24, 24, groups=3)
    inputs: dict[str, tuple[Kernel, tuple[int | None, ...], tuple[int | None, ...]]] = {
        "residual": (convolution(24, 24), (0, 1, None, None), (2, None, None)),
        "relu_mask": (convolution(24, 24, statistic="sum"), (0, None, 1, None), (2, 3, None)),
        "skip": (convolution(24, 24), (0, None, None, 1), (2, None, None)),
        "x of groups": (grouped, (1, None, None, None), (2, None, None)),
        "gate": (pointwise(24), (0, None, None, None, 1), (2, None, None)),
        "pool": (Pool("maximum", WINDOWS["3x3"]), (1, None), (2, 3)),
        "pointwise": (pointwise(24, RELU, "positive"), (1, None, None, None), (2, 3, None)),
    }
    if reader == "gate":
        given[1] = part[:, :, :1, :1]
    instructions = [
        Instruction(*inputs[reader]),
        Instruction(grouped, (2, None, None, None), (4, None, None)),
        Instruction(pointwise(24, RELU), (4, 2, None, None), (5, None, 6)),
    ]
    found = both(instructions, given, [2, 4, 5, 6], rtol=1e-5, atol=1e-6)
    assert all(each.isfinite().all() for each in found)


def test_a_map_that_only_convolutions_read_is_taken_as_it_is(level: Target) -> None:
    instructions = [
        Instruction(convolution(24, 16), (0, None, None, None), (1, None, None)),
        Instruction(Check(0, 1), (0,), (2,)),
    ]
    executable = Executable(instructions, [(0, None)], (1, 2))
    assert executable._in_panels == [False]
    both(instructions, {0: map_of(3, 24)}, [1, 2])
    both(instructions, {0: map_of(3, 32)[:, :24]}, [1, 2])


def conv(x: int, y: int, inputs: int = 16, outputs: int = 16) -> Instruction:
    return Instruction(convolution(inputs, outputs, activation=RELU), (x, None, None, None), (y, None, None))


def cat(parts: Sequence[int], y: int) -> Instruction:
    return Instruction(Concatenation(), tuple(parts), (y,))


# Value 0 is an input of 16 channels, 1 one of 24; instructions, and what leaves.
CONCATENATIONS: dict[str, Callable[[], tuple[list[Instruction], list[int]]]] = {
    "in place": lambda: ([conv(0, 2), conv(0, 3), cat((2, 3), 4), conv(4, 5, 32)], [5]),
    "of an input": lambda: ([conv(0, 2), cat((0, 2), 3), conv(3, 4, 32)], [4]),
    "of inputs alone": lambda: ([cat((0, 1), 2), conv(2, 3, 40)], [3]),
    "of what is no whole panels": lambda: (
        [conv(0, 2), conv(1, 3, 24, 24), cat((2, 3), 4), conv(4, 5, 40, 10), cat((2, 5), 6)],
        [4, 6],
    ),
    "that leaves": lambda: ([conv(0, 2), conv(2, 3), cat((2, 3), 4)], [4]),
    "that leaves with its parts": lambda: ([conv(0, 2), conv(2, 3), cat((2, 3), 4), conv(4, 5, 32)], [4, 2, 5, 3]),
    "that goes on with another's": lambda: (
        [
            conv(0, 2),
            conv(2, 3),
            cat((2, 3), 4),
            conv(4, 5, 32),
            cat((2, 3, 5), 6),
            conv(6, 7, 48),
            cat((2, 3, 5, 7), 8),
            conv(8, 9, 64),
        ],
        [9],
    ),
    "that goes on with another's, of an input": lambda: (
        [conv(0, 2), cat((0, 2), 3), conv(3, 4, 32), cat((0, 2, 4), 5), conv(5, 6, 48)],
        [6],
    ),
    "that goes on with another's, which leaves": lambda: (
        [conv(0, 2), conv(2, 3), cat((2, 3), 4), conv(4, 5, 32), cat((2, 3, 5), 6), conv(6, 7, 48)],
        [4, 7],
    ),
    "of a concatenation": lambda: (
        [conv(0, 2), conv(2, 3), cat((2, 3), 4), conv(4, 5, 32), cat((4, 5), 6), cat((5, 4), 7), conv(7, 8, 48)],
        [6, 8],
    ),
    "that shares a part": lambda: (
        [conv(0, 2), conv(0, 3), conv(0, 4), cat((2, 3), 5), cat((3, 4), 6), conv(5, 7, 32), conv(6, 8, 32)],
        [7, 8],
    ),
    "that shares a part at another place": lambda: (
        [conv(0, 2), conv(2, 3), cat((2, 3), 4), cat((3, 2), 5), conv(4, 6, 32), conv(5, 7, 32)],
        [6, 7],
    ),
    "that shares parts with one that goes on": lambda: (
        [
            conv(0, 2),
            conv(2, 3),
            cat((2, 3), 4),
            conv(4, 5, 32),
            cat((2, 3, 5), 6),
            conv(6, 7, 48),
            cat((3, 7), 8),
            conv(8, 9, 32),
        ],
        [9],
    ),
    "of one part twice": lambda: ([conv(0, 2), cat((2, 2), 3), conv(3, 4, 32)], [4]),
    "of one part twice, and another": lambda: ([conv(0, 2), conv(2, 3), cat((2, 3, 2), 4), conv(4, 5, 48)], [5]),
    "that is made twice": lambda: (
        [conv(0, 2), conv(2, 3), cat((2, 3), 4), cat((2, 3), 5), conv(4, 6, 32), conv(5, 7, 32)],
        [6, 7],
    ),
    "that is made twice, and leaves": lambda: (
        [conv(0, 2), conv(2, 3), cat((2, 3), 4), cat((2, 3), 5), conv(4, 6, 32)],
        [4, 5, 6],
    ),
    "whose part is read later": lambda: (
        [
            conv(0, 2),
            conv(2, 3),
            cat((2, 3), 4),
            conv(4, 5, 32),
            conv(5, 6),
            Instruction(convolution(16, 16), (6, 2, None, 3), (7, None, None)),
        ],
        [7],
    ),
}


@pytest.mark.parametrize(("images", "size"), [(1, 8), (3, 7), (2, 64)])
@pytest.mark.parametrize("name", CONCATENATIONS)
def test_concatenations(level: Target, name: str, images: int, size: int) -> None:
    instructions, outputs = CONCATENATIONS[name]()
    read = {value for each in instructions for value in each.read}
    inputs = [map_of(images, channels, size, size) for channels in (16, 24)]
    given = {i: each for i, each in enumerate(inputs) if i in read}
    both(instructions, given, outputs)


@pytest.mark.parametrize("name", CONCATENATIONS)
def test_no_step_runs_beside_one_whose_outputs_it_reads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    instructions, outputs = CONCATENATIONS[name]()
    waves: dict[int, int] = {}  # by instruction, of those that have steps

    def recorded(number: int, steps: Any) -> Any:
        def record(wave: int, *given: Any) -> Any:
            found = steps(wave, *given)
            if found:
                waves[number] = wave
            return found

        return record

    for number, each in enumerate(instructions):
        monkeypatch.setattr(each.kernel, "steps", recorded(number, each.kernel.steps))
    read = {value for each in instructions for value in each.read}
    given = {i: map_of(1, channels) for i, channels in enumerate((16, 24)) if i in read}
    Executable(instructions, [(i, None) for i in given], tuple(outputs))(None, *given.values())
    written: dict[int, int] = {}  # when a value is there
    for number, each in enumerate(instructions):
        before = max((written[value] for value in each.read if value in written), default=-1)
        assert waves.get(number, before + 1) > before, each.outputs
        written |= dict.fromkeys(each.written, waves.get(number, before))


def test_what_is_made_for_a_concatenation_is_not_copied() -> None:
    """Only then is it worth more than PyTorch's own."""
    for name, copies in (("in place", 0), ("of an input", 1), ("that goes on with another's", 0)):
        instructions, outputs = CONCATENATIONS[name]()
        executable = Executable(instructions, [(0, None)], tuple(outputs))
        made: list[object] = []
        steps = Concatenation.steps

        def counted(self: Concatenation, *given: Any, steps: Any = steps, made: list[object] = made) -> Any:
            made.extend(found := steps(self, *given))
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Concatenation, "steps", counted)
            executable(None, map_of(1, 16))
        assert len(made) == copies
