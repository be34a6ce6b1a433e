"""Counts of active units in the kernel that writes the map.

A ReLU behind a convolution whose active units are counted is one kernel of this package, `relu_forward_count`: it reads
what the convolution gives, adds the bias and the residual, writes the map, and counts what it writes.

    relu(convolution(x, w, bias) + residual)    y, nonzero = relu_forward_count(convolution(x, w), shift=bias, residual)
    sum(y > 0)                                  nonzero

PyTorch's compiler adds bias and residual in a kernel of its own as well, which writes the map, and counts in one more,
which reads it: what is saved is one read of every map that is counted. While all of these lie in the cache that read
costs little, and all of them can be counted at the program's end: `are_beyond` says from when on not.

Rounding. The convolution's result is rounded to the map's dtype; bias and residual are added to that in float32, and
the sum is rounded once. cuDNN through PyTorch rounds the convolution, the sum with the bias and that with the residual
each; what PyTorch's compiler makes of the program rounds as this does. In half precision the maps then differ from a
convolution with the bias inside by the rounding of its result.

NaN. `relu_forward_count` counts it, a comparison with zero does not. No score comes of either: a NaN in a map that is
counted reaches the logits, through whatever its gradient comes from, and the result checks refuse the image.
"""

import operator
from collections.abc import Iterable
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from gaia_fast.backends import KERNEL_DTYPES
from gaia_fast.compiler.ir.constants import constant, constant_value
from gaia_fast.compiler.ir.counts import counts_of
from gaia_fast.compiler.ir.rewriting import CONVOLUTIONS, alike, calls, erase, only_user
from gaia_fast.ops import maps

aten = torch.ops.aten

# The share of the L2 cache that the maps of a batch may take up for their counts to be left to the program's end: the
# program's weights and the maps that are not counted pass through it as well. Not yet measured on a GPU.
_SHARE_OF_L2 = 0.5


def count_in_relus(
    module: fx.GraphModule, images: int | None = None, l2_bytes: int = 0, backend: str | None = None
) -> None:
    """Has the kernels that write maps count their active units, where the maps are beyond the cache.

    Args:
        module: the program.
        images: the number of images in a batch; None for any.
        l2_bytes: the size of the device's L2 cache; 0 to have all counted so.
        backend: of `relu_forward_count`; None for the fastest.
    """
    found = [node for node in module.graph.nodes if _counted(node) is not None]
    if images is not None and not are_beyond(l2_bytes, images, found):
        return
    for node in found:
        # Looked at anew: its residual may be another's map, which has another kernel now.
        if (each := _counted(node)) is not None:
            _count(module, each, backend)


def are_beyond(l2_bytes: int, images: int, counted: Iterable[fx.Node]) -> bool:
    """Whether maps of so many images do not all stay in the L2 cache until they are counted at the program's end."""
    values = [each.meta["val"] for each in counted]
    an_image = sum(prod(int(size) for size in value.shape[1:]) * value.dtype.itemsize for value in values)
    return images * an_image > _SHARE_OF_L2 * l2_bytes


class _Counted(NamedTuple):
    """A ReLU of a convolution, with what is added to that, and the counts of its active units."""

    relu: fx.Node
    convolution: fx.Node
    residual: fx.Node | None
    counts: list[fx.Node]


def _counted(node: fx.Node) -> _Counted | None:
    if not calls(node, aten.relu.default):
        return None
    value = node.meta["val"]
    if value.ndim != 4 or value.dtype not in KERNEL_DTYPES or prod(value.shape[2:]) > maps.MAX_POSITIONS:
        return None
    active = [user for user in node.users if calls(user, aten.gt.Scalar) and user.args[1] == 0]
    counts = [count for mask in active for count in counts_of(mask)]
    if not counts:
        return None
    x, residual = node.args[0], None
    if not _is_own(x) and calls(x, aten.add.Tensor) and only_user(x) is node and not x.kwargs:
        one, other = x.args
        if one is other or not alike(one, node) or not alike(other, node):
            return None
        x, residual = (one, other) if _is_own(one) else (other, one)
    return _Counted(node, x, residual, counts) if _is_own(x) and alike(x, node) else None


def _is_own(x: Any) -> bool:
    """Whether a node is a convolution that one node alone reads."""
    return isinstance(x, fx.Node) and x.target in CONVOLUTIONS and len(x.users) == 1


def _count(module: fx.GraphModule, found: _Counted, backend: str | None) -> None:
    graph = module.graph
    biases = []
    for each in (found.convolution, found.residual):
        if each is not None and _is_own(each) and (bias := _bias(each)) is not None:
            biases.append(bias.double())
            each.update_arg(2, None)
    with graph.inserting_before(found.relu):
        shift = None
        if biases:
            shift = constant(module, torch.stack(biases).sum(0).float())
        made = graph.call_function(
            torch.ops.gaia_fast.relu_forward_count.default,
            (found.convolution, None, shift, found.residual),
            {"backend": backend},
        )
        y, nonzero = (graph.call_function(operator.getitem, (made, index)) for index in range(2))
    for node, by in [*((count, nonzero) for count in found.counts), (found.relu, y)]:
        by.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(by)
        erase(graph, node)


def _bias(convolution: fx.Node) -> Tensor | None:
    """A convolution's bias, if it is a constant."""
    return constant_value(convolution.args[2]) if len(convolution.args) > 2 and not convolution.kwargs else None
