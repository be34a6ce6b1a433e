"""Transfer rules of operators that work entry by entry: copies, sums, activations, products."""

from math import inf

import torch
from torch import fx

from gaia_fast.compiler.ir.constants import constant_value
from gaia_fast.compiler.ir.marks import MARK
from gaia_fast.compiler.ir.rewriting import same_shape, same_size
from gaia_fast.compiler.sparsity.patterns import (
    ActiveUnits,
    AnyPosition,
    Dense,
    InInterval,
    Intersection,
    NonZero,
    Pattern,
)
from gaia_fast.compiler.sparsity.preconditions import AllGreaterThan
from gaia_fast.compiler.sparsity.result import Sparsity, Unproven
from gaia_fast.compiler.sparsity.transfer.registry import name_of, transfer_rule
from gaia_fast.compiler.sparsity.weights import smallest_factor

aten = torch.ops.aten


@transfer_rule(
    aten.neg.default,
    aten.clone.default,
    aten.alias.default,
    aten.contiguous.default,
    MARK,
    elementwise=True,
    zero_preserving=True,
)
def _identity(op: fx.Node, operand: fx.Node, upstream: Sparsity, thorough: bool) -> Sparsity:
    """The upstream pattern. Holds if nothing is broadcast."""
    if not same_shape(operand, op):
        raise Unproven(f"{name_of(op)} broadcasts its operand")
    return upstream


@transfer_rule(aten.add.Tensor, aten.sub.Tensor, elementwise=True, zero_preserving=True)
def _sum(op: fx.Node, operand: fx.Node, upstream: Sparsity, thorough: bool) -> Sparsity:
    """The upstream pattern. Holds if the operand is added once (x - x has no gradient), and not times zero."""
    alpha = op.kwargs.get("alpha", 1)
    if sum(each is operand for each in op.args) != 1 or not isinstance(alpha, (int, float)) or abs(alpha) <= 1e-9:
        raise Unproven(f"{name_of(op)} has one tensor as both operands, or a factor of zero")
    return _identity(op, operand, upstream, thorough)


@transfer_rule(aten.dropout.default, aten.feature_dropout.default, elementwise=True)
def _dropout(op: fx.Node, operand: fx.Node, upstream: Sparsity, thorough: bool) -> Sparsity:
    """The upstream pattern. Holds if it does nothing: which entries chance drops, no image tells."""
    if op.args[2]:
        raise Unproven(f"{name_of(op)} is in training mode")
    return upstream


@transfer_rule(aten.relu.default, aten.relu_.default, elementwise=True)
def _relu(op: fx.Node, operand: fx.Node, upstream: Sparsity, thorough: bool) -> Sparsity:
    """The upstream pattern at active units."""
    return _at(ActiveUnits(op), upstream)


@transfer_rule(aten.relu6.default, elementwise=True)
def _relu6(op: fx.Node, operand: fx.Node, upstream: Sparsity, thorough: bool) -> Sparsity:
    """The upstream pattern at active units, which are strictly between the bounds."""
    return _at(ActiveUnits(op, 0.0, 6.0), upstream)


@transfer_rule(aten.hardtanh.default, elementwise=True)
def _hardtanh(op: fx.Node, operand: fx.Node, upstream: Sparsity, thorough: bool) -> Sparsity:
    """As a ReLU6. Holds if the bounds are numbers."""
    low, high = [*op.args[1:], *(-1.0, 1.0)[len(op.args) - 1 :]][:2]
    return _at(ActiveUnits(op, float(low), float(high)), upstream)


@transfer_rule(aten.clamp.default, aten.clamp_min.default, elementwise=True)
def _clamp(op: fx.Node, operand: fx.Node, upstream: Sparsity, thorough: bool) -> Sparsity:
    """The upstream pattern where the input is within the bounds: its derivative is 1 at the bounds, too."""
    low, high = [*op.args[1:], None, None][:2]
    if not all(each is None or isinstance(each, (int, float)) for each in (low, high)):
        raise Unproven(f"{name_of(op)} has bounds that depend on the images")
    return _at(InInterval(operand, -inf if low is None else float(low), inf if high is None else float(high)), upstream)


@transfer_rule(aten.leaky_relu.default, elementwise=True)
def _leaky_relu(op: fx.Node, operand: fx.Node, upstream: Sparsity, thorough: bool) -> Sparsity:
    """The upstream pattern. Holds if its slope is not zero, where it is a ReLU."""
    slope = op.args[1] if len(op.args) > 1 else 0.01
    if slope == 0:
        return _at(ActiveUnits(op), upstream)
    if not isinstance(slope, (int, float)) or abs(slope) <= 1e-9:
        raise Unproven(f"{name_of(op)} has a slope that is nearly zero")
    return upstream


@transfer_rule(aten.sigmoid.default, elementwise=True)
def _sigmoid(op: fx.Node, operand: fx.Node, upstream: Sparsity, thorough: bool) -> Sparsity:
    """The upstream pattern where it is not saturated, 0 or 1 to rounding; no value may make a product underflow."""
    unsaturated = _at(ActiveUnits(op, 0.0, 1.0), upstream)
    not_tiny = AllGreaterThan(op, smallest_factor(op.meta["val"].dtype))
    return Sparsity(unsaturated.pattern, unsaturated.preconditions | {not_tiny})


@transfer_rule(aten.mul.Tensor, aten.div.Tensor, elementwise=True)
def _product(op: fx.Node, operand: fx.Node, upstream: Sparsity, thorough: bool) -> Sparsity:
    """Times a number, a constant, or another map, which is then a factor of the gradient.

    Holds if the number is not zero. Of products of two maps, one has to be a sigmoid, as in squeeze and excitation: the
    other map gets the upstream pattern, if no value of the sigmoid makes a product underflow; the sigmoid gets it where
    the other map is not zero. A broadcast operand gets the sum over what it was broadcast to.
    """
    others = [each for each in op.args[:2] if each is not operand]
    if len(others) != 1:
        raise Unproven(f"{name_of(op)} has one tensor as both operands")
    (other,) = others
    value = other if isinstance(other, (int, float)) else constant_value(other)
    if value is not None:
        if op.target is aten.div.Tensor and op.args[0] is not operand:
            raise Unproven(f"{name_of(op)} divides by a tensor that depends on the images")
        values = torch.as_tensor(value).double()
        if bool((values.abs() <= 1e-9).any()) or not bool(values.isfinite().all()):
            raise Unproven(f"{name_of(op)} has constant factors that are zero or not finite")
        return _identity(op, operand, upstream, thorough)
    if op.target is not aten.mul.Tensor:
        raise Unproven(f"{name_of(op)} divides by a tensor that depends on the images")
    if other.target is aten.sigmoid.default:
        not_tiny = AllGreaterThan(other, smallest_factor(other.meta["val"].dtype))
        return _identity(op, operand, Sparsity(upstream.pattern, upstream.preconditions | {not_tiny}), thorough)
    if operand.target is not aten.sigmoid.default:
        raise Unproven(f"{name_of(op)} multiplies two maps, neither of them a sigmoid")
    if not same_shape(other, op):
        raise Unproven(f"{name_of(op)} broadcasts both operands")
    product = _at(NonZero(other), upstream)
    if same_shape(operand, op):
        return product
    shape, full = operand.meta["val"].shape, op.meta["val"].shape
    if len(shape) != len(full):
        raise Unproven(f"{name_of(op)} broadcasts along new dimensions")
    axes = tuple(axis for axis in range(1, len(shape)) if not same_size(shape[axis], full[axis]))
    return Sparsity(AnyPosition(product.pattern, axes), product.preconditions)


def _at(entries: Pattern, upstream: Sparsity) -> Sparsity:
    """The upstream pattern at some entries alone."""
    if isinstance(upstream.pattern, Dense) or upstream.pattern == entries:
        return Sparsity(entries, upstream.preconditions)
    return Sparsity(Intersection(entries, upstream.pattern), upstream.preconditions)
