"""Transfer rules of operators whose gradients are sums of products: convolutions, linear operators, group norm.

All take for granted that a sum of products of *generic* weights is not zero: trained or random ones are generic,
hand-made filters, whose values repeat, are not (`weights.generic`).
"""

from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from gaia_fast.compiler.ir.constants import constant_value
from gaia_fast.compiler.ir.rewriting import CONVOLUTIONS, pair
from gaia_fast.compiler.ir.windows import Geometry
from gaia_fast.compiler.sparsity.patterns import (
    ActiveUnits,
    ChannelSlice,
    Dense,
    ExcludeChannels,
    ImagesOfClasses,
    Pattern,
    ReceptiveField,
    Top1Row,
    Union,
)
from gaia_fast.compiler.sparsity.preconditions import EqualPatterns, EveryGroupNonZero, EveryWindowNonZero, Top1NotIn
from gaia_fast.compiler.sparsity.result import Sparsity, Unproven
from gaia_fast.compiler.sparsity.transfer.registry import name_of, transfer_rule
from gaia_fast.compiler.sparsity.weights import MATRIX_PRODUCTS, constant_weight, generic, underflowing

aten = torch.ops.aten


@transfer_rule(*CONVOLUTIONS)
def _convolution(op: fx.Node, operand: fx.Node, upstream: Sparsity, thorough: bool) -> Sparsity:
    """Dense, if each window that reads a position has a non-zero channel; else the receptive field of the windows.

    Holds if weights are constants, generic and not zero: output channels with a weight of zero prove nothing. For the
    row of the logits, if no weight of the top-1 class is zero.
    """
    weight = constant_weight(op, operand)
    if weight is None:
        raise Unproven(f"{name_of(op)} has weights that depend on the images")
    geometry = _geometry(op, operand, weight)
    if not generic(weight):
        raise Unproven(f"{name_of(op)} has weights that repeat: sums of products may cancel")
    covered = geometry.covers()
    zero = underflowing(weight)
    with_zeros = zero.flatten(1).any(1)
    if isinstance(upstream.pattern, Top1Row):
        if geometry.groups != 1 or not covered:
            raise Unproven(f"{name_of(op)} makes the logits, and has groups or skips positions")
        return _from_logits(op, upstream, with_zeros)
    if geometry.groups == 1 and covered:
        if isinstance(upstream.pattern, Dense) and not zero.all(0).any():
            return upstream
        if not isinstance(upstream.pattern, Dense):
            witness = _witness(upstream.pattern, with_zeros)
            if witness is not None:
                precondition = EveryWindowNonZero(witness, geometry, thorough)
                return Sparsity(Dense(), upstream.preconditions | {precondition})
    if geometry.groups == 1 and bool(with_zeros.all()):
        raise Unproven(f"{name_of(op)} has weights that are exactly zero")
    unusable = tuple(with_zeros.nonzero().flatten().tolist())
    if isinstance(upstream.pattern, Dense):
        if not covered:
            raise Unproven(f"{name_of(op)} skips input positions")
        if unusable:
            raise Unproven(f"{name_of(op)} has weights that are exactly zero")
        return upstream
    field = ReceptiveField(upstream.pattern, geometry)
    if not unusable:
        return Sparsity(field, upstream.preconditions)
    without = ReceptiveField(ExcludeChannels(upstream.pattern, unusable), geometry)
    return Sparsity(field, upstream.preconditions | {EqualPatterns(field, without)})


@transfer_rule(*MATRIX_PRODUCTS)
def _linear(op: fx.Node, operand: fx.Node, upstream: Sparsity, thorough: bool) -> Sparsity:
    """As a convolution of one window. Holds if there is one vector an image, or the upstream gradient is dense."""
    weight = constant_weight(op, operand)
    if weight is None or op.kwargs:
        raise Unproven(f"{name_of(op)} has weights that depend on the images")
    if not generic(weight):
        raise Unproven(f"{name_of(op)} has weights that repeat: sums of products may cancel")
    zero = underflowing(weight)
    if isinstance(upstream.pattern, Dense):
        if bool(zero.all(0).any()):
            raise Unproven(f"{name_of(op)} has inputs whose weights are all exactly zero")
        return upstream
    if operand.meta["val"].ndim != 2:
        raise Unproven(f"{name_of(op)} has several vectors an image and a sparse upstream gradient")
    if isinstance(upstream.pattern, Top1Row):
        return _from_logits(op, upstream, zero.any(1))
    witness = _witness(upstream.pattern, zero.any(1))
    if witness is None:
        raise Unproven(f"{name_of(op)} has weights that are exactly zero")
    return Sparsity(Dense(), upstream.preconditions | {EveryGroupNonZero(witness, 1)})


@transfer_rule(aten.group_norm.default)
def _group_norm(op: fx.Node, operand: fx.Node, upstream: Sparsity, thorough: bool) -> Sparsity:
    """Dense: each entry's gradient has a part of every other's of its group, through their mean and variance.

    Holds for images of which each group has a non-zero entry, in a channel whose scale is not zero; and if a group has
    more than two entries (normalised, two are 1 and -1 whatever they were), and, where the upstream gradient is dense,
    more than one channel (a gradient that is the same at all positions is taken out with the mean).
    """
    factors = op.args[2] if len(op.args) > 2 else None
    value, groups = operand.meta["val"], int(op.args[1])
    gamma = constant_value(factors)
    if op.args[0] is not operand or (factors is not None and gamma is None):
        raise Unproven(f"{name_of(op)} has scales that depend on the images")
    channels = int(value.shape[1]) // groups
    if channels * prod(int(size) for size in value.shape[2:]) <= 2:
        raise Unproven(f"{name_of(op)} has groups of one or two entries")
    zero = torch.zeros(int(value.shape[1]), dtype=torch.bool) if gamma is None else underflowing(gamma)
    if isinstance(upstream.pattern, Dense):
        if channels == 1 or bool(zero.reshape(groups, -1).all(1).any()):
            raise Unproven(f"{name_of(op)} has a group of one channel, or of scales that are all zero")
        return upstream
    unusable = tuple(zero.nonzero().flatten().tolist())
    pattern = ExcludeChannels(upstream.pattern, unusable) if unusable else upstream.pattern
    return Sparsity(Dense(), upstream.preconditions | {EveryGroupNonZero(pattern, groups)})


def _from_logits(op: fx.Node, upstream: Sparsity, zero: Tensor) -> Sparsity:
    """What the weights of the top-1 class make of its row: dense, where none of them (K,) is zero.

    Of a part of the rows, for the images whose class is among them: `analyse` joins the parts.
    """
    rows = upstream.pattern
    assert isinstance(rows, Top1Row)
    classes = tuple((zero.nonzero().flatten() + rows.begin).tolist())
    if len(classes) == rows.end - rows.begin:
        raise Unproven(f"{name_of(op)} has weights that are exactly zero for every class")
    preconditions = upstream.preconditions | ({Top1NotIn(rows.logits, classes)} if classes else set())
    pattern = Dense() if rows.has_all_classes else ImagesOfClasses(rows.logits, rows.begin, rows.end)
    return Sparsity(pattern, preconditions)


def _witness(pattern: Pattern, unusable: Tensor) -> Pattern | None:
    """A part of a pattern that suffices to prove that something is non-zero, and is cheaper to compute.

    `unusable` are the channels with weights of exactly zero: the longest run of others is taken; None if none is left.
    """
    while isinstance(pattern, Union):
        pattern = next((each for each in pattern.of if isinstance(each, ActiveUnits)), pattern.of[0])
    if not bool(unusable.any()):
        return pattern
    runs, begin = [], 0
    for index in [*unusable.nonzero().flatten().tolist(), len(unusable)]:
        runs.append((index - begin, begin))
        begin = index + 1
    length, begin = max(runs)
    return ChannelSlice(pattern, begin, begin + length) if length else None


def _geometry(op: fx.Node, operand: fx.Node, weight: Tensor) -> Geometry:
    if weight.ndim != 4 or not isinstance(op.meta["val"], Tensor):
        raise Unproven(f"{name_of(op)} is not two-dimensional")
    defaults: list[Any] = [None, None, None, [1, 1], [0, 0], [1, 1], 1]
    if op.target is aten.convolution.default:
        _, _, _, stride, padding, dilation, transposed, _, groups = op.args
        if transposed:
            raise Unproven(f"{name_of(op)} is transposed")
    else:
        given = list(op.args)
        stride, padding, dilation, groups = (given + defaults[len(given) :])[3:]
    value, result = operand.meta["val"].shape, op.meta["val"].shape
    return Geometry(
        pair(weight.shape[2:]),
        pair(stride),
        pair(padding),
        pair(dilation),
        int(groups),
        int(value[1]),
        (int(value[2]), int(value[3])),
        (int(result[2]), int(result[3])),
    )
