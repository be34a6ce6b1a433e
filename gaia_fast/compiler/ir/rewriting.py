"""What rewrites of a graph ask of its nodes."""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.symbolic_shapes import statically_known_true

from gaia_fast.compiler.ir.constants import constant_value

CONVOLUTIONS = (torch.ops.aten.conv2d.default, torch.ops.aten.convolution.default)


def copy_of(module: fx.GraphModule) -> fx.GraphModule:
    """A graph of its own, with the same weights."""
    fresh = fx.Graph()
    fresh.output(fresh.graph_copy(module.graph, {}))
    copied = fx.GraphModule(module, fresh)
    copied.meta["passes"] = list(module.meta.get("passes", []))
    return copied


Rewrite = Callable[[fx.Graph, fx.Node], fx.Node | None]


def rewritten(graph: fx.Graph, rewrites: Mapping[Any, Rewrite]) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Yields the nodes that have a rewrite by their target, each with what it made, if anything, before the node."""
    for node in list(graph.nodes):
        rewrite = rewrites.get(node.target)
        if rewrite is None:
            continue
        with graph.inserting_before(node):
            replaced = rewrite(graph, node)
        if replaced is not None:
            yield node, replaced


def call_kernel(graph: fx.Graph, kernel: nn.Module, inputs: tuple[fx.Node | None, ...]) -> fx.Node:
    """A call of a kernel that the graph's module takes up, at the graph's current place of insertion."""
    owner = graph.owning_module
    index = sum(1 for _ in owner.children())
    while hasattr(owner, name := f"kernel_{index}"):  # others may have been taken out
        index += 1
    owner.add_submodule(name, kernel)
    return graph.call_module(name, inputs)


def result_of(graph: fx.Graph, made: fx.Node, index: int, value: Any) -> fx.Node:
    """One result of a kernel that has several, with what stands for it."""
    result = graph.call_function(operator.getitem, (made, index))
    result.meta["val"] = value
    return result


def only_user(node: fx.Node) -> fx.Node | None:
    """What reads a node, where that is one node alone."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def calls(node: Any, target: Any) -> bool:
    """Whether an argument is the result of an operator."""
    return isinstance(node, fx.Node) and node.target is target


def over_space(node: fx.Node) -> bool:
    """Whether a node is the float32 sums of maps over space, one for each channel of each image."""
    if node.target is not torch.ops.aten.sum.dim_IntList or list(node.args[1]) not in ([2, 3], [-2, -1], [-1, -2]):
        return False
    value = node.meta["val"]
    return value.ndim == 2 and value.dtype == torch.float32  # axes may be kept, and another dtype asked for


def counts_of(mask: fx.Node) -> list[fx.Node]:
    """The numbers of a mask's entries in each channel of each image, where they are counted."""
    copies = [copy for copy in mask.users if copy.target is torch.ops.aten._to_copy.default]
    return [each for copy in copies for each in copy.users if over_space(each)]


def erase(graph: fx.Graph, node: fx.Node) -> None:
    """Takes out a node that nothing reads any more, and what was there for it alone."""
    if node.users or node.op not in ("call_function", "call_module") or node._erased:
        return
    inputs = node.all_input_nodes
    graph.erase_node(node)
    for each in inputs:
        erase(graph, each)


def same_shape(one: Any, other: Any) -> bool:
    """Whether two nodes have one shape, symbols included."""
    shapes: list[Sequence[Any]] = [each.meta["val"].shape for each in (one, other)]
    return len(shapes[0]) == len(shapes[1]) and all(same_size(a, b) for a, b in zip(*shapes, strict=True))


def same_size(one: Any, other: Any) -> bool:
    """Whether two sizes are the same whatever the number of images; asking `==` could settle that number."""
    return one is other or bool(statically_known_true(one == other))


def alike(one: Any, other: fx.Node) -> bool:
    """Whether an argument is a tensor of the shape and dtype of a node."""
    return isinstance(one, fx.Node) and same_shape(one, other) and one.meta["val"].dtype == other.meta["val"].dtype


def per_channel(node: Any, channels: int) -> Tensor | None:
    """The (K,) values of a float32 constant that has one for each channel of a map; None of anything else."""
    value = constant_value(node)
    if (
        value is None
        or value.dtype != torch.float32
        or value.numel() != channels
        or tuple(value.shape[-3:]) != (channels, 1, 1)
    ):
        return None
    return value.reshape(channels)


def pair(value: Any) -> tuple[int, int]:
    """Both axes of a size that may be written once for both."""
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[-1]))
