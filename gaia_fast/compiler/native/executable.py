"""Kernels in one call: the steps of an executable, and the memory that it works on, planned for inputs of one shape."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gaia_fast.backends import kernels
from gaia_fast.compiler.native.kernels import Convolution, Pointwise
from gaia_fast.compiler.native.memory_plan import place_in_arena
from gaia_fast.errors import BackendError
from gaia_fast.ops.convolution import channels_last
from gaia_fast.ops.convolution.steps import (
    NULL,
    STATISTICS,
    Pointer,
    Step,
    address,
    check_step,
    convolution_steps,
    pointwise_step,
    refusals,
)

_PLANS = 16  # numbers of images that are remembered
_KEPT = 1 << 28  # floats of an arena that stays for the next call


@dataclass(frozen=True)
class Check:
    """`active_everywhere`: what it takes beside the map."""

    begin: int
    step: int
    first: int = 0
    last: int | None = None


@dataclass
class Instruction:
    """A kernel, the numbers of the values it reads and writes, and the wave it runs in."""

    kernel: Convolution | Pointwise | Check
    x: int
    y: int
    sums: int | None = None
    residual: int | None = None
    relu_mask: int | None = None
    skip: int | None = None
    wave: int = 0

    @property
    def read(self) -> list[int]:
        return [each for each in (self.x, self.residual, self.relu_mask, self.skip) if each is not None]

    @property
    def written(self) -> list[int]:
        return [self.y] if self.sums is None else [self.y, self.sums]


@dataclass(frozen=True)
class Packed:
    """Sums, or answers, that are wanted side by side, as columns of one tensor."""

    values: tuple[int, ...]


@dataclass
class _Plan:
    """An executable for inputs of one shape: its steps, and the sizes of what it writes."""

    run: Any
    arena: int
    outputs: list[tuple[int, ...]]
    copies: list[tuple[int, int, int, int]]  # output, column, its copy's column, width


class Executable(nn.Module):
    """Kernels in one call: maps (N, C, H, W) to a tuple of maps, sums (N, K) and answers (N,).

    Args:
        instructions: in an order in which they can run.
        inputs: the numbers of the values that come from outside.
        outputs: of those that go there, or what is to be packed of them.
    """

    def __init__(
        self, instructions: list[Instruction], inputs: tuple[int, ...], outputs: tuple[int | Packed, ...]
    ) -> None:
        super().__init__()
        self.instructions, self.inputs, self.outputs = in_waves(instructions), inputs, outputs
        self._plans: dict[tuple[torch.Size, ...], _Plan] = {}
        self._spare: list[Tensor] = []  # an arena that no call works on

    def forward(self, guard: Callable[[], None] | None, *inputs: Tensor) -> tuple[Tensor, ...]:
        shapes = tuple(each.shape for each in inputs)
        plan = self._plans.get(shapes)
        if plan is None:
            if len(self._plans) >= _PLANS:
                self._plans.clear()
            plan = self._plans[shapes] = self._plan(shapes)
        given = [channels_last(each) for each in inputs]
        arena, outputs = self._take(plan.arena), tuple(_empty(size) for size in plan.outputs)
        pointers = [each.data_ptr() for each in (arena, *given, *outputs)]
        if not plan.run(pointers, torch.get_num_threads(), guard):
            raise BackendError(f"no memory for maps of {shapes[0][0]} images; score fewer")
        for output, source, target, width in plan.copies:
            outputs[output].narrow(1, target, width).copy_(outputs[output].narrow(1, source, width))
        if not self._spare and arena.numel() <= _KEPT:
            self._spare.append(arena)
        return outputs

    def _take(self, floats: int) -> Tensor:
        """An arena of so many floats or more, of an earlier call where there is one: fresh pages cost a third of it."""
        try:
            spare = self._spare.pop()
        except IndexError:
            return _empty((floats,))
        return spare if spare.numel() >= floats else _empty((floats,))

    def _plan(self, shapes: tuple[torch.Size, ...]) -> _Plan:
        sizes: dict[int, torch.Size] = dict(zip(self.inputs, shapes, strict=True))
        for each in self.instructions:
            sizes.update(_written(each, sizes))
        places = {value: _whole(1 + i, sizes[value]) for i, value in enumerate(self.inputs)}
        rows: dict[int, int] = {}
        outputs: list[tuple[int, ...]] = []
        copies = []
        for i, output in enumerate(self.outputs):
            place = 1 + len(self.inputs) + i
            if isinstance(output, int):
                places[output] = _whole(place, sizes[output])
                outputs.append(tuple(sizes[output]))
                continue
            column = 0
            widths = [sizes[value][1:].numel() for value in output.values]
            total = sum(widths)
            for value, width in zip(output.values, widths, strict=True):
                if value in places:
                    copies.append((i, places[value][1], column, width))
                else:
                    places[value], rows[value] = Pointer(place, column), total
                column += width
            outputs.append((sizes[output.values[0]][0], total))  # a program may cut images into more
        arena = place_in_arena(self.instructions, sizes, places)
        with refusals():
            steps = [step for each in self.instructions for step in _steps(each, sizes, places, rows)]
            executable = kernels.Executable(steps)
        return _Plan(executable.run, arena, outputs, copies)


def _whole(buffer: int, size: torch.Size) -> Pointer:
    """A value that a buffer holds by itself."""
    return Pointer(buffer, 0, size[1] if len(size) == 4 else 0)


def _empty(size: tuple[int, ...]) -> Tensor:
    layout = torch.channels_last if len(size) == 4 else torch.contiguous_format
    return torch.empty(size, dtype=torch.float32, device="cpu", memory_format=layout)


def _written(each: Instruction, sizes: Mapping[int, torch.Size]) -> dict[int, torch.Size]:
    """The shapes of what an instruction writes."""
    shape = sizes[each.x]
    if isinstance(each.kernel, Check):
        return {each.y: shape[:1]}
    if isinstance(each.kernel, Convolution):
        shape = torch.Size((shape[0], each.kernel.outputs, *each.kernel.out(shape)))
    return {each.y: shape} if each.sums is None else {each.y: shape, each.sums: shape[:2]}


def _steps(
    each: Instruction, sizes: Mapping[int, torch.Size], places: Mapping[int, Pointer], rows: Mapping[int, int]
) -> list[Step]:
    """The steps of an instruction, for the C++ side; `rows` holds how far apart the images are of what is packed."""
    x, shape, kernel = places[each.x], sizes[each.x], each.kernel
    if isinstance(kernel, Check):
        out, stride = places[each.y], rows.get(each.y, 1)
        return [check_step(each.wave, x, shape, out, stride, kernel.begin, kernel.step, kernel.first, kernel.last)]

    def place(value: int | None) -> Pointer:
        return NULL if value is None else places[value]

    epilogue = kernels.Epilogue(
        y=places[each.y],
        bias=address(kernel.shift if isinstance(kernel, Pointwise) else kernel.bias),
        residual=place(each.residual),
        relu_mask=place(each.relu_mask),
        scale=address(kernel.scale),
        skip=place(each.skip),
        sums=place(each.sums),
        sums_stride=0 if each.sums is None else rows.get(each.sums, sizes[each.sums][1]),
        relu=each.relu_mask is None if isinstance(kernel, Pointwise) else kernel.relu,
        statistic=STATISTICS[kernel.statistic or "sum"],
    )
    if isinstance(kernel, Pointwise):
        return [pointwise_step(each.wave, address(kernel.factor), x, shape, epilogue)]
    return [*convolution_steps(each.wave, kernel.parts, kernel.algorithm, x, shape, kernel.out(shape), epilogue)]


def in_waves(instructions: list[Instruction]) -> list[Instruction]:
    """Gives each instruction the first wave in which all that it reads is there; in their order."""
    waves: dict[int, int] = {}
    for each in instructions:
        each.wave = max((1 + waves[value] for value in each.read if value in waves), default=0)
        waves.update(dict.fromkeys(each.written, each.wave))
    return sorted(instructions, key=lambda each: each.wave)
