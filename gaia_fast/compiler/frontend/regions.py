"""Regions of a captured graph, which PyTorch's exporter keeps as graphs of their own: those under torch.autocast."""

import operator

import torch
from torch import fx

from gaia_fast.errors import CompilationError

_AUTOCAST = torch.ops.higher_order.wrap_with_autocast
_GRADIENTS = torch.ops.higher_order.wrap_with_set_grad_enabled


def inline_regions(module: fx.GraphModule) -> None:
    """Takes regions in which autocast is off into the graph, in place: it is never on around a captured model.

    Raises:
        CompilationError: a region of another kind, such as one in which autocast is on.
    """
    for node in list(module.graph.nodes):
        if not isinstance(node.target, torch._ops.HigherOrderOperator):
            continue
        if node.target is not _AUTOCAST or node.args[2]:
            raise CompilationError(_refusal(node))
        _inline(node, module)
    module.graph.eliminate_dead_code()


def _inline(node: fx.Node, module: fx.GraphModule) -> None:
    _, _, _, _, region, *given = node.args
    inner = module.get_submodule(str(region.target))
    assert isinstance(inner, fx.GraphModule)
    inline_regions(inner)
    placeholders = inner.graph.find_nodes(op="placeholder")
    if inner.graph.find_nodes(op="get_attr"):  # of its own, which the graph around it does not have
        raise CompilationError(_refusal(node))
    with node.graph.inserting_before(node):
        results = node.graph.graph_copy(inner.graph, dict(zip(placeholders, given, strict=True)))
    for user in list(node.users):
        assert user.target is operator.getitem
        user.replace_all_uses_with(results[user.args[1]])
        node.graph.erase_node(user)
    node.graph.erase_node(node)


def _refusal(node: fx.Node) -> str:
    if node.target not in (_AUTOCAST, _GRADIENTS):
        return (
            f"the model has the operator {node.target}, whose own graphs are not compiled; engine='hooks' scores it "
            "as it is"
        )
    on = "; it is on there" if node.target is _AUTOCAST and node.args[2] else ""
    return (
        f"the model has a region under {node.target}{on}, which decides dtypes or gradients while it runs, and a "
        "compiled program has decided before; engine='hooks' scores it as it is"
    )
