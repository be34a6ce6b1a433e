"""Copies: those that recording leaves behind and nobody needs, and those of constants that a program hands out."""

from sys import maxsize

import torch
from torch import fx

aten = torch.ops.aten

_IDENTITIES = (aten.detach.default, aten.alias.default, aten.lift_fresh_copy.default, aten.lift_fresh.default)


def drop_identities(module: fx.GraphModule) -> None:
    """Takes out operators that give what they are given."""
    for node in module.graph.nodes:
        if node.target in _IDENTITIES or _takes_all(node):
            node.replace_all_uses_with(node.args[0])


def _takes_all(node: fx.Node) -> bool:
    """Whether a slice leaves nothing out: x[:, 3:5] is now and then recorded with one of the images before it."""
    return node.target is aten.slice.Tensor and tuple(node.args[2:]) in ((0, maxsize), (0, maxsize, 1))


def copy_returned_constants(module: fx.GraphModule) -> None:
    """Copies what a program would return of its constants: the caller may write to what it gets."""
    output = module.graph.output_node()
    for node in set(output.all_input_nodes):
        source = node.args[0] if node.target is aten.expand.default else node
        if isinstance(source, fx.Node) and source.op == "get_attr":
            with module.graph.inserting_before(output):
                copy = module.graph.call_function(aten.clone.default, (node,))
            output.replace_input_with(node, copy)
