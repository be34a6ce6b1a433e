"""Kernels in one call: the steps of a chain, and the memory that it works on, planned for inputs of one shape."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gaia_fast.backends import kernels
from gaia_fast.compiled.kernels import Convolution, Pointwise
from gaia_fast.errors import BackendError
from gaia_fast.ops.convolution import channels_last
from gaia_fast.ops.convolution.steps import (
    NOTHING,
    Ending,
    Pointer,
    address,
    convolution_steps,
    open_step,
    pointwise_step,
)

_PLANS = 16  # numbers of images that are remembered
_LINE = 16  # floats
_KEPT = 1 << 28  # floats of an arena that stays for the next call
# Maps are of sizes that are powers of 2: put end to end, equal places of all would share a set of the cache.
_GAP = 5 * _LINE


@dataclass
class Instruction:
    """A kernel, the numbers of the values it reads and writes, and the stage it runs in."""

    kernel: Convolution | Pointwise | tuple[Any, ...]  # or what `open_everywhere` takes beside the map
    x: int
    y: int
    sums: int | None = None
    residual: int | None = None
    gate: int | None = None
    skip: int | None = None
    stage: int = 0

    @property
    def read(self) -> list[int]:
        return [each for each in (self.x, self.residual, self.gate, self.skip) if each is not None]

    @property
    def written(self) -> list[int]:
        return [self.y] if self.sums is None else [self.y, self.sums]


@dataclass(frozen=True)
class Packed:
    """Sums, or answers, that are wanted side by side, as columns of one tensor."""

    values: tuple[int, ...]


@dataclass
class _Plan:
    """A chain for inputs of one shape: its steps, and the sizes of what it writes."""

    run: Any
    arena: int
    outputs: list[tuple[int, ...]]
    copies: list[tuple[int, int, int, int]]  # output, column, its copy's column, width


class Chain(nn.Module):
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
        self.instructions, self.inputs, self.outputs = _in_stages(instructions), inputs, outputs
        self._plans: dict[tuple[torch.Size, ...], _Plan] = {}
        self._spare: list[Tensor] = []  # an arena that no call works on

    def forward(self, meanwhile: Callable[[], None] | None, *inputs: Tensor) -> tuple[Tensor, ...]:
        shapes = tuple(each.shape for each in inputs)
        plan = self._plans.get(shapes)
        if plan is None:
            if len(self._plans) >= _PLANS:
                self._plans.clear()
            plan = self._plans[shapes] = self._plan(shapes)
        given = [channels_last(each) for each in inputs]
        arena, outputs = self._take(plan.arena), tuple(_empty(size) for size in plan.outputs)
        pointers = [each.data_ptr() for each in (arena, *given, *outputs)]  # type: ignore[union-attr]
        if not plan.run(pointers, torch.get_num_threads(), meanwhile):
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
        places: dict[int, Pointer] = {value: (1 + i, 0) for i, value in enumerate(self.inputs)}
        rows: dict[int, int] = {}
        outputs: list[tuple[int, ...]] = []
        copies = []
        for i, output in enumerate(self.outputs):
            place = 1 + len(self.inputs) + i
            if isinstance(output, int):
                places[output] = (place, 0)
                outputs.append(tuple(sizes[output]))
                continue
            column = 0
            widths = [sizes[value][1:].numel() for value in output.values]
            total = sum(widths)
            for value, width in zip(output.values, widths, strict=True):
                if value in places:
                    copies.append((i, places[value][1], column, width))
                else:
                    places[value], rows[value] = (place, column), total
                column += width
            outputs.append((sizes[output.values[0]][0], total))  # a program may cut images into more
        arena = _arrange(self.instructions, sizes, places)
        steps = [step for each in self.instructions for step in _steps(each, sizes, places, rows)]
        try:
            chain = kernels.Chain(steps)  # type: ignore[union-attr]
        except ValueError as error:
            raise BackendError(
                f"the compiled extension refuses {error}. It is of another version than the package: install both anew"
            ) from error
        return _Plan(chain.run, arena, outputs, copies)


def _empty(size: tuple[int, ...]) -> Tensor:
    layout = torch.channels_last if len(size) == 4 else torch.contiguous_format
    return torch.empty(size, dtype=torch.float32, device="cpu", memory_format=layout)


def _written(each: Instruction, sizes: Mapping[int, torch.Size]) -> dict[int, torch.Size]:
    """The shapes of what an instruction writes."""
    shape = sizes[each.x]
    if isinstance(each.kernel, tuple):
        return {each.y: shape[:1]}
    if isinstance(each.kernel, Convolution):
        shape = torch.Size((shape[0], each.kernel.outputs, *each.kernel.out(shape)))
    return {each.y: shape} if each.sums is None else {each.y: shape, each.sums: shape[:2]}


def _steps(
    each: Instruction, sizes: Mapping[int, torch.Size], places: Mapping[int, Pointer], rows: Mapping[int, int]
) -> list[tuple[Any, ...]]:
    """The steps of an instruction, for the C++ side; `rows` holds how far apart the images are of what is packed."""
    x, shape = places[each.x], sizes[each.x]
    if isinstance(each.kernel, tuple):
        return [open_step(each.stage, x, shape, places[each.y], rows.get(each.y, 1), *each.kernel)]

    def place(value: int | None) -> Pointer:
        return NOTHING if value is None else places[value]

    kernel, step = each.kernel, 0
    if each.sums is not None:
        step = rows.get(each.sums, sizes[each.sums][1])
    ending = Ending(
        address(kernel.shift if isinstance(kernel, Pointwise) else kernel.bias),
        place(each.residual),
        place(each.gate),
        address(kernel.scale),
        place(each.skip),
        places[each.y],
        place(each.sums),
        step,
        each.gate is None if isinstance(kernel, Pointwise) else kernel.relu,
        kernel.statistic,
    )
    if isinstance(kernel, Pointwise):
        return [pointwise_step(each.stage, address(kernel.factor), x, shape, ending)]
    return convolution_steps(each.stage, kernel.parts, kernel.form, x, shape, kernel.out(shape), ending)


def _in_stages(instructions: list[Instruction]) -> list[Instruction]:
    """Gives each instruction the first stage in which all that it reads is there; in order of the stages."""
    stages: dict[int, int] = {}
    for each in instructions:
        each.stage = max((1 + stages[value] for value in each.read if value in stages), default=0)
        stages.update(dict.fromkeys(each.written, each.stage))
    return sorted(instructions, key=lambda each: each.stage)


def _arrange(instructions: list[Instruction], sizes: Mapping[int, torch.Size], places: dict[int, Pointer]) -> int:
    """Places what has no place yet into one arena, each where no other lies that is needed at the time; its floats."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for each in instructions:
        for value in each.written:
            first[value] = last[value] = each.stage
        for value in each.read:
            last[value] = max(last.get(value, 0), each.stage)
    taken: list[tuple[int, int, int, int]] = []  # begin, end, first stage, last stage
    for value in sorted((each for each in first if each not in places), key=lambda each: first[each]):
        floats = -(-sizes[value].numel() // _LINE) * _LINE + _GAP
        begin = 0
        for other_begin, other_end, from_, to in sorted(taken):
            if first[value] <= to and from_ <= last[value] and other_begin < begin + floats and begin < other_end:
                begin = other_end
        taken.append((begin, begin + floats, first[value], last[value]))
        places[value] = (0, begin)
    return max((end for _, end, _, _ in taken), default=0)
