"""Kernels in one call: the steps of an executable, and the memory that it works on, planned for inputs of one shape.

Images whose channels are planes are copied into the order of maps by a step of their own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from gaia_fast.backends import kernels
from gaia_fast.compiler.native.kernels import Kernel, Place, Shape
from gaia_fast.compiler.native.memory_plan import SIDE_BY_SIDE, Scheduled, Slice, in_lines, place_in_arena, slices
from gaia_fast.compiler.native.result_kernels import Columns
from gaia_fast.errors import BackendError
from gaia_fast.ops.convolution import channels_last
from gaia_fast.ops.convolution.cpu import in_panels
from gaia_fast.ops.convolution.packing import NR, padded
from gaia_fast.ops.convolution.steps import Pointer, Step, refusals

_PLANS = 16  # numbers of images, and layouts, that are remembered
_KEPT = 1 << 28  # floats of an arena that stays for the next call


@dataclass
class Instruction(Scheduled):
    """A kernel, the numbers of the values it reads and writes, None where there are none, and the wave it runs in."""

    kernel: Kernel
    inputs: tuple[int | None, ...]
    outputs: tuple[int | None, ...]
    wave: int = 0

    @property
    def read(self) -> list[int]:
        return [each for each in self.inputs if each is not None]

    @property
    def written(self) -> list[int]:
        return [each for each in self.outputs if each is not None]

    def is_in_place(self, slices: Mapping[int, Slice]) -> bool:
        """Whether it puts side by side what lies so already."""
        if not isinstance(self.kernel, SIDE_BY_SIDE) or len(set(self.read)) < len(self.read):
            return False
        if isinstance(self.kernel, Columns) and len(self.kernel.rows) > len(self.read):
            return False
        whole = self.written[0]
        root = slices[whole].of if whole in slices else whole
        return all(value in slices and slices[value].of == root for value in self.read)


@dataclass
class _Plan:
    """An executable for inputs of one shape and layout: its steps, and the shapes of what it writes."""

    steps: "kernels.Executable"
    arena: int
    outputs: list[Shape]
    maps: bool  # whether there are maps among the outputs


# The shapes of inputs, and whether their channels are planes.
_Kinds: TypeAlias = tuple[tuple[torch.Size, bool], ...]


class Executable(nn.Module):
    """Kernels in one call: maps (N, C, H, W) to a tuple of maps, sums (N, K) and answers (N,).

    Args:
        instructions: in an order in which they can run.
        inputs: the numbers of the values that come from outside; with the channels of those that are masks.
        outputs: of those that go there.
    """

    def __init__(
        self,
        instructions: list[Instruction],
        inputs: Sequence[tuple[int, int | None]],
        outputs: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.instructions, self.outputs = in_waves(instructions), outputs
        self.inputs = [number for number, _ in inputs]
        self._masks = [channels for _, channels in inputs]
        in_whole = {
            value
            for each in instructions
            for index, value in enumerate(each.inputs)
            if value is not None and each.kernel.reads_panels(index)
        }
        self._in_panels = [number in in_whole for number in self.inputs]
        self._plans: dict[tuple[_Kinds, int | None], _Plan] = {}
        self._spare: list[Tensor] = []  # an arena that no call works on
        self.one_by_one: set[int] = set()  # numbers of images that are run image by image, each on a thread of its own

    @property
    def numbered_inputs(self) -> list[tuple[int, int | None]]:
        """What it was made with."""
        return list(zip(self.inputs, self._masks, strict=True))

    def forward(self, guard: Callable[[], None] | None, *inputs: Tensor) -> tuple[Tensor, ...]:
        kinds = tuple((each.shape, _are_planes(each)) for each in inputs)
        plan = self._plan_for(kinds)
        given = [
            each if mask is not None or planes else _laid_out(each, whole)
            for each, mask, whole, (_, planes) in zip(inputs, self._masks, self._in_panels, kinds, strict=True)
        ]
        images, threads = inputs[0].shape[0], torch.get_num_threads()
        single = self._plan_of_one(plan, kinds) if images in self.one_by_one else None
        floats = plan.arena if single is None else single.arena * min(threads, images)
        arena = self._take(floats)
        outputs = tuple(_empty(shape) for shape in plan.outputs)
        buffers = (arena, *given, *outputs)
        pointers = [each.data_ptr() for each in buffers]
        if single is None:
            done = plan.steps.run(pointers, threads, guard)
        else:
            strides = [4 * single.arena, *(4 * each.stride(0) for each in buffers[1:])]
            done = single.steps.run_images(pointers, strides, images, threads, guard)
        if not done:
            raise BackendError(f"no memory for maps of {images} images; score fewer")
        if not self._spare and floats <= _KEPT:
            self._spare.append(arena)
        if plan.maps:  # operators of PyTorch's want maps without gaps
            return tuple(_without_gaps(each, shape) for each, shape in zip(outputs, plan.outputs, strict=True))
        return outputs

    def _plan_for(self, kinds: _Kinds, batch: int | None = None) -> _Plan:
        key = kinds, batch
        plan = self._plans.get(key)
        if plan is None:
            if len(self._plans) >= _PLANS:
                self._plans.clear()
            plan = self._plans[key] = self._plan(*key)
        return plan

    def _plan_of_one(self, plan: _Plan, kinds: _Kinds) -> _Plan | None:
        """The plan for one of the images that inputs are of; None where they are not images side by side."""
        images = kinds[0][0][0]
        sizes = [*(size for size, _ in kinds), *(each.size for each in plan.outputs)]
        masks = any(each is not None for each in self._masks) or any(each.mask for each in plan.outputs)
        if masks or any(size[0] != images for size in sizes):
            return None
        return self._plan_for(tuple((torch.Size((1, *size[1:])), planes) for size, planes in kinds), images)

    def _take(self, floats: int) -> Tensor:
        """An arena of so many floats or more, of an earlier call where there is one: fresh pages cost a third of it."""
        try:
            spare = self._spare.pop()
        except IndexError:
            return _vector(floats)
        return spare if spare.numel() >= floats else _vector(floats)

    def _plan(self, kinds: _Kinds, batch: int | None) -> _Plan:
        shapes: dict[int, Shape] = {}
        places: dict[int, Pointer] = {}
        copied: dict[int, Pointer] = {}  # where an input lies whose channels are planes
        for i, (value, (size, planes), mask) in enumerate(zip(self.inputs, kinds, self._masks, strict=True)):
            shapes[value] = Shape(size) if mask is None else Shape(torch.Size((size[0], mask, *size[2:])), mask=True)
            pitch = 0 if len(size) != 4 else padded(size[1]) if self._in_panels[i] else size[1]
            places[value] = Pointer(1 + i, 0, pitch)
            if planes:
                copied[value] = places[value]
        for each in self.instructions:
            read = [None if value is None else shapes[value] for value in each.inputs]
            for result, shape in zip(each.outputs, each.kernel.shapes(read), strict=True):
                if result is not None:
                    shapes[result] = shape
        outputs = [shapes[output] for output in self.outputs]
        for i, output in enumerate(self.outputs):
            places[output] = whole(1 + len(self.inputs) + i, shapes[output])
        parts = slices(self.instructions, shapes, places)
        arena = place_in_arena(self.instructions, shapes, places, parts)
        rows = {value: shapes[part.of].size[1] for value, part in parts.items() if len(shapes[value].size) < 4}
        for value, given in copied.items():
            size = shapes[value].size
            places[value] = given._replace(buffer=0, offset=arena)
            arena += in_lines(size[0] * size[2] * size[3] * given.pitch)
        # A concatenation of what lies in it already is no step, and a wave has to have one.
        waves = sorted({each.wave for each in self.instructions if not each.is_in_place(parts)})
        numbers = {wave: number for number, wave in enumerate(waves, start=min(len(copied), 1))}

        def at(value: int | None) -> Place | None:
            if value is None:
                return None
            shape = shapes[value]
            stride = rows.get(value, 1 if len(shape.size) == 1 else shape.size[1])
            return Place(shape, places[value], stride, batch or shape.size[0])

        steps: list[Step] = []
        with refusals():
            for value, given in copied.items():
                steps.append(kernels.ChannelsLastStep(wave=0, x=given, shape=shapes[value].size, y=places[value]))
            for each in self.instructions:
                wave = numbers.get(each.wave, 0)
                steps += each.kernel.steps(wave, [at(i) for i in each.inputs], [at(i) for i in each.outputs])
            executable = kernels.Executable(steps)
        return _Plan(executable, arena, outputs, any(_is_map(each) for each in outputs))


def _are_planes(x: Tensor) -> bool:
    """Whether an input is copied into the order of maps by the executable: of few channels, which lie one by one."""
    return x.ndim == 4 and 1 < x.shape[1] < NR and x.is_contiguous() and x.dtype == torch.float32


def _laid_out(x: Tensor, whole: bool) -> Tensor:
    """An input as kernels read it: a map channels-last, with `whole` in whole panels; vectors one after the other."""
    if x.ndim != 4:
        return x.contiguous()
    return in_panels(x) if whole else channels_last(x)


def _is_map(shape: Shape) -> bool:
    return len(shape.size) == 4 and not shape.mask


def _without_gaps(x: Tensor, shape: Shape) -> Tensor:
    return channels_last(x) if _is_map(shape) else x


def whole(buffer: int, shape: Shape) -> Pointer:
    """A value that a buffer holds by itself."""
    return Pointer(buffer, 0, padded(shape.size[1]) if len(shape.size) == 4 else 0)


def _vector(floats: int) -> Tensor:
    return torch.empty(floats, dtype=torch.float32, device="cpu")


def _empty(shape: Shape) -> Tensor:
    """Room for a value that goes outside; a mask as the words of its panels, (N, panels, H, W)."""
    if shape.mask:
        images, channels, height, width = shape.size
        words = torch.empty(2 * shape.floats, dtype=torch.int16, device="cpu")
        return words.as_strided(
            (images, padded(channels) // NR, height, width), (height * width, shape.plane, width, 1)
        )
    if len(shape.size) != 4:
        return torch.empty(shape.size, dtype=torch.float32, device="cpu")
    layout = torch.channels_last
    return torch.empty(shape.panels, dtype=torch.float32, device="cpu", memory_format=layout)[:, : shape.size[1]]


def in_waves(instructions: list[Instruction]) -> list[Instruction]:
    """Gives each instruction the first wave in which all that it reads is there; in their order."""
    waves: dict[int, int] = {}
    for each in instructions:
        each.wave = max((1 + waves[value] for value in each.read if value in waves), default=0)
        waves.update(dict.fromkeys(each.written, each.wave))
    return sorted(instructions, key=lambda each: each.wave)
