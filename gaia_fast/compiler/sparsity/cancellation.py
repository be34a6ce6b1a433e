"""Whether gradients that come back on several paths may cancel: each path has weights as factors, or it has not.

Two sums of products are opposite by accident alone if each has generic weights as factors that the other has not.
`x - relu(x)` has none, and its gradient is zero where x is positive.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from gaia_fast.compiler.ir.rewriting import same_shape
from gaia_fast.compiler.sparsity.result import Unproven
from gaia_fast.compiler.sparsity.transfer import name_of, rule_of
from gaia_fast.compiler.sparsity.transfer.shape import along_channels, channels_of
from gaia_fast.compiler.sparsity.weights import constant_weight, generic

aten = torch.ops.aten


@dataclass(frozen=True)
class Factor:
    """Generic weights that a gradient is multiplied by: those that read the channels [begin, end) of what they read.

    Weights of equal values are the same ones, whatever their names: a copy of a block cancels as the block itself does.

    Attributes:
        mixed: whether channels have a part in each other before the weights read them, so that all of these count.
    """

    weights: object
    begin: int = 0
    end: int = 2**31
    mixed: bool = False

    def overlaps(self, other: "Factor") -> bool:
        return self.weights == other.weights and self.begin < other.end and other.begin < self.end

    def of_channels(self, begin: int, end: int) -> "Factor":
        """The same, seen from some of the channels."""
        if self.mixed:
            return self
        return Factor(self.weights, self.begin + begin, min(self.begin + end, self.end))


Factors = Mapping[fx.Node, frozenset[Factor]]


def first_factors(graph: fx.Graph, logits: fx.Node) -> Factors:
    """Returns, for each node, the first generic weights on each path from the logits back to its result."""
    found: dict[fx.Node, frozenset[Factor]] = {}
    for node in reversed(graph.nodes):
        users = [user for user in node.users if not (user.op == "output" or _is_number(user) or _is_number(node))]
        paths = [_factors_through(user, node, found[user]) for user in users]
        found[node] = frozenset([Factor("logits")] if node is logits else ()).union(*paths)
    return found


def check_independent(node: fx.Node, users: Sequence[fx.Node], factors: Factors) -> None:
    """Raises Unproven where two of the gradients that a node gets from its users have a factor in common.

    Args:
        node: of a captured graph.
        users: those of its users through which a gradient comes back.
        factors: of `first_factors`.
    """
    seen: set[Factor] = set()
    for user in users if len(users) > 1 else ():  # telling weights apart reads them
        path = _factors_through(user, node, factors[user])
        if any(one.overlaps(other) for one in path for other in seen):
            raise Unproven(f"{name_of(user)} is on one of several paths with the same weights: gradients may cancel")
        seen |= path


def _factors_through(op: fx.Node, operand: fx.Node, upstream: frozenset[Factor]) -> frozenset[Factor]:
    """The first generic weights on the paths from the logits to an input of an operator, seen from the input."""
    weight = constant_weight(op, operand)
    if weight is not None and generic(weight):
        values = tuple(sorted(weight.shape)), float(weight.double().sum()), float(weight.abs().max())
        return frozenset([Factor(values)])
    if op.target is aten.cat.default and along_channels(op) and sum(each is operand for each in op.args[0]) == 1:
        return frozenset(each.of_channels(*channels_of(op, operand)) for each in upstream)
    if _keeps_channels(op, operand):
        return upstream
    return frozenset(Factor(each.weights, mixed=True) for each in upstream)


def _keeps_channels(op: fx.Node, operand: fx.Node) -> bool:
    """Whether each channel of an operator's result is made of that channel of the operand alone."""
    rule = rule_of(op)
    return rule is not None and (rule.pooling or (rule.elementwise and same_shape(operand, op)))


def _is_number(node: fx.Node) -> bool:
    """Whether a result is no tensor, as a number of images is: no gradient passes it."""
    return isinstance(node.meta.get("val"), (int, float, torch.SymInt, torch.SymFloat, torch.SymBool))
