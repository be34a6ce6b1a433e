"""Derives the pattern of every inspected map, backwards through a captured graph."""

from collections.abc import Mapping

import torch
from torch import Tensor, fx

from gaia_fast.compiled.capture import MAP, logits_node, marks
from gaia_fast.compiled.sparsity.density import Density, Unknown
from gaia_fast.compiled.sparsity.patterns import Everywhere, OfClasses, Top1, Union
from gaia_fast.compiled.sparsity.rules import STOPS, Factor, factors_through, name_of, through


def analyse(graph: fx.Graph, thorough: bool = False) -> list[Density | str]:
    """Returns the density of every inspected map of a captured graph, or why there is none.

    Args:
        graph: as captured, constants and norms folded.
        thorough: whether conditions fail for as few images as possible, rather than take as little time as possible.
    """
    found: list[Density | str] = []
    images = next(node for node in graph.nodes if node.op == "placeholder").meta["val"]
    if images.dtype == torch.float16:  # its smallest number is 6e-8: gradients underflow, wherever they like
        return ["gradients underflow in float16"] * len(marks(graph, MAP))
    analysis = _Analysis(graph, thorough)
    for mark in marks(graph, MAP):
        try:
            density = analysis.behind(mark)
            if isinstance(density.pattern, OfClasses):
                raise Unknown("whether a gradient comes back at all hangs on the top-1 class")
            found.append(density)
        except Unknown as why:
            found.append(str(why))
    return found


class _Analysis:
    def __init__(self, graph: fx.Graph, thorough: bool) -> None:
        self._thorough = thorough
        self._result = logits_node(graph)
        self._factors = _factors(graph, self._result)
        self._known: dict[fx.Node, Density | Unknown] = {}
        for node in reversed(graph.nodes):  # readers first, so that no recursion is deep
            if isinstance(node.meta.get("val"), (Tensor, tuple, list)):
                try:
                    self._known[node] = self._derive(node)
                except Unknown as why:
                    self._known[node] = why

    def behind(self, node: fx.Node) -> Density:
        """The pattern of the gradient at a node's result."""
        found = self._known.get(node)
        if found is None:
            raise Unknown(f"{node} is no tensor")
        if isinstance(found, Unknown):
            raise found
        return found

    def _derive(self, node: fx.Node) -> Density:
        if node is self._result:
            value = node.meta["val"]
            if value.ndim != 2:
                raise Unknown("the result is no matrix of logits")
            return Density(Top1(node, 0, int(value.shape[1])))
        readers = [user for user in node.users if user.op != "output" and user.target not in STOPS]
        if not readers:
            raise Unknown("nothing reads it")
        self._check_independent(node, readers)
        found: list[Density] = []
        unknown: Unknown | None = None
        for user in readers:
            try:
                found.append(through(user, node, self.behind(user), self._thorough))
            except Unknown as why:
                unknown = why
        found = _joined(found)
        dense = [each for each in found if isinstance(each.pattern, Everywhere)]
        if dense:  # whatever else comes, sums of such gradients are not zero
            return min(dense, key=lambda each: len(each.conditions))
        if unknown is not None:
            raise unknown
        if len(found) > 1 and any(isinstance(each.pattern, OfClasses) for each in found):
            raise Unknown("which gradients come back hangs on the top-1 class")
        patterns = tuple(dict.fromkeys(each.pattern for each in found))
        conditions = frozenset().union(*(each.conditions for each in found))
        return Density(patterns[0] if len(patterns) == 1 else Union(patterns), conditions)

    def _check_independent(self, node: fx.Node, readers: list[fx.Node]) -> None:
        """Raises Unknown where the gradients that come back from several readers may cancel each other.

        Two sums of products are opposite by accident alone if each has weights as factors that the other has not: the
        first that each path meets are looked at. `x - relu(x)` has none, and is zero where x is positive.
        """
        met: set[Factor] = set()
        for user in readers if len(readers) > 1 else ():
            factors = factors_through(user, node, self._factors[user])
            if any(one.overlaps(other) for one in factors for other in met):
                raise Unknown(f"{name_of(user)} reads what is read elsewhere and meets it again: gradients may cancel")
            met |= factors


def _factors(graph: fx.Graph, result: fx.Node) -> Mapping[fx.Node, frozenset[Factor]]:
    """For each node, the general weights that the gradient at its result has as factors: the first on each path."""
    found: dict[fx.Node, frozenset[Factor]] = {}
    for node in reversed(graph.nodes):
        readers = [user for user in node.users if not (user.op == "output" or _is_number(user) or _is_number(node))]
        paths = [factors_through(user, node, found[user]) for user in readers]
        found[node] = frozenset([Factor("logits")] if node is result else ()).union(*paths)
    return found


def _is_number(node: fx.Node) -> bool:
    """Whether a result is no tensor, as a number of images is: no gradient passes it."""
    return isinstance(node.meta.get("val"), (int, float, torch.SymInt, torch.SymFloat, torch.SymBool))


def _joined(found: list[Density]) -> list[Density]:
    """The densities, where those of all classes, each some classes' alone, become one of every image."""
    parts = sorted(
        (each for each in found if isinstance(each.pattern, OfClasses)),
        key=lambda each: each.pattern.begin,  # type: ignore[attr-defined]
    )
    reached = 0
    for each in parts:
        pattern = each.pattern
        assert isinstance(pattern, OfClasses)
        if pattern.begin > reached:
            return found
        reached = max(reached, pattern.end)
        if reached == int(pattern.logits.meta["val"].shape[1]):
            others = [each for each in found if each not in parts]
            return [*others, Density(Everywhere(), frozenset().union(*(each.conditions for each in parts)))]
    return found
