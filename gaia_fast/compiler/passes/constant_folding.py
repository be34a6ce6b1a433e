"""Constant folding: what depends on weights alone is computed once."""

from typing import Any

import torch
from torch import Tensor, fx

from gaia_fast.compiler.ir.constants import attribute, constant

aten = torch.ops.aten

# Operators that need no input to make a constant.
_FACTORIES = (aten.ones.default, aten.zeros.default, aten.full.default, aten.scalar_tensor.default, aten.arange.default)


def fold_constants(module: fx.GraphModule) -> None:
    """Evaluates every node that no image reaches; the results become buffers, detached from the model."""
    graph = module.graph
    known: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            value = attribute(module, str(node.target))
            known[node] = value.detach() if isinstance(value, Tensor) else value
        elif node.op == "call_function" and all(n in known for n in node.all_input_nodes):
            if not node.all_input_nodes and node.target not in _FACTORIES:
                continue
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda each: known[each])
            with torch.no_grad():
                known[node] = node.target(*args, **kwargs)
    placed: dict[int, fx.Node] = {}
    for node, value in known.items():
        if not isinstance(value, Tensor) or all(user in known for user in node.users):
            continue
        if id(value) not in placed:
            with graph.inserting_before(next(iter(graph.nodes))):
                placed[id(value)] = constant(module, value)
        node.replace_all_uses_with(placed[id(value)], lambda user: user not in known)
    graph.eliminate_dead_code()
    for name in [name for name, _ in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]]:
        if not any(node.op == "get_attr" and node.target == name for node in graph.nodes):
            delattr(module, name)
