"""The end of a program by this package's own kernels, instead of one operator for each of its steps: sums side by side,
the score, and whether it means something."""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from gaia_fast.compiler.ir.constants import constant_value
from gaia_fast.compiler.ir.results import LOGITS, PRECONDITIONS, ResultNames
from gaia_fast.compiler.ir.rewriting import alike, call_kernel, calls, only_user, result_of
from gaia_fast.compiler.native.kernels import Kernel
from gaia_fast.compiler.native.result_kernels import Columns, FiniteCheck, ResultCheck, Score

aten = torch.ops.aten

# What puts results side by side, and the number of axes that these have.
_SIDE_BY_SIDE = {aten.cat.default: 2, aten.stack.default: 1}


def use_score_kernels(module: fx.GraphModule) -> None:
    """Has `Columns` put sums and answers side by side, and `Score` compute the norm of the sums."""
    graph = module.graph
    for node in list(graph.nodes):
        if node.target in _SIDE_BY_SIDE:
            _use_columns(graph, node)
        elif node.target is aten.linalg_vector_norm.default:
            _use_score(graph, node)


def check_results(module: fx.GraphModule, outputs: Sequence[str], results: Sequence[ResultNames]) -> fx.GraphModule:
    """Returns a program with one output more: (N,), positive where an image, and what was found for it, mean something.

    Args:
        outputs, results: the names of what it gives; see `Program`.
    """
    graph = fx.Graph()
    copied = graph.graph_copy(module.graph, {})
    found = dict(zip(outputs, copied, strict=True))
    checked = fx.GraphModule(module, graph)
    logits = found[LOGITS].meta["val"]
    answers = logits.new_empty(logits.shape[:1], dtype=torch.float32)
    images = next(node for node in graph.nodes if node.op == "placeholder")
    with graph.inserting_after(images):  # first of its wave: while other threads wake up
        made = call_kernel(graph, FiniteCheck(), (images,))
    with graph.inserting_after(made):
        finite = result_of(graph, made, 0, answers)
    preconditions = found.get(PRECONDITIONS)
    # One check after the other, each with the answers of the one before. Without a score, they stand for one.
    for score, component in [(found[each.score], each.component) for each in results] or [(finite, None)]:
        read = (found[LOGITS], score, preconditions, None if component is None else found[component])
        given = [_in_float32(graph, each) for each in read]
        finite = result_of(graph, call_kernel(graph, ResultCheck(), (*given, finite)), 0, answers)
        preconditions = None  # one look is enough
    graph.output((*copied, finite))
    return checked


def _in_float32(graph: fx.Graph, node: fx.Node | None) -> fx.Node | None:
    """A result as kernels read it: a model may give logits of another dtype than it computes in."""
    if node is None or node.meta["val"].dtype == torch.float32:
        return node
    widened = graph.call_function(aten._to_copy.default, (node,), {"dtype": torch.float32})
    widened.meta["val"] = node.meta["val"].to(torch.float32)
    return widened


def _use_columns(graph: fx.Graph, node: fx.Node) -> None:
    if list(node.args[1:]) not in ([1], [-1]) or node.kwargs:
        return
    axes = _SIDE_BY_SIDE[node.target]
    rows = [_row(each) for each in node.args[0]]
    inputs = tuple(each for each, row in zip(node.args[0], rows, strict=True) if row is None)
    if not inputs or not all(_is_kernels(each) and each.meta["val"].ndim == axes for each in inputs):
        return
    if any(each.meta["val"].dtype != torch.float32 for each in inputs):
        return
    with graph.inserting_before(node):
        found = result_of(graph, call_kernel(graph, Columns(rows), inputs), 0, node.meta["val"])
    node.replace_all_uses_with(found)


def _use_score(graph: fx.Graph, node: fx.Node) -> None:
    scaled = node.args[0]
    if list(node.args[1:]) != [2, [1]] or node.kwargs or not calls(scaled, aten.mul.Tensor):
        return
    packed, areas = scaled.args[0], constant_value(scaled.args[1])
    value = packed.meta["val"]
    if areas is None or value.ndim != 2 or value.dtype != torch.float32 or areas.shape != value.shape[1:]:
        return
    last, component = node, None
    user = only_user(node)
    if user is not None and user.target is aten.div.Tensor and user.args[0] is node and alike(user.args[1], node):
        last, component = user, user.args[1]
    with graph.inserting_before(last):
        score = call_kernel(graph, Score(areas.tolist()), (packed, component))
        found = result_of(graph, score, 0, last.meta["val"])
    last.replace_all_uses_with(found)


def _is_kernels(node: Any) -> bool:
    """Whether a node is a result of a kernel."""
    if not calls(node, operator.getitem) or node.args[0].op != "call_module":
        return False
    return isinstance(node.graph.owning_module.get_submodule(str(node.args[0].target)), Kernel)


def _row(node: fx.Node) -> Tensor | None:
    """What a node gives for each image, where that is the same: a vector."""
    if node.target is not aten.expand.default or len(node.args[1]) != 2:
        return None
    value = constant_value(node.args[0])
    if (
        value is None
        or value.dtype != torch.float32
        or value.shape[-1] != node.args[1][1]
        or value[..., :1].numel() != 1
    ):
        return None
    return value.flatten()
