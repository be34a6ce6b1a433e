"""What the analysis asks of weights: constant, generic, and not zero."""

import torch
from torch import Tensor, fx

from gaia_fast.compiler.ir.constants import constant_value
from gaia_fast.compiler.ir.rewriting import CONVOLUTIONS

aten = torch.ops.aten

MATRIX_PRODUCTS = (aten.linear.default, aten.addmm.default, aten.mm.default)
_SAMPLED = 4096


def constant_weight(op: fx.Node, operand: fx.Node) -> Tensor | None:
    """The constant weight (outputs, ...) by which a convolution or linear operator multiplies a node; else None."""
    if op.target in CONVOLUTIONS:
        return constant_value(op.args[1]) if op.args[0] is operand else None
    if op.target not in MATRIX_PRODUCTS:
        return None
    index, at = (1, 2) if op.target is aten.addmm.default else (0, 1)
    weight = constant_value(op.args[at]) if op.args[index] is operand else None
    # (outputs, inputs), as the linear operator has it and the products have not.
    return weight if weight is None or op.target is aten.linear.default else weight.t()


def generic(weight: Tensor) -> bool:
    """Whether weights are such as training leaves them: a sum of products with them is zero by accident alone.

    Hand-made filters have few values, again and again, and sums of products with those may be zero for some images and
    not for others: a blurred map subtracted from itself, a Laplacian of a constant.
    """
    values = weight.detach().flatten()[:_SAMPLED].abs()
    values = values[values != 0]
    return values.numel() > 0 and 2 * values.unique().numel() > min(values.numel(), 512)


def underflowing(weight: Tensor) -> Tensor:
    """Which weights are zero, or so small that a product with them may be: bools of the same shape."""
    return weight.abs() <= smallest_factor(weight.dtype)


def smallest_factor(dtype: torch.dtype) -> float:
    """The square root of the smallest normal number: products of larger ones do not underflow."""
    return float(torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).tiny) ** 0.5
