"""Max-poolings that say what they chose."""

import operator

import torch
from torch import fx


def return_pool_indices(module: fx.GraphModule) -> None:
    """Has max-poolings return what they chose: their adjoint, and the pattern of it, are made of that."""
    graph = module.graph
    for node in [node for node in graph.nodes if node.target is torch.ops.aten.max_pool2d.default]:
        with graph.inserting_before(node):
            both = graph.call_function(torch.ops.aten.max_pool2d_with_indices.default, node.args, node.kwargs)
            value = node.meta["val"]
            both.meta["val"] = (value, value)
            pooled = graph.call_function(operator.getitem, (both, 0))
            pooled.meta["val"] = value
        node.replace_all_uses_with(pooled)
        graph.erase_node(node)
