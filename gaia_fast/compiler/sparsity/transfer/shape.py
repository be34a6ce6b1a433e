"""Transfer rules of operators that only move entries: concatenations, padding, views, permutations."""

from dataclasses import replace
from math import prod

import torch
from torch import fx

from gaia_fast.compiler.ir.rewriting import same_size
from gaia_fast.compiler.sparsity.patterns import (
    ChannelSlice,
    Cropped,
    Dense,
    ImagesOfClasses,
    ReceptiveField,
    Reshaped,
    Top1Row,
)
from gaia_fast.compiler.sparsity.result import Sparsity, Unproven
from gaia_fast.compiler.sparsity.transfer.registry import name_of, transfer_rule

aten = torch.ops.aten


@transfer_rule(aten.cat.default)
def _concatenation(op: fx.Node, operand: fx.Node, upstream: Sparsity, thorough: bool) -> Sparsity:
    """The operand's channels of the upstream pattern. Holds along the channels, or for a dense upstream gradient."""
    if sum(each is operand for each in op.args[0]) != 1:
        raise Unproven(f"{name_of(op)} has one tensor as two operands")
    if isinstance(upstream.pattern, Dense):
        return upstream
    if not along_channels(op):
        raise Unproven(f"{name_of(op)} is not along the channels, and its upstream gradient is sparse")
    begin, end = channels_of(op, operand)
    rows = upstream.pattern
    if isinstance(rows, Top1Row):
        rows = Top1Row(rows.logits, rows.begin + begin, rows.begin + end, rows.positions)
        return Sparsity(rows, upstream.preconditions)
    return Sparsity(ChannelSlice(upstream.pattern, begin, end), upstream.preconditions)


@transfer_rule(aten.constant_pad_nd.default, aten.pad.default)
def _padding(op: fx.Node, operand: fx.Node, upstream: Sparsity, thorough: bool) -> Sparsity:
    """The upstream pattern without the border. Holds where constants are put around the last two axes, or nothing."""
    if op.kwargs or (op.target is aten.pad.default and list(op.args[2:3]) not in ([], ["constant"])):
        raise Unproven(f"{name_of(op)} repeats entries")
    widths = op.args[1]
    if len(widths) > 4 or len(widths) % 2 or operand.meta["val"].ndim != 4 or min(widths, default=0) < 0:
        raise Unproven(f"{name_of(op)} is not around a map's two axes")
    left, right, top, bottom = [*widths, 0, 0, 0, 0][:4]
    pattern = upstream.pattern
    if isinstance(pattern, Dense):
        return upstream
    if isinstance(pattern, Top1Row):
        return row_at_all_positions(operand, upstream) or upstream
    if isinstance(pattern, ReceptiveField):  # of windows that reach beyond the map, then
        geometry = pattern.geometry
        above, before = geometry.padding
        height, width = operand.meta["val"].shape[2:]
        cropped = replace(geometry, padding=(above + top, before + left), size=(int(height), int(width)))
        return Sparsity(ReceptiveField(pattern.of, cropped), upstream.preconditions)
    return Sparsity(Cropped(pattern, (top, left, bottom, right)), upstream.preconditions)


@transfer_rule(
    aten.view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten._unsafe_view.default,
    aten.permute.default,
    aten.transpose.int,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    zero_preserving=True,
)
def _reshape(op: fx.Node, operand: fx.Node, upstream: Sparsity, thorough: bool) -> Sparsity:
    """Dense if the upstream gradient is; any pattern if axes of size 1 after the channels are added or dropped."""
    if isinstance(upstream.pattern, (Dense, ImagesOfClasses)):
        return upstream
    before, after = (tuple(int(size) for size in each.meta["val"].shape[1:]) for each in (operand, op))
    if not before or not after or before[0] != after[0] or prod(before[1:]) != 1 or prod(after[1:]) != 1:
        return _permutation(op, operand, upstream, thorough)
    row = row_at_all_positions(operand, upstream)
    return row or Sparsity(Reshaped(upstream.pattern, before), upstream.preconditions)


@transfer_rule(aten.select.int)
def _select(op: fx.Node, operand: fx.Node, upstream: Sparsity, thorough: bool) -> Sparsity:
    """As a reshaping. Holds if the axis has one entry, and is not that of the images."""
    axis = op.args[1] % operand.meta["val"].ndim
    if axis == 0 or not same_size(operand.meta["val"].shape[axis], 1):
        raise Unproven(f"{name_of(op)} leaves entries out")
    return _reshape(op, operand, upstream, thorough)


@transfer_rule(aten.channel_shuffle.default)
def _permutation(op: fx.Node, operand: fx.Node, upstream: Sparsity, thorough: bool) -> Sparsity:
    """Dense if the upstream gradient is."""
    if isinstance(upstream.pattern, Dense):
        return upstream
    raise Unproven(f"{name_of(op)} rearranges a sparse upstream gradient")


def along_channels(concatenation: fx.Node) -> bool:
    """Whether tensors are concatenated along their channels."""
    axis = concatenation.args[1] if len(concatenation.args) > 1 else 0
    return axis in (1, 1 - concatenation.meta["val"].ndim)


def channels_of(concatenation: fx.Node, operand: fx.Node) -> tuple[int, int]:
    """The channels [begin, end) that an operand becomes."""
    begin = 0
    for each in concatenation.args[0]:
        if each is operand:
            break
        begin += int(each.meta["val"].shape[1])
    return begin, begin + int(operand.meta["val"].shape[1])


def row_at_all_positions(operand: fx.Node, upstream: Sparsity) -> Sparsity | None:
    """The row of the top-1 class at all positions of a node; None of any other pattern."""
    rows = upstream.pattern
    if not isinstance(rows, Top1Row):
        return None
    positions = tuple(int(size) for size in operand.meta["val"].shape[2:])
    return Sparsity(Top1Row(rows.logits, rows.begin, rows.end, positions), upstream.preconditions)
