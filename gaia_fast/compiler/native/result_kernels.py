"""The kernels that end a program: sums put side by side, the output component, the score, and whether it holds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from gaia_fast.backends import kernels
from gaia_fast.compiler.native.kernels import Check, Kernel, Place, Shape
from gaia_fast.ops.convolution.steps import NULL, Step, address
from gaia_fast.ops.result_checks import results_hold_per_image, rounding


class Columns(Kernel):
    """Sums (N, K) side by side, or answers (N,): any number of them to one (N, columns).

    What is made for it alone is made in its place.

    Args:
        rows: what stands between them: a row that is the same for each image, or None for the next input.
    """

    def __init__(self, rows: Sequence[Tensor | None]) -> None:
        super().__init__()
        self.rows = [None if row is None else row.contiguous() for row in rows]

    def forward(self, *values: Tensor) -> tuple[Tensor]:
        given = iter(values)
        images = values[0].shape[0]
        parts = [next(given) if row is None else row.expand(images, -1) for row in self.rows]
        return (torch.cat([part.reshape(images, -1) for part in parts], 1),)

    def begins(self, inputs: Sequence[Shape | None]) -> tuple[list[int], int]:
        """Returns the first column of each of `rows`, and the number of columns."""
        given = iter(inputs)
        begins, columns = [], 0
        for row in self.rows:
            begins.append(columns)
            if row is not None:
                columns += row.numel()
                continue
            shape = next(given)
            assert shape is not None
            columns += shape.size[1:].numel()
        return begins, columns

    def shapes(self, inputs: Sequence[Shape | None]) -> list[Shape]:
        assert inputs[0] is not None
        return [Shape(torch.Size((inputs[0].size[0], self.begins(inputs)[1])))]

    def steps(self, wave: int, inputs: Sequence[Place | None], outputs: Sequence[Place | None]) -> list[Step]:
        (whole,) = outputs
        assert whole is not None
        begins, _ = self.begins([None if each is None else each.shape for each in inputs])
        given = iter(inputs)
        made: list[Step] = []
        for row, begin in zip(self.rows, begins, strict=True):
            there = whole.pointer._replace(offset=whole.pointer.offset + begin)
            if row is not None:
                x, stride, width = address(row), 0, row.numel()
            else:
                place = next(given)
                assert place is not None
                x, stride, width = place.pointer, place.stride, place.shape.size[1:].numel()
            if x != there:
                made.append(
                    kernels.CopyColumnsStep(
                        wave=wave,
                        x=x,
                        x_stride=stride,
                        images=whole.shape.size[0],
                        width=width,
                        y=there,
                        y_stride=whole.stride,
                    )
                )
        return made


class LogitSlopes(Kernel):
    """1 - C softmax(S), the gradient of the sum of log_softmax(S) towards logits S: (N, C) to a map (N, C, 1, 1)."""

    def forward(self, logits: Tensor) -> tuple[Tensor]:
        return (torch.rsub(logits.softmax(1), 1, alpha=logits.shape[1])[:, :, None, None],)

    def shapes(self, inputs: Sequence[Shape | None]) -> list[Shape]:
        assert inputs[0] is not None
        return [Shape(torch.Size((*inputs[0].size, 1, 1)))]

    def steps(self, wave: int, inputs: Sequence[Place | None], outputs: Sequence[Place | None]) -> list[Step]:
        (logits,), (out,) = inputs, outputs
        assert logits is not None
        assert out is not None
        images, classes = logits.shape.size
        return [
            kernels.LogitSlopesStep(
                wave=wave,
                logits=logits.pointer,
                stride=logits.stride,
                images=images,
                classes=classes,
                out=out.pointer,
            )
        ]


class PerImage(Kernel):
    """A kernel that gives a number for each image: (N,)."""

    def shapes(self, inputs: Sequence[Shape | None]) -> list[Shape]:
        assert inputs[0] is not None
        return [Shape(inputs[0].size[:1])]


class MeanRoot(PerImage):
    """sqrt(factor * the mean of each row): (N, K) to (N,)."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return ((x.mean(1) * self.factor).sqrt(),)

    def steps(self, wave: int, inputs: Sequence[Place | None], outputs: Sequence[Place | None]) -> list[Step]:
        (x,), (out,) = inputs, outputs
        assert x is not None
        assert out is not None
        images, columns = x.shape.size
        return [
            kernels.MeanRootStep(
                wave=wave,
                x=x.pointer,
                x_stride=x.stride,
                images=images,
                columns=columns,
                factor=self.factor,
                out=out.pointer,
                out_stride=out.stride,
            )
        ]


class Score(PerImage):
    """`gaia_fast.ops.frobenius` of order 2 with its layers: (packed, output component or None) to scores (N,).

    Args:
        inverse_area: for each column, 1 / (H_l * W_l).
    """

    def __init__(self, inverse_area: list[float]) -> None:
        super().__init__()
        self.inverse_area = inverse_area
        self.layers = [(area, len(list(columns))) for area, columns in groupby(inverse_area)]

    def forward(self, packed: Tensor, component: Tensor | None) -> tuple[Tensor]:
        areas = torch.tensor(self.inverse_area, dtype=torch.float64)
        score = torch.linalg.vector_norm(packed.double() * areas, dim=1)
        return ((score if component is None else score / component).to(torch.float32),)

    def steps(self, wave: int, inputs: Sequence[Place | None], outputs: Sequence[Place | None]) -> list[Step]:
        (packed, component), (score,) = inputs, outputs
        assert packed is not None
        assert score is not None
        return [
            kernels.ScoreStep(
                wave=wave,
                packed=packed.pointer,
                stride=packed.stride,
                images=packed.shape.size[0],
                widths=[width for _, width in self.layers],
                inverse_area=[area for area, _ in self.layers],
                component=NULL if component is None else component.pointer,
                component_stride=0 if component is None else component.stride,
                out=score.pointer,
                out_stride=score.stride,
            )
        ]


class FiniteCheck(Check):
    """Whether all of an image is finite: (x,) to answers (N,)."""

    test = "all_finite"

    def __init__(self) -> None:
        super().__init__(0, 1)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (torch.isfinite(x).flatten(1).all(1).to(torch.float32),)

    def steps(self, wave: int, inputs: Sequence[Place | None], outputs: Sequence[Place | None]) -> list[Step]:
        (x,) = inputs
        assert x is not None
        # What channels are padded by is zero, and positions without gaps are one row.
        size = torch.Size((x.shape.size[0], x.pointer.pitch, *x.shape.size[2:]))
        return super().steps(wave, [Place(Shape(size), x.pointer, x.stride, x.batch)], outputs)


class ResultCheck(PerImage):
    """`gaia_fast.ops.result_checks.results_hold` of each image: (logits, score, preconditions, component, finite) to
    answers (N,).

    Preconditions (N, P) and component (N,) may be None; `finite` are answers, whether an image is.
    """

    def forward(
        self, logits: Tensor, score: Tensor, preconditions: Tensor | None, component: Tensor | None, finite: Tensor
    ) -> tuple[Tensor]:
        holds = results_hold_per_image(logits, score, preconditions, component) & (finite > 0)
        return (holds.to(torch.float32),)

    def steps(self, wave: int, inputs: Sequence[Place | None], outputs: Sequence[Place | None]) -> list[Step]:
        (logits, score, preconditions, component, finite), (out,) = inputs, outputs
        assert logits is not None
        images, classes = logits.shape.size
        places = (logits, score, preconditions, component, finite, out)
        pointers = [NULL if each is None else each.pointer for each in places]
        return [
            kernels.ResultCheckStep(
                wave=wave,
                images=images,
                classes=classes,
                precondition_count=0 if preconditions is None else preconditions.shape.size[1],
                logits=pointers[0],
                score=pointers[1],
                preconditions=pointers[2],
                component=pointers[3],
                finite=pointers[4],
                out=pointers[5],
                strides=[0 if each is None else each.stride for each in places],
                rounding=rounding(classes, torch.float32),
            )
        ]
