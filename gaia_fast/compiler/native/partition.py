"""A program of this package's own kernels with those that follow each other made one call.

With one image a kernel takes a tenth of a millisecond, and what lies between two of them (an interpreter, an
allocation, threads that wake up) as much again. So a fused program is cut where something of PyTorch's needs a result,
and each piece becomes an executable: steps that one team of threads works through (csrc/cpu/executor.h) on memory
planned beforehand.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from gaia_fast.compiler.native.executable import Executable, Instruction
from gaia_fast.compiler.native.kernels import Kernel
from gaia_fast.errors import CompilationError


def partition(module: fx.GraphModule) -> fx.GraphModule:
    """Returns a fused program with its kernels in executables; the weights are shared.

    It takes a function beside the images, or None, and calls it while the first executable's other threads wake up.
    """
    depths = _depths(module)
    graph = fx.Graph()
    known: dict[fx.Node, fx.Node] = {}
    images = next(node for node in module.graph.nodes if node.op == "placeholder")
    known[images] = graph.node_copy(images)
    guard: fx.Node | None = graph.placeholder("guard", default_value=None)
    if not any(_ours(node) for node in module.graph.nodes):
        graph.call_function(_call, (guard,))
    for depth in range(max(depths.values()) + 1):
        here = [node for node in module.graph.nodes if depths[node] == depth]
        for node in here:
            if node not in known and not _ours(node):
                known[node] = graph.node_copy(node, lambda each: known[each])
        if inside := [node for node in here if _ours(node)]:
            executable, inputs, outputs = _executable(inside)
            module.add_submodule(f"executable_{depth}", executable)
            called = graph.call_module(f"executable_{depth}", (guard, *(known[node] for node in inputs)))
            guard = None
            for i, node in enumerate(outputs):
                known[node] = graph.call_function(operator.getitem, (called, i))
                known[node].meta["val"] = node.meta["val"]
    return fx.GraphModule(module, graph)


def _call(guard: Callable[[], None] | None) -> None:
    if guard is not None:
        guard()


fx.has_side_effect(_call)


def _ours(node: fx.Node) -> bool:
    """Whether a node is a kernel of this package's, or a result of one."""
    if node.op == "call_module":
        return isinstance(node.graph.owning_module.get_submodule(str(node.target)), Kernel)
    return node.target is operator.getitem and isinstance(node.args[0], fx.Node) and _ours(node.args[0])


def _depths(module: fx.GraphModule) -> dict[fx.Node, int]:
    """How many executables each node comes after; for a kernel, which executable it is in."""
    depths: dict[fx.Node, int] = {}
    for node in module.graph.nodes:
        ours = _ours(node)
        found = [depths[each] + (not ours and _ours(each)) for each in node.all_input_nodes]
        depths[node] = max(found, default=0)
    last = max(depths.values())
    depths[module.graph.output_node()] = last
    return depths


def _executable(inside: list[fx.Node]) -> tuple[Executable, list[fx.Node], list[fx.Node]]:
    """An executable of nodes, what it reads from outside, and what others read of it."""
    members = set(inside)
    numbers: dict[fx.Node, int] = {}

    def number(node: Any) -> Any:
        return numbers.setdefault(node, len(numbers)) if isinstance(node, fx.Node) else None

    instructions = []
    masks: dict[int, int] = {}
    for node in inside:
        if node.target is operator.getitem:
            continue
        kernel = node.graph.owning_module.get_submodule(str(node.target))
        assert isinstance(kernel, Kernel)
        results = {each.args[1]: each for each in node.users}
        given = tuple(number(each) for each in node.args)
        for each, value in zip(node.args, given, strict=True):
            if isinstance(each, fx.Node) and each.meta["val"].dtype == torch.bool:
                masks[value] = int(each.meta["val"].shape[1])
        outputs_of = [number(results.get(i)) for i in range(kernel.results)]
        if outputs_of[0] is None and kernel.always:
            numbers[node] = outputs_of[0] = len(numbers)
        instructions.append(Instruction(kernel, given, tuple(outputs_of)))
    written = {value for each in instructions for value in each.written}
    for node, value in numbers.items():
        if value not in written and node.meta["val"].dtype not in (torch.float32, torch.bool):
            raise CompilationError(f"a kernel would read {node}, {node.meta['val'].dtype}, as float32")
    inputs = [node for node, value in numbers.items() if value not in written]
    leaving = [node for node in numbers if node in members and any(user not in members for user in node.users)]
    leaving = [node for node in leaving if node.target is operator.getitem]
    numbered = [(numbers[node], masks.get(numbers[node])) for node in inputs]
    executable = Executable(instructions, numbered, tuple(numbers[node] for node in leaving))
    return executable, inputs, leaving
