"""The kernels that fusion puts into a program: this package's own, as modules with their weights.

Called one by one they take and give tensors; masks are bools. In an executable each says what shapes it gives, and
which steps it becomes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor, nn

from gaia_fast.backends import kernels
from gaia_fast.compiler.ir.windows import Geometry
from gaia_fast.ops.active_everywhere import active_everywhere
from gaia_fast.ops.convolution import Part, convolution_cpu, output_size
from gaia_fast.ops.convolution.cpu import vector_in_panels
from gaia_fast.ops.convolution.packing import NR, Algorithm, padded
from gaia_fast.ops.convolution.parts import Pair
from gaia_fast.ops.convolution.steps import (
    IDENTITY,
    NULL,
    POOLINGS,
    TESTS,
    Activation,
    Pointer,
    Step,
    address,
    convolution_steps,
    epilogue,
)


@dataclass(frozen=True)
class Shape:
    """Of a value in an executable: a map (N, K, H, W), channels padded to whole panels; a mask of one; or a vector."""

    size: torch.Size
    mask: bool = False

    @property
    def panels(self) -> torch.Size:
        """The size with the channels of whole panels."""
        return torch.Size((self.size[0], padded(self.size[1]), *self.size[2:]))

    @property
    def floats(self) -> int:
        if len(self.size) != 4:
            return self.size.numel()
        return self.size[1] // -NR * -self.plane // 2 if self.mask else self.panels.numel()

    @property
    def plane(self) -> int:
        """Of a mask, the words of a panel: one a position, and an even number of them."""
        positions = self.size[0] * self.size[2] * self.size[3]
        return positions + positions % 2


@dataclass(frozen=True)
class Place:
    """A value in an executable, and where it lies; `stride` floats between the vectors of two images.

    It is of one of `batch` images that are run one by one, or of all: algorithms are chosen for so many.
    """

    shape: Shape
    pointer: Pointer
    stride: int
    batch: int


def _at(place: Place | None) -> Pointer:
    return NULL if place is None else place.pointer


def _rows(place: Place | None) -> int:
    return 0 if place is None else place.stride


class Kernel(nn.Module):
    """A kernel: values to values, any of which may be None.

    Attributes:
        results: how many it can give.
        always: whether the first of them is written even where nobody reads it.
    """

    results = 1
    always = True

    def shapes(self, inputs: Sequence[Shape | None]) -> list[Shape]:
        """Returns the shapes of all that it can give."""
        raise NotImplementedError

    def steps(self, wave: int, inputs: Sequence[Place | None], outputs: Sequence[Place | None]) -> list[Step]:
        """Returns the steps that it is made of; outputs are None where nobody reads them."""
        raise NotImplementedError

    def reads_panels(self, index: int) -> bool:
        """Whether it reads whole panels of an input, so that zeros have to stand behind the last channels."""
        return True


def _sums(shape: Shape) -> Shape:
    return Shape(shape.size[:2])


def _answers(shape: Shape) -> Shape:
    return Shape(shape.size[:1])


class Convolution(Kernel):
    """`gaia_fast.ops.convolution` with its weights: (x, residual, relu_mask, skip) to (y, sums, mask), unchecked.

    The mask is [0 < y < upper], without scale and skip.

    Attributes:
        parts: what makes the outputs.
        bias, scale, activation, statistic, algorithm: as in `gaia_fast.ops.convolution`.
        size: of the outputs, where the size of the input does not tell: of an adjoint, or where padding is uneven.
        measured_for: the number of images for which the algorithm is measured, and the bytes of the network's weights;
            zeros where it is not.
    """

    measured_for = 0, 0

    results = 3

    def __init__(
        self,
        parts: list[Part],
        bias: Tensor | None,
        scale: Tensor | None,
        size: Pair | None,
        activation: Activation,
        statistic: str | None,
        algorithm: Algorithm | None = None,
    ) -> None:
        super().__init__()
        self.parts, self.size, self.algorithm = parts, size, algorithm
        self.activation, self.statistic = activation, statistic
        self.bias, self.scale = (None if each is None else each.contiguous() for each in (bias, scale))
        self._bias, self._scale = (None if each is None else vector_in_panels(each) for each in (bias, scale))

    @property
    def outputs(self) -> int:
        return self.parts[0].weights.shape[0]

    def out(self, shape: torch.Size) -> Pair:
        """(H', W') for inputs of this shape."""
        first = self.parts[0]
        return self.size or output_size(shape, first.weights.shape, first.stride, first.padding, first.dilation)

    def forward(
        self, x: Tensor, residual: Tensor | None, relu_mask: Tensor | None, skip: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        behind = self.bias, residual, relu_mask, self.scale, skip
        y, sums = convolution_cpu(
            x, self.parts, self.algorithm, *behind, self.activation, self.statistic, self.out(x.shape)
        )
        return y, sums, _active(y, self.activation.upper)

    def shapes(self, inputs: Sequence[Shape | None]) -> list[Shape]:
        assert inputs[0] is not None
        size = inputs[0].size
        y = Shape(torch.Size((size[0], self.outputs, *self.out(size))))
        return [y, _sums(y), Shape(y.size, mask=True)]

    def steps(self, wave: int, inputs: Sequence[Place | None], outputs: Sequence[Place | None]) -> list[Step]:
        (x, residual, relu_mask, skip), (y, sums, mask) = inputs, outputs
        assert x is not None
        assert y is not None
        behind = epilogue(
            self.outputs,
            y.pointer,
            self._bias,
            _at(residual),
            _at(relu_mask),
            self._scale,
            _at(skip),
            _at(sums),
            _rows(sums),
            _at(mask),
            self.activation,
            self.statistic,
        )
        size = x.shape.size
        images, network_bytes = self.measured_for
        measured = network_bytes if x.batch == images else 0
        out = self.out(size)
        return [*convolution_steps(wave, self.parts, self.algorithm, x.pointer, size, out, behind, measured, x.batch)]

    def reads_panels(self, index: int) -> bool:
        return index > 0 or self.parts[0].weights.groups > 1


class Pointwise(Kernel):
    """What stands behind a convolution, of a map as it is: (x, residual, relu_mask, skip, gate) to (y, sums, mask).

    Attributes:
        factor, shift: (K,), first; None for 1 and 0. A gate, (N, K, 1, 1), takes the factor's place. Where x is None,
            the factor stands at each position of the ReLU mask.
        scale: (K,), behind the ReLU mask; None for 1.
        activation: and its upper bound, which is the ReLU mask's, too.
        statistic: "positive", or behind a ReLU mask "sum" or "abs_sum".
    """

    results = 3

    def __init__(
        self,
        factor: Tensor | None,
        shift: Tensor | None,
        scale: Tensor | None,
        activation: Activation,
        statistic: str | None,
    ) -> None:
        super().__init__()
        self.factor, self.shift, self.scale = (
            None if each is None else each.contiguous() for each in (factor, shift, scale)
        )
        self._factor, self._shift, self._scale = (
            None if each is None else vector_in_panels(each) for each in (factor, shift, scale)
        )
        self.activation, self.statistic = activation, statistic

    def forward(
        self,
        x: Tensor | None,
        residual: Tensor | None,
        relu_mask: Tensor | None,
        skip: Tensor | None,
        gate: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        if x is None:
            assert relu_mask is not None
            x = torch.ones_like(relu_mask)
        z = x if gate is None else x * gate
        z = z if self.factor is None else z * self.factor.view(-1, 1, 1)
        z = z if self.shift is None else z + self.shift.view(-1, 1, 1)
        z = z if residual is None else z + residual
        upper = self.activation.upper
        if self.activation.name == "relu":
            z = torch.where(z <= 0, 0, z).clamp(max=upper)
        if relu_mask is not None:
            z = torch.where((relu_mask <= 0) | (relu_mask >= upper) if upper < inf else relu_mask <= 0, 0, z)
        mask, sums = _active(z, upper), None
        if self.statistic == "positive":
            sums = mask.to(z.dtype).sum((2, 3))
        elif self.statistic is not None:
            sums = (z.abs() if self.statistic == "abs_sum" else z).sum((2, 3))
        z = z if self.scale is None else z * self.scale.view(-1, 1, 1)
        return z if skip is None else z + skip, sums, mask

    def shapes(self, inputs: Sequence[Shape | None]) -> list[Shape]:
        x = inputs[0] or inputs[2]
        assert x is not None
        return [x, _sums(x), Shape(x.size, mask=True)]

    def steps(self, wave: int, inputs: Sequence[Place | None], outputs: Sequence[Place | None]) -> list[Step]:
        (x, residual, relu_mask, skip, *gates), (y, sums, mask) = inputs, outputs
        assert y is not None
        behind = epilogue(
            y.shape.size[1],
            y.pointer,
            self._shift,
            _at(residual),
            _at(relu_mask),
            self._scale,
            _at(skip),
            _at(sums),
            _rows(sums),
            _at(mask),
            self.activation,
            self.statistic,
        )
        gate = gates[0] if gates else None
        factor = address(self._factor) if gate is None else gate.pointer
        stride = 0 if gate is None else gate.pointer.pitch
        shape = y.shape.panels
        return [
            kernels.PointwiseStep(
                wave=wave, x=_at(x), shape=shape, factor=factor, factor_stride=stride, epilogue=behind
            )
        ]


def _active(y: Tensor, upper: float) -> Tensor:
    return y > 0 if upper == inf else (y > 0) & (y < upper)


class Check(Kernel):
    """`active_everywhere`: (y,) to answers (N,)."""

    test = "some_above"
    bound = 0.0

    def __init__(self, begin: int, step: int, first: int = 0, last: int | None = None) -> None:
        super().__init__()
        self.begin, self.step, self.first, self.last = begin, step, first, last

    def forward(self, y: Tensor) -> tuple[Tensor]:
        return (active_everywhere(y, self.begin, self.step, self.first, self.last),)

    def shapes(self, inputs: Sequence[Shape | None]) -> list[Shape]:
        assert inputs[0] is not None
        return [_answers(inputs[0])]

    def steps(self, wave: int, inputs: Sequence[Place | None], outputs: Sequence[Place | None]) -> list[Step]:
        (y,), (answers,) = inputs, outputs
        assert y is not None
        assert answers is not None
        first, last, _ = slice(self.first, self.last).indices(y.shape.size[1])
        return [
            kernels.CheckStep(
                wave=wave,
                y=y.pointer,
                shape=y.shape.size,
                begin=self.begin,
                step=self.step,
                first=first,
                last=last,
                out=answers.pointer,
                out_stride=answers.stride,
                bound=self.bound,
                test=TESTS[self.test],
            )
        ]

    def reads_panels(self, index: int) -> bool:
        return False


class BoundCheck(Check):
    """Whether all of an image is above a bound: (y,) to answers (N,)."""

    test = "all_above"

    def __init__(self, bound: float) -> None:
        super().__init__(0, 1)
        self.bound = bound

    def forward(self, y: Tensor) -> tuple[Tensor]:
        return ((y > self.bound).flatten(1).all(1).to(torch.float32),)


@dataclass(frozen=True)
class Windows:
    """Windows that lie over a map, and the size of the map that they lead to."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    out: Pair

    def over(self, shape: Shape) -> kernels.Windows:
        """Returns them as the extension takes them, over a map of this shape."""
        return kernels.Windows(
            shape=shape.panels,
            out=self.out,
            kernel=self.kernel,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
        )


class Pool(Kernel):
    """A maximum or a mean of each window: (x, alive) to (y, counts).

    Of a maximum, the counts are of the positive entries of x that are the first maximum of a window in `alive`, a mask
    like y, or of any window.

    Attributes:
        kind: "maximum" or "mean".
        windows: None for one over all of the map.
        zeros: so many rows and columns of zeros around x take part.
        divisor: of a mean; 0 for the number of entries that are inside.
    """

    results = 2
    always = False

    def __init__(self, kind: str, windows: Windows | None, zeros: bool = False, divisor: int = 0) -> None:
        super().__init__()
        self.kind, self.windows, self.zeros, self.divisor = kind, windows, zeros, divisor

    def _windows(self, size: torch.Size) -> Windows:
        if self.windows is not None:
            return self.windows
        return Windows((size[2], size[3]), (1, 1), (0, 0), (1, 1), (1, 1))

    def forward(self, x: Tensor, alive: Tensor | None) -> tuple[Tensor, Tensor | None]:
        windows = self._windows(x.shape)
        (top, left), (height, width) = windows.padding, windows.kernel
        below, right = (
            max(0, (o - 1) * s + d * (k - 1) + 1 - p - size)
            for o, s, d, k, p, size in zip(
                windows.out, windows.stride, windows.dilation, windows.kernel, windows.padding, x.shape[2:], strict=True
            )
        )
        outside = 0.0 if self.zeros or self.kind == "mean" else -inf
        around = torch.nn.functional.pad(x, (left, right, top, below), value=outside)
        taps = [
            around[
                :,
                :,
                a * windows.dilation[0] : a * windows.dilation[0] + (windows.out[0] - 1) * windows.stride[0] + 1,
                b * windows.dilation[1] : b * windows.dilation[1] + (windows.out[1] - 1) * windows.stride[1] + 1,
            ][:, :, :: windows.stride[0], :: windows.stride[1]]
            for a in range(height)
            for b in range(width)
        ]
        stacked = torch.stack(taps)
        if self.kind == "mean":
            if self.divisor:
                return stacked.sum(0) / self.divisor, None
            ones = Pool("mean", windows, divisor=1)(torch.ones_like(x), None)[0]
            return stacked.sum(0) / ones, None
        y, which = stacked.max(0)
        alive = torch.ones_like(y, dtype=torch.bool) if alive is None else alive
        won = torch.zeros_like(around, dtype=torch.bool)
        for tap in range(height * width):
            a, b = divmod(tap, width)
            chosen = (which == tap) & alive & (y > 0)
            rows = torch.arange(windows.out[0]) * windows.stride[0] + a * windows.dilation[0]
            columns = torch.arange(windows.out[1]) * windows.stride[1] + b * windows.dilation[1]
            won[:, :, rows[:, None], columns] |= chosen
        inside = won[:, :, top : top + x.shape[2], left : left + x.shape[3]]
        return y, inside.to(x.dtype).sum((2, 3))

    def shapes(self, inputs: Sequence[Shape | None]) -> list[Shape]:
        x = inputs[0]
        assert x is not None
        y = Shape(torch.Size((*x.size[:2], *self._windows(x.size).out)))
        return [y, _sums(y)]

    def steps(self, wave: int, inputs: Sequence[Place | None], outputs: Sequence[Place | None]) -> list[Step]:
        (x, alive), (y, counts) = inputs, outputs
        assert x is not None
        return [
            kernels.PoolStep(
                wave=wave,
                x=x.pointer,
                y=_at(y),
                windows=self._windows(x.shape.size).over(x.shape),
                kind=POOLINGS[self.kind],
                pad_zeros=self.zeros,
                divisor=self.divisor,
                alive=_at(alive),
                counts=_at(counts),
                counts_stride=_rows(counts),
                channels=x.shape.size[1],
            )
        ]


class GroupNorm(Kernel):
    """Group norm, with the ReLU behind it where there is one: (x,) to (y, counts of [y > 0])."""

    results = 2

    def __init__(self, groups: int, scale: Tensor, shift: Tensor, epsilon: float, relu: bool) -> None:
        super().__init__()
        self.groups, self.scale, self.shift = groups, scale.contiguous(), shift.contiguous()
        self.epsilon, self.relu = epsilon, relu

    @staticmethod
    def takes(channels: int, groups: int) -> bool:
        """Whether the groups are whole panels, one by one or together."""
        block = channels // groups
        while block % NR:
            block += channels // groups
        return channels % NR == 0 and channels % block == 0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.nn.functional.group_norm(x.contiguous(), self.groups, self.scale, self.shift, self.epsilon)
        y = torch.where(y <= 0, 0, y) if self.relu else y
        return y, (y > 0).to(y.dtype).sum((2, 3))

    def shapes(self, inputs: Sequence[Shape | None]) -> list[Shape]:
        assert inputs[0] is not None
        return [inputs[0], _sums(inputs[0])]

    def steps(self, wave: int, inputs: Sequence[Place | None], outputs: Sequence[Place | None]) -> list[Step]:
        (x,), (y, counts) = inputs, outputs
        assert x is not None
        assert y is not None
        return [
            kernels.GroupNormStep(
                wave=wave,
                x=x.pointer,
                y=y.pointer,
                shape=x.shape.size,
                groups=self.groups,
                scale=address(self.scale),
                shift=address(self.shift),
                epsilon=self.epsilon,
                relu=self.relu,
                sums=_at(counts),
                sums_stride=_rows(counts),
            )
        ]


class GateGradient(Kernel):
    """The gradient of what a gate is the sigmoid of, with g the gradient of y * gate: (g, y, gate) to (N, K, 1, 1)."""

    def forward(self, g: Tensor, y: Tensor, gate: Tensor) -> tuple[Tensor]:
        return ((g * y).sum((2, 3), keepdim=True) * (gate * (1 - gate)),)

    def shapes(self, inputs: Sequence[Shape | None]) -> list[Shape]:
        assert inputs[2] is not None
        return [inputs[2]]

    def steps(self, wave: int, inputs: Sequence[Place | None], outputs: Sequence[Place | None]) -> list[Step]:
        (g, y, gate), (out,) = inputs, outputs
        assert g is not None
        assert out is not None
        return [
            kernels.GateGradientStep(
                wave=wave, g=g.pointer, y=_at(y), shape=g.shape.panels, gate=_at(gate), out=out.pointer
            )
        ]


class MeanGradient(Kernel):
    """A map's gradient, with that of its mean over space: (x, (N, K, 1, 1)) to x + mean / (H * W)."""

    def forward(self, x: Tensor, mean: Tensor) -> tuple[Tensor]:
        return (x + mean / (x.shape[2] * x.shape[3]),)

    def shapes(self, inputs: Sequence[Shape | None]) -> list[Shape]:
        assert inputs[0] is not None
        return [inputs[0]]

    def steps(self, wave: int, inputs: Sequence[Place | None], outputs: Sequence[Place | None]) -> list[Step]:
        (x, mean), (y,) = inputs, outputs
        assert x is not None
        assert y is not None
        return [kernels.MeanGradientStep(wave=wave, x=x.pointer, shape=x.shape.panels, mean=_at(mean), y=y.pointer)]


class Mask(Kernel):
    """Two masks made one: (inner, outer) to (mask, counts), both optional.

    inner & reached, or inner | reached, where `reached` are the entries that a window with an entry in `outer` looks
    at; of windows over channels in groups, with an entry in the same group.

    Attributes:
        windows: None where outer is of the same positions.
        group: channels of a group.
        size: of the map that windows look at, where there is no inner.
        either: | in place of &.
        slices: (first channel, channels) of each input, multiples of 16; None for all.
    """

    results = 2
    always = False

    def __init__(
        self,
        windows: Windows | None,
        group: int = 1,
        size: Pair | None = None,
        either: bool = False,
        slices: tuple[tuple[int, int] | None, tuple[int, int] | None] = (None, None),
    ) -> None:
        super().__init__()
        self.windows, self.group, self.size, self.either, self.slices = windows, group, size, either, slices

    def forward(self, inner: Tensor | None, outer: Tensor) -> tuple[Tensor, Tensor]:
        inner, reached = (_sliced(each, part) for each, part in zip((inner, outer), self.slices, strict=True))
        assert reached is not None
        if self.windows is not None:
            any_of = reached.to(torch.float32).unflatten(1, (-1, self.group)).amax(2)
            size = self.size or (int(reached.shape[2]), int(reached.shape[3]))
            size = size if inner is None else (int(inner.shape[2]), int(inner.shape[3]))
            geometry = Geometry(
                self.windows.kernel,
                self.windows.stride,
                self.windows.padding,
                self.windows.dilation,
                any_of.shape[1],
                any_of.shape[1],
                size,
                self.windows.out,
            )
            reached = geometry.reach(any_of).repeat_interleave(self.group, 1) > 0
        mask = reached if inner is None else inner | reached if self.either else inner & reached
        return mask, mask.to(torch.float32).sum((2, 3))

    def shapes(self, inputs: Sequence[Shape | None]) -> list[Shape]:
        shape = self._shape(inputs)
        return [Shape(shape, mask=True), Shape(shape[:2])]

    def _shape(self, inputs: Sequence[Shape | None]) -> torch.Size:
        index = 0 if inputs[0] is not None else 1
        given, part = inputs[index], self.slices[index]
        assert given is not None
        channels = given.size[1] if part is None else part[1]
        positions = self.size if self.size is not None and index == 1 else given.size[2:]
        return torch.Size((given.size[0], channels, *positions))

    def steps(self, wave: int, inputs: Sequence[Place | None], outputs: Sequence[Place | None]) -> list[Step]:
        mask, counts = outputs
        size = self._shape([None if each is None else each.shape for each in inputs])
        out = (int(size[2]), int(size[3]))
        windows = self.windows or Windows((1, 1), (1, 1), (0, 0), (1, 1), out)
        inner, outer = (_mask_at(each, part) for each, part in zip(inputs, self.slices, strict=True))
        return [
            kernels.MaskStep(
                wave=wave,
                windows=windows.over(Shape(size)),
                inner=inner,
                outer=outer,
                out=_at(mask),
                counts=_at(counts),
                group=self.group,
                either=self.either,
                counts_stride=_rows(counts),
                channels=size[1],
            )
        ]


def _sliced(mask: Tensor | None, part: tuple[int, int] | None) -> Tensor | None:
    return mask if mask is None or part is None else mask[:, part[0] : part[0] + part[1]]


def _mask_at(place: Place | None, part: tuple[int, int] | None) -> Pointer:
    """Where a slice of a mask lies: the planes of its panels follow each other."""
    if place is None or part is None:
        return _at(place)
    return place.pointer._replace(offset=place.pointer.offset + part[0] // NR * place.shape.plane // 2)


class MaskCheck(Kernel):
    """Whether at each position of a grid some channel is in a mask: (mask,) to answers (N,)."""

    def __init__(self, begin: int, step: int) -> None:
        super().__init__()
        self.begin, self.step = begin, step

    def forward(self, mask: Tensor) -> tuple[Tensor]:
        grid = mask[:, :, self.begin :: self.step, self.begin :: self.step]
        return (grid.any(1).flatten(1).all(1).to(torch.float32),)

    def shapes(self, inputs: Sequence[Shape | None]) -> list[Shape]:
        assert inputs[0] is not None
        return [_answers(inputs[0])]

    def steps(self, wave: int, inputs: Sequence[Place | None], outputs: Sequence[Place | None]) -> list[Step]:
        (mask,), (answers,) = inputs, outputs
        assert mask is not None
        assert answers is not None
        return [
            kernels.MaskCheckStep(
                wave=wave,
                mask=mask.pointer,
                shape=mask.shape.panels,
                begin=self.begin,
                step=self.step,
                out=answers.pointer,
                out_stride=answers.stride,
            )
        ]


class Concatenation(Kernel):
    """Maps side by side: any number of them to one. What is made for it alone is made in its place."""

    def forward(self, *maps: Tensor) -> tuple[Tensor]:
        return (torch.cat(maps, 1),)

    def shapes(self, inputs: Sequence[Shape | None]) -> list[Shape]:
        sizes = [each.size for each in inputs if each is not None]
        channels = sum(size[1] for size in sizes)
        return [Shape(torch.Size((sizes[0][0], channels, *sizes[0][2:])))]

    def steps(self, wave: int, inputs: Sequence[Place | None], outputs: Sequence[Place | None]) -> list[Step]:
        (whole,) = outputs
        assert whole is not None
        made: list[Step] = []
        channel = 0
        for each in inputs:
            assert each is not None
            there = whole.pointer._replace(offset=whole.pointer.offset + channel)
            if each.pointer != there:
                behind = epilogue(each.shape.size[1], there)
                shape = each.shape.panels
                made.append(kernels.PointwiseStep(wave=wave, x=each.pointer, shape=shape, factor=NULL, epilogue=behind))
            channel += each.shape.size[1]
        return made


__all__ = [
    "IDENTITY",
    "Activation",
    "BoundCheck",
    "Check",
    "Concatenation",
    "Convolution",
    "GateGradient",
    "GroupNorm",
    "Kernel",
    "Mask",
    "MaskCheck",
    "MeanGradient",
    "Place",
    "Pointwise",
    "Pool",
    "Shape",
    "Windows",
]
