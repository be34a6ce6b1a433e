"""Values that are the same at every position, or for every image: computed once, and spread out where they are read.

The gradient that reaches the last feature map through a mean over space is one number a channel, and where it comes
from Phi it is the same for every image.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from gaia_fast.compiler.ir.constants import constant, constant_value
from gaia_fast.compiler.ir.rewriting import Rewrite, rewritten

aten = torch.ops.aten


def sink_broadcasts(module: fx.GraphModule) -> None:
    """Divides and averages before a value is spread out, not behind."""
    for node, replaced in rewritten(module.graph, _REWRITES):
        node.replace_all_uses_with(replaced)


def fold_batch_constants(module: fx.GraphModule) -> None:
    """Makes what is the same for each image, however many there are, a constant of one image.

    That is what comes of constants and of the number of images, where it is a size and nothing else.
    """
    graph = module.graph
    number: fx.Node | None = None
    known: dict[fx.Node, tuple[Any, Any]] = {}  # for one image and for two
    rows: list[fx.Node] = []
    for node in list(graph.nodes):
        if node.op == "get_attr":
            value = constant_value(node)
            known[node] = value, value
        elif node.target is aten.sym_size.int and node.args[0].op == "placeholder" and node.args[1] == 0:
            number = number or node
            known[node] = 1, 2
        elif node.op == "call_function" and node.all_input_nodes and all(n in known for n in node.all_input_nodes):
            if any(isinstance(known[each][0], int) for each in node.args if isinstance(each, fx.Node)):
                continue
            one, two = _call(node, known, 0), _call(node, known, 1)
            if _same_for_each(one, two):
                known[node] = one, two
                rows.append(node)
    for node in rows:
        if all(user in known for user in node.users):
            continue
        one, _ = known[node]
        with graph.inserting_before(node):
            layout = torch.channels_last if one.ndim == 4 else torch.contiguous_format
            row = constant(module, one.contiguous(memory_format=layout))
            spread = graph.call_function(aten.expand.default, (row, [number, *one.shape[1:]]))
            spread.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(spread)


def _call(node: fx.Node, known: dict[fx.Node, tuple[Any, Any]], which: int) -> Any:
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda each: known[each][which])
    with torch.no_grad():
        return node.target(*args, **kwargs)


def _same_for_each(one: Any, two: Any) -> bool:
    """Whether a value has a row for each image, all alike."""
    if not isinstance(one, Tensor) or one.ndim == 0 or (one.shape[0], two.shape[0]) != (1, 2):
        return False
    return one.shape[1:] == two.shape[1:] and torch.equal(one.expand_as(two), two)


def _divide(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    spread = node.args[0]
    if spread.target is not aten.expand.default:
        return None
    x, sizes = spread.args[:2]
    divided = graph.call_function(node.target, (x, *node.args[1:]), node.kwargs)
    divided.meta["val"] = x.meta["val"]
    replaced = graph.call_function(aten.expand.default, (divided, sizes))
    replaced.meta["val"] = node.meta["val"]
    return replaced


def _average(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    spread, axes, keeps = [*node.args, False][:3]
    x = spread.args[0] if spread.target is aten.expand.default else spread
    if node.kwargs or not axes or not _spread_along(x.meta["val"].shape, spread.meta["val"].shape, axes):
        return None
    if keeps:
        return x
    replaced = graph.call_function(aten.squeeze.dims, (x, axes))
    replaced.meta["val"] = node.meta["val"]
    return replaced


def _spread_along(shape: Sequence[Any], spread: Sequence[Any], axes: Sequence[int]) -> bool:
    """Whether a value of one position along the axes becomes one of another shape by being spread along them alone."""
    if len(shape) != len(spread):
        return False
    along = {axis % len(shape) for axis in axes}
    return all(
        isinstance(one, int) and one == 1 if axis in along else one is other or one == other
        for axis, (one, other) in enumerate(zip(shape, spread, strict=True))
    )


_REWRITES: dict[Any, Rewrite] = {
    aten.div.Scalar: _divide,
    aten.mean.dim: _average,
}
