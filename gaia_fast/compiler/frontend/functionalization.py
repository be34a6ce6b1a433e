"""Functional form: operators that write into their inputs become those that return their result.

`ExportedProgram.run_decompositions({})` does it for any model, by tracing it once more, which takes a third of the
time that preparing a network takes. Most networks need no more than is done here: what they write to in place has no
other name. Whatever is not plainly so is left to PyTorch.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from gaia_fast.compiler.ir.types import infer_types, value_of

aten = torch.ops.aten

_NUMBERS = (int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool)
# Composite operators that stay as they are; PyTorch's functional form keeps them, too, but makes views of reshapes.
_KEPT = {
    aten.adaptive_avg_pool2d.default,
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv2d.padding,
    aten.group_norm.default,
    aten.layer_norm.default,
    aten.linear.default,
    aten.log_softmax.int,
    aten.max_pool2d.default,
    aten.pad.default,
    aten.reshape.default,
    aten.softmax.int,
    aten.upsample_bilinear2d.vec,
    aten.upsample_nearest2d.vec,
}


def functional(module: fx.GraphModule) -> bool:
    """Brings an exported graph into functional form, in place.

    Returns:
        Whether that could be done; if not, the graph is of no more use.
    """
    infer_types(module)
    return _Functionalization(module.graph).run()


class _UnclearError(Exception):
    """What a node writes to, or is, cannot be told here."""


class _Functionalization:
    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.now: dict[fx.Node, fx.Node] = {}  # a node -> what holds its value after all writes so far
        self.storage: dict[fx.Node, fx.Node] = {}  # a node -> the first one that shares its memory
        self.names: dict[fx.Node, list[fx.Node]] = {}  # of these -> all that share it
        self.viewed: set[fx.Node] = set()  # those of which there are views, or which are not the graph's own

    def run(self) -> bool:
        try:
            for node in list(self.graph.nodes):
                node.args, node.kwargs = fx.map_arg((node.args, node.kwargs), lambda each: self.now.get(each, each))
                if node.op in ("placeholder", "get_attr"):
                    self._owns(node)
                    self.viewed.add(node)
                elif node.op == "call_function":
                    self._function(node)
                elif node.op != "output":
                    return False
        except _UnclearError:
            return False
        self.graph.eliminate_dead_code()
        return True

    def _owns(self, node: fx.Node) -> None:
        self.storage[node], self.names[node] = node, [node]

    def _shares(self, node: fx.Node, of: fx.Node) -> None:
        first = self.storage[node] = self.storage[of]
        self.names[first].append(node)
        self.viewed.add(first)

    def _becomes(self, node: fx.Node, other: fx.Node) -> None:
        """Takes a node out that is another one."""
        node.replace_all_uses_with(other)
        self.graph.erase_node(node)

    def _function(self, node: fx.Node) -> None:
        target: Any = node.target
        if isinstance(node.meta.get("val"), _NUMBERS):
            self._owns(node)
        elif target is operator.getitem:
            self._shares(node, node.args[0])
        elif not isinstance(target, torch._ops.OpOverload):
            raise _UnclearError
        elif target in _LOWERED:
            with self.graph.inserting_before(node):
                _LOWERED[target](self, node)
        elif target._schema.is_mutable:
            self._write(node)
        elif _is_composite(target) and target not in _KEPT:
            raise _UnclearError
        elif any(each.alias_info is not None for each in target._schema.returns):
            self._shares(node, node.args[0])
        else:
            self._owns(node)

    def _write(self, node: fx.Node) -> None:
        """An operator that writes to its first argument and returns it."""
        target: Any = node.target
        written = [each.alias_info is not None and each.alias_info.is_write for each in target._schema.arguments]
        other = _out_of_place(target)
        if written != [True] + [False] * (len(written) - 1) or other is None:
            raise _UnclearError
        x = node.args[0]
        first = self.storage[x]
        if first in self.viewed or torch.Tag.nondeterministic_seeded in target.tags:
            raise _UnclearError
        value, before = value_of(node, other), x.meta["val"]
        # What is written is cast to what it is written to, and what is returned is not.
        if not isinstance(value, Tensor) or value.dtype != before.dtype or value.shape != before.shape:
            raise _UnclearError
        node.target, node.meta["val"] = other, value
        self.storage[node], self.names[node] = node, [*self.names[first], node]
        for name in self.names[first]:
            self.now[name] = node

    def _replace(self, node: fx.Node, target: Any, args: tuple[Any, ...], **kwargs: Any) -> fx.Node:
        """Has another operator make the node's value."""
        made = self.graph.call_function(target, args, kwargs)
        made.meta = dict(node.meta)
        self._becomes(node, made)
        return made


def _is_composite(target: torch._ops.OpOverload) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), "CompositeImplicitAutograd")


def _out_of_place(target: torch._ops.OpOverload) -> Any:
    """The operator that returns what this one writes; None where there is none."""
    name = target._schema.name.removeprefix("aten::")
    packet = getattr(aten, name[:-1], None) if target.namespace == "aten" and name[-1] == "_" else None
    return getattr(packet, target._overloadname, None)


def _batch_norm(of: _Functionalization, node: fx.Node) -> None:
    x, weight, bias, mean, var, training, momentum, eps, _ = node.args
    if training is not False or mean is None or var is None:
        raise _UnclearError
    parameters = (x, weight, bias, mean, var, momentum, eps)
    made = of.graph.call_function(aten._native_batch_norm_legit_no_training.default, parameters)
    made.meta["val"] = value_of(made)
    of._owns(made)
    of._owns(of._replace(node, operator.getitem, (made, 0)))


def _dropout(of: _Functionalization, node: fx.Node) -> None:
    x, _, training = node.args
    if training is not False:
        raise _UnclearError
    of._becomes(node, x)


def _contiguous(of: _Functionalization, node: fx.Node) -> None:
    x, layout = node.args[0], node.kwargs.get("memory_format", torch.contiguous_format)
    if len(node.args) > 1:
        raise _UnclearError
    if x.meta["val"].is_contiguous(memory_format=layout):
        of._becomes(node, x)
    else:
        of._owns(of._replace(node, aten.clone.default, (x,), memory_format=layout))


def _flatten(of: _Functionalization, node: fx.Node) -> None:
    arguments: list[Any] = [*node.args, *(0, -1)[len(node.args) - 1 :]]
    x, start, end = arguments
    sizes = x.meta["val"].shape[1:]
    if start != 1 or end not in (-1, len(sizes)) or not sizes or not all(isinstance(each, int) for each in sizes):
        raise _UnclearError
    of._shares(of._replace(node, aten.reshape.default, (x, [-1, sizes.numel()])), x)


def _reshape_as(of: _Functionalization, node: fx.Node) -> None:
    x, other = node.args
    sizes = list(other.meta["val"].shape)
    if not all(isinstance(each, int) for each in sizes):
        raise _UnclearError
    of._shares(of._replace(node, aten.reshape.default, (x, sizes)), x)


def _expand_as(of: _Functionalization, node: fx.Node) -> None:
    x, other = node.args
    own, wanted = x.meta["val"].shape, other.meta["val"].shape
    # A size that is a symbol is the number of images, and -1 leaves it as it is.
    kept = [not isinstance(size, int) for size in own]
    if len(own) != len(wanted) or kept != [not isinstance(size, int) for size in wanted]:
        raise _UnclearError
    sizes = [-1 if keep else size for keep, size in zip(kept, wanted, strict=True)]
    of._shares(of._replace(node, aten.expand.default, (x, sizes)), x)


def _chunk(of: _Functionalization, node: fx.Node) -> None:
    arguments: list[Any] = [*node.args, 0]
    x, chunks, axis = arguments[:3]
    size = x.meta["val"].shape[axis]
    if not isinstance(size, int):
        raise _UnclearError
    of._shares(of._replace(node, aten.split.Tensor, (x, -(-size // chunks), axis)), x)


_LOWERED: dict[Any, Callable[[_Functionalization, fx.Node], None]] = {
    aten.batch_norm.default: _batch_norm,
    aten.dropout.default: _dropout,
    aten.dropout_.default: _dropout,
    aten.contiguous.default: _contiguous,
    aten.flatten.using_ints: _flatten,
    aten.chunk.default: _chunk,
    aten.expand_as.default: _expand_as,
    aten.reshape_as.default: _reshape_as,
}
