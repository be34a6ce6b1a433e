"""A program of this package's own kernels with those that follow each other made one call.

With one image a kernel takes a tenth of a millisecond, and what lies between two of them (an interpreter, an
allocation, threads that wake up) as much again. So a fused program is cut where something of PyTorch's needs a result,
and each piece becomes a chain: steps that one team of threads works through (csrc/cpu/chain.h) on memory planned
beforehand.
"""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from gaia_fast.backends import kernels
from gaia_fast.compiled.fused import Convolution, Pointwise
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
from gaia_fast.ops.open_everywhere import open_everywhere

aten = torch.ops.aten

# What puts results side by side, and the number of axes that these have.
_SIDE_BY_SIDE = {aten.cat.default: 2, aten.stack.default: 1}
_PLANS = 16  # numbers of images that are remembered
_LINE = 16  # floats
# Maps are of sizes that are powers of 2: put end to end, equal places of all would share a set of the cache.
_GAP = 5 * _LINE


def chained(module: fx.GraphModule) -> fx.GraphModule:
    """Returns a fused program with its kernels in chains; the weights are shared."""
    depths = _depths(module)
    graph = fx.Graph()
    known: dict[fx.Node, fx.Node] = {}
    for depth in range(max(depths.values()) + 1):
        here = [node for node in module.graph.nodes if depths[node] == depth]
        for node in here:
            if node not in known and not _ours(node):
                known[node] = graph.node_copy(node, lambda each: known[each])
        if inside := [node for node in here if _ours(node)]:
            chain, inputs, outputs = _chain(inside)
            module.add_submodule(f"chain_{depth}", chain)
            called = graph.call_module(f"chain_{depth}", tuple(known[node] for node in inputs))
            for i, node in enumerate(outputs):
                known[node] = graph.call_function(operator.getitem, (called, i))
                known[node].meta["val"] = node.meta["val"]
    made = fx.GraphModule(module, graph)
    made.graph.eliminate_dead_code()
    made.graph.lint()
    made.recompile()
    return made


@dataclass
class _Instruction:
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
class _Packed:
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
        self, instructions: list[_Instruction], inputs: tuple[int, ...], outputs: tuple[int | _Packed, ...]
    ) -> None:
        super().__init__()
        self.instructions, self.inputs, self.outputs = _in_stages(instructions), inputs, outputs
        self._plans: dict[tuple[torch.Size, ...], _Plan] = {}

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        shapes = tuple(each.shape for each in inputs)
        plan = self._plans.get(shapes)
        if plan is None:
            if len(self._plans) >= _PLANS:
                self._plans.clear()
            plan = self._plans[shapes] = self._plan(shapes)
        given = [channels_last(each) for each in inputs]
        arena, outputs = _empty((plan.arena,)), tuple(_empty(size) for size in plan.outputs)
        pointers = [each.data_ptr() for each in (arena, *given, *outputs)]  # type: ignore[union-attr]
        if not plan.run(pointers, torch.get_num_threads()):
            raise BackendError(f"no memory for maps of {shapes[0][0]} images; score fewer")
        for output, source, target, width in plan.copies:
            outputs[output].narrow(1, target, width).copy_(outputs[output].narrow(1, source, width))
        return outputs

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
        return _Plan(kernels.Chain(steps).run, arena, outputs, copies)  # type: ignore[union-attr]


def _empty(size: tuple[int, ...]) -> Tensor:
    layout = torch.channels_last if len(size) == 4 else torch.contiguous_format
    return torch.empty(size, dtype=torch.float32, device="cpu", memory_format=layout)


def _written(each: _Instruction, sizes: Mapping[int, torch.Size]) -> dict[int, torch.Size]:
    """The shapes of what an instruction writes."""
    shape = sizes[each.x]
    if isinstance(each.kernel, tuple):
        return {each.y: shape[:1]}
    if isinstance(each.kernel, Convolution):
        shape = torch.Size((shape[0], each.kernel.outputs, *each.kernel.out(shape)))
    return {each.y: shape} if each.sums is None else {each.y: shape, each.sums: shape[:2]}


def _steps(
    each: _Instruction, sizes: Mapping[int, torch.Size], places: Mapping[int, Pointer], rows: Mapping[int, int]
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


def _in_stages(instructions: list[_Instruction]) -> list[_Instruction]:
    """Gives each instruction the first stage in which all that it reads is there; in order of the stages."""
    stages: dict[int, int] = {}
    for each in instructions:
        each.stage = max((1 + stages[value] for value in each.read if value in stages), default=0)
        stages.update(dict.fromkeys(each.written, each.stage))
    return sorted(instructions, key=lambda each: each.stage)


def _arrange(instructions: list[_Instruction], sizes: Mapping[int, torch.Size], places: dict[int, Pointer]) -> int:
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


def _ours(node: fx.Node) -> bool:
    """Whether a node is a kernel of this package's, or a result of one."""
    if node.op == "call_module":
        kernel = node.graph.owning_module.get_submodule(str(node.target))
        return isinstance(kernel, Convolution) or (isinstance(kernel, Pointwise) and _whole(node.args[0]))
    if node.target is operator.getitem:
        return isinstance(node.args[0], fx.Node) and node.args[0].op == "call_module" and _ours(node.args[0])
    return node.target is open_everywhere and isinstance(node.args[0], fx.Node)


def _whole(x: Any) -> bool:
    return int(x.meta["val"].shape[1]) % 16 == 0


def _depths(module: fx.GraphModule) -> dict[fx.Node, int]:
    """How many chains each node comes after; for a kernel, which chain it is in."""
    depths: dict[fx.Node, int] = {}
    for node in module.graph.nodes:
        ours = _ours(node)
        found = [depths[each] + (not ours and _ours(each)) for each in node.all_input_nodes]
        depths[node] = max(found, default=0)
    last = max(depths.values())
    depths[module.graph.output_node()] = last
    return depths


def _chain(inside: list[fx.Node]) -> tuple[Chain, list[fx.Node], list[fx.Node]]:
    """A chain of nodes, what it reads from outside, and what others read of it."""
    members = set(inside)
    numbers: dict[fx.Node, int] = {}

    def number(node: Any) -> Any:
        return numbers.setdefault(node, len(numbers)) if isinstance(node, fx.Node) else None

    instructions = []
    for node in inside:
        if node.target is operator.getitem:
            continue
        if node.op == "call_module":
            kernel = node.graph.owning_module.get_submodule(str(node.target))
            results = {each.args[1]: each for each in node.users}
            y, sums = (number(results[i]) if i in results else None for i in (0, 1))
            if y is None:
                numbers[node] = y = len(numbers)
            instructions.append(_Instruction(kernel, number(node.args[0]), y, sums, *map(number, node.args[1:])))
        else:
            instructions.append(_Instruction(node.args[1:], number(node.args[0]), number(node)))
    written = {value for each in instructions for value in each.written}
    inputs = [node for node, value in numbers.items() if value not in written]
    leaving = [node for node in numbers if node in members and any(user not in members for user in node.users)]
    packed = _packed(leaving)
    outputs: dict[fx.Node, int | _Packed] = {node: numbers[node] for node in leaving}
    for cat in packed:
        outputs[cat] = _Packed(tuple(numbers[node] for node in cat.args[0]))
        for node in cat.args[0]:
            outputs.pop(node, None)
    chain = Chain(instructions, tuple(numbers[node] for node in inputs), tuple(outputs.values()))
    return chain, inputs, list(outputs)


def _packed(leaving: list[fx.Node]) -> list[fx.Node]:
    """The places where sums are concatenated, or answers stacked, that nothing else reads."""
    found = []
    for node in dict.fromkeys(user for each in leaving for user in each.users):
        if node.target not in _SIDE_BY_SIDE or list(node.args[1:]) not in ([1], [-1]):
            continue
        axes = _SIDE_BY_SIDE[node.target]
        inputs = set(node.args[0])
        if all(each in leaving and each.meta["val"].ndim == axes and set(each.users) == {node} for each in inputs):
            found.append(node)
    return found
