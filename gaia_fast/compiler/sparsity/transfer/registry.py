"""The transfer rules, one an operator: from the sparsity of the gradient at its output to that at one of its inputs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from gaia_fast.compiler.ir.rewriting import same_size
from gaia_fast.compiler.sparsity.patterns import ImagesOfClasses
from gaia_fast.compiler.sparsity.result import Sparsity, Unproven

aten = torch.ops.aten

# (op, operand, upstream, thorough): a node of a captured graph, one of its inputs, the sparsity of the gradient at the
# node's output, and `thorough` as in `analyse`. Returns that of the gradient at the input, or raises Unproven.
Function = Callable[[fx.Node, fx.Node, Sparsity, bool], Sparsity]

# Users through which no gradient comes back.
NO_GRADIENT = {
    aten.sym_size.int,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.detach.default,
    aten.detach_.default,
}

_ZERO_ON_AN_INTERVAL = {"hardswish", "hardsigmoid", "softshrink", "hardshrink", "threshold"}
_ZERO_AT_A_POINT = {"silu", "gelu", "mish"}
_SATURATING = {"tanh", "elu", "celu", "selu", "softplus", "log_sigmoid"}


@dataclass(frozen=True)
class TransferRule:
    """How one operator transforms sparsity.

    Attributes:
        function: the rule itself.
        elementwise: whether each entry of the output is made of that entry of an operand of the same shape.
        pooling: whether each channel of the output is made of that channel of the operand.
        zero_preserving: whether it also holds for images whose upstream gradient is zero everywhere, and gives zero
            then: such a rule takes `ImagesOfClasses`.
    """

    function: Function
    elementwise: bool = False
    pooling: bool = False
    zero_preserving: bool = False


_RULES: dict[Any, TransferRule] = {}


def transfer_rule(
    *targets: Any, elementwise: bool = False, pooling: bool = False, zero_preserving: bool = False
) -> Callable[[Function], Function]:
    """Registers a function as the rule of some operators; see `TransferRule`."""

    def register(function: Function) -> Function:
        for target in targets:
            assert target not in _RULES, f"{target} has two transfer rules"
            _RULES[target] = TransferRule(function, elementwise, pooling, zero_preserving)
        return function

    return register


def rule_of(op: fx.Node) -> TransferRule | None:
    """Returns the rule of an operator; None where it has none."""
    return _RULES.get(op.target)


def transfer(op: fx.Node, operand: fx.Node, upstream: Sparsity, thorough: bool) -> Sparsity:
    """Returns the sparsity of the gradient that an operator passes to one of its inputs.

    Args:
        op, operand: a node of a captured graph, and one of its inputs.
        upstream: the sparsity of the gradient at the output of `op`.
        thorough: as in `analyse`.

    Raises:
        Unproven: no rule says what it is.
    """
    rule = rule_of(op)
    if rule is None:
        raise Unproven(no_rule_for(op))
    value, result = operand.meta["val"], op.meta["val"]
    # Patterns and preconditions are of one image each: they say nothing of operators that mix images.
    if isinstance(value, Tensor) and isinstance(result, Tensor) and not _same_images(value, result):
        raise Unproven(f"{name_of(op)} changes the batch dimension")
    if isinstance(upstream.pattern, ImagesOfClasses) and not rule.zero_preserving:
        raise Unproven("whether the gradient is zero everywhere depends on the top-1 class")
    return rule.function(op, operand, upstream, thorough)


def no_rule_for(op: fx.Node) -> str:
    """Why an operator has no rule, as plans say it."""
    name = name_of(op)
    base = name.partition(".")[0].rstrip("_")
    if base in _ZERO_ON_AN_INTERVAL:
        return f"the derivative of {base} can be zero on an interval"
    if base in _ZERO_AT_A_POINT:
        return f"the derivative of {base} has a zero, and rounds to zero for large negative inputs"
    if base in _SATURATING:
        return f"the derivative of {base} rounds to zero where it saturates"
    return f"there is no transfer rule for {name}"


def name_of(op: fx.Node) -> str:
    """An operator's name for messages."""
    return str(op.target).removeprefix("aten.")


def _same_images(value: Tensor, result: Tensor) -> bool:
    return value.ndim > 0 and result.ndim > 0 and same_size(value.shape[0], result.shape[0])
