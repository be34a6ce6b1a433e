"""Transfer rules of poolings and means over space."""

import operator

import torch
from torch import fx

from gaia_fast.compiler.ir.rewriting import pair
from gaia_fast.compiler.ir.windows import Geometry
from gaia_fast.compiler.sparsity.patterns import Dense, ImagesOfClasses, MaxPoolArgmax, ReceptiveField, Top1Row
from gaia_fast.compiler.sparsity.result import Sparsity, Unproven
from gaia_fast.compiler.sparsity.transfer.registry import name_of, no_rule_for, transfer_rule
from gaia_fast.compiler.sparsity.transfer.shape import row_at_all_positions

aten = torch.ops.aten


@transfer_rule(aten.max_pool2d_with_indices.default, pooling=True)
def _max_pool(op: fx.Node, operand: fx.Node, upstream: Sparsity, thorough: bool) -> Sparsity:
    """The positions of the maxima, of those windows whose gradient is not zero."""
    return Sparsity(MaxPoolArgmax(op, upstream.pattern), upstream.preconditions)


@transfer_rule(operator.getitem, pooling=True)
def _first_result(op: fx.Node, operand: fx.Node, upstream: Sparsity, thorough: bool) -> Sparsity:
    """The upstream pattern. Holds for the maxima of a max-pooling, which also returns indices."""
    if op.args[1] != 0 or operand.target is not aten.max_pool2d_with_indices.default:
        raise Unproven(no_rule_for(operand))
    return upstream


@transfer_rule(aten.mean.dim, aten.adaptive_avg_pool2d.default, zero_preserving=True)
def _mean(op: fx.Node, operand: fx.Node, upstream: Sparsity, thorough: bool) -> Sparsity:
    """Dense if the upstream gradient is; of the logits, the row at all positions. Holds if all positions count."""
    if isinstance(upstream.pattern, (Dense, ImagesOfClasses)):
        return upstream
    if op.target is aten.mean.dim and not all(axis % operand.meta["val"].ndim > 1 for axis in op.args[1]):
        raise Unproven(f"{name_of(op)} is over channels, and its upstream gradient is sparse")
    row = row_at_all_positions(operand, upstream)
    if row is None:
        raise Unproven(f"{name_of(op)} has a sparse upstream gradient")
    return row


@transfer_rule(aten.avg_pool2d.default, pooling=True)
def _avg_pool(op: fx.Node, operand: fx.Node, upstream: Sparsity, thorough: bool) -> Sparsity:
    """The receptive field, as of a depthwise convolution. Holds where windows read every position."""
    value, result = operand.meta["val"].shape, op.meta["val"].shape
    kernel = pair(op.args[1])
    stride = pair(op.args[2]) if len(op.args) > 2 and op.args[2] else kernel
    padding = pair(op.args[3]) if len(op.args) > 3 else (0, 0)
    channels, size, out = int(value[1]), pair(value[2:]), pair(result[2:])
    geometry = Geometry(kernel, stride, padding, (1, 1), channels, channels, size, out)
    if isinstance(upstream.pattern, (Dense, Top1Row)):
        if not geometry.covers():
            raise Unproven(f"{name_of(op)} skips input positions")
        return row_at_all_positions(operand, upstream) or upstream
    return Sparsity(ReceptiveField(upstream.pattern, geometry), upstream.preconditions)
