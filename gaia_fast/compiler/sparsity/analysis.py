"""The sparsity of the gradient at every inspected map: a dataflow analysis, backwards through a captured graph."""

import torch
from torch import Tensor, fx

from gaia_fast.compiler.frontend.capture import logits_node
from gaia_fast.compiler.ir.marks import MAP, marks
from gaia_fast.compiler.sparsity.cancellation import check_independent, first_factors
from gaia_fast.compiler.sparsity.patterns import Dense, ImagesOfClasses, Top1Row, Union
from gaia_fast.compiler.sparsity.result import Sparsity, Unproven
from gaia_fast.compiler.sparsity.transfer import NO_GRADIENT, transfer


def analyse(graph: fx.Graph, thorough: bool = False) -> list[Sparsity | str]:
    """Returns the sparsity of the top-1 logit's gradient at every inspected map, or why none is proven.

    Args:
        graph: as captured, constants and norms folded.
        thorough: whether preconditions fail for as few images as possible, rather than take as little time as possible.
    """
    found: list[Sparsity | str] = []
    images = next(node for node in graph.nodes if node.op == "placeholder").meta["val"]
    if images.dtype == torch.float16:  # its smallest number is 6e-8: gradients underflow, wherever they like
        return ["gradients underflow in float16"] * len(marks(graph, MAP))
    analysis = _Analysis(graph, thorough)
    for mark in marks(graph, MAP):
        try:
            sparsity = analysis.of(mark)
            if isinstance(sparsity.pattern, ImagesOfClasses):
                raise Unproven("whether the gradient is zero everywhere depends on the top-1 class")
            found.append(sparsity)
        except Unproven as why:
            found.append(str(why))
    return found


class _Analysis:
    def __init__(self, graph: fx.Graph, thorough: bool) -> None:
        self._thorough = thorough
        self._logits = logits_node(graph)
        self._factors = first_factors(graph, self._logits)
        self._known: dict[fx.Node, Sparsity | Unproven] = {}
        for node in reversed(graph.nodes):  # users first, so that no recursion is deep
            if isinstance(node.meta.get("val"), (Tensor, tuple, list)):
                try:
                    self._known[node] = self._derive(node)
                except Unproven as why:
                    self._known[node] = why

    def of(self, node: fx.Node) -> Sparsity:
        """The sparsity of the gradient at a node's output."""
        found = self._known.get(node)
        if found is None:
            raise Unproven(f"{node} is no tensor")
        if isinstance(found, Unproven):
            raise found
        return found

    def _derive(self, node: fx.Node) -> Sparsity:
        if node is self._logits:
            value = node.meta["val"]
            if value.ndim != 2:
                raise Unproven("the model's output is no matrix of logits")
            return Sparsity(Top1Row(node, 0, int(value.shape[1])))
        users = [user for user in node.users if user.op != "output" and user.target not in NO_GRADIENT]
        if not users:
            raise Unproven("no gradient comes back")
        check_independent(node, users, self._factors)
        found: list[Sparsity] = []
        unproven: Unproven | None = None
        for user in users:
            try:
                found.append(transfer(user, node, self.of(user), self._thorough))
            except Unproven as why:
                unproven = why
        return _joined(_with_all_classes(found), unproven)


def _joined(found: list[Sparsity], unproven: Unproven | None) -> Sparsity:
    """The sparsity of a sum of gradients that do not cancel: dense if one of them is, else the union."""
    dense = [each for each in found if isinstance(each.pattern, Dense)]
    if dense:
        return min(dense, key=lambda each: len(each.preconditions))
    if unproven is not None:
        raise unproven
    if len(found) > 1 and any(isinstance(each.pattern, ImagesOfClasses) for each in found):
        raise Unproven("which paths have a gradient depends on the top-1 class")
    patterns = tuple(dict.fromkeys(each.pattern for each in found))
    preconditions = frozenset().union(*(each.preconditions for each in found))
    return Sparsity(patterns[0] if len(patterns) == 1 else Union(patterns), preconditions)


def _with_all_classes(found: list[Sparsity]) -> list[Sparsity]:
    """The same, with one dense gradient for those of the images of some classes each, if these are all classes."""
    parts = sorted(
        (each for each in found if isinstance(each.pattern, ImagesOfClasses)),
        key=lambda each: each.pattern.begin,  # type: ignore[attr-defined]
    )
    reached = 0
    for each in parts:
        pattern = each.pattern
        assert isinstance(pattern, ImagesOfClasses)
        if pattern.begin > reached:
            return found
        reached = max(reached, pattern.end)
        if reached == int(pattern.logits.meta["val"].shape[1]):
            others = [each for each in found if each not in parts]
            return [*others, Sparsity(Dense(), frozenset().union(*(each.preconditions for each in parts)))]
    return found
