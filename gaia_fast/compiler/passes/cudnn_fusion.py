"""Convolutions that take up their bias, a residual and the ReLU behind them: one launch of cuDNN's for three or four.

cuDNN's fused operators differ from those that they stand for beyond rounding: they are told not to propagate NaN, which
then becomes zero, and cut infinity to the largest float32. Who uses them looks at what they do
(`gaia_fast.compiler.runtimes.fusion_checks`), and where need be has `guard_overflow` find the images for which it
matters.
"""

import operator
from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from gaia_fast.compiler.ir.constants import constant, constant_value
from gaia_fast.compiler.ir.rewriting import alike, calls, only_user
from gaia_fast.errors import CompilationError

aten = torch.ops.aten

CONVOLUTION_RELU = aten.cudnn_convolution_relu.default
CONVOLUTION_ADD_RELU = aten.cudnn_convolution_add_relu.default
FUSED = (CONVOLUTION_RELU, CONVOLUTION_ADD_RELU)
INDEX = "cudnn fusion"  # in a fused node's meta: which of the convolutions that can be fused it is, in order

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)

# No value of a network that is any good; far from where float32 ends, so that many convolutions fit between.
_LARGEST = 2.0**32
# Sums are in float32. Well below its end: some algorithms add up inputs before they multiply.
_OVERFLOW = 1e36


class _Match(NamedTuple):
    relu: fx.Node
    convolution: fx.Node
    residual: fx.Node | None


def fuse_convolutions(module: fx.GraphModule, but_for: Collection[int] = ()) -> None:
    """Replaces relu(convolution) and relu(convolution + residual) by cuDNN's operators, which are for CUDA devices.

    That is done where nothing else reads what is between; where the residual is another convolution, its bias is added
    with that of the first.

    Args:
        module: a recorded program.
        but_for: which are left as they are, counted in order.
    """
    graph = module.graph
    index = -1
    for node in graph.find_nodes(op="call_function", target=aten.relu.default):
        match = _match(node)  # now: what it reads may have been replaced
        if match is None:
            continue
        index += 1
        if index in but_for:
            continue
        x, weight, bias, stride, padding, dilation, _, _, groups = match.convolution.args
        with graph.inserting_before(match.relu):
            residual, bias = _without_bias(module, match.residual, bias)
            if bias is None:
                value = weight.meta["val"]
                bias = constant(module, torch.zeros(value.shape[0], dtype=value.dtype, device=value.device))
            last = (bias, stride, padding, dilation, groups)
            if residual is None:
                fused = graph.call_function(CONVOLUTION_RELU, (x, weight, *last))
            else:
                fused = graph.call_function(CONVOLUTION_ADD_RELU, (x, weight, residual, 1.0, *last))
        # The operators say nothing of what they give where there is no device.
        fused.meta["val"] = match.relu.meta["val"]
        fused.meta[INDEX] = index
        match.relu.replace_all_uses_with(fused)
    graph.eliminate_dead_code()


def unfused(target: Any, args: tuple[Any, ...]) -> Tensor:
    """Returns what a fused operator stands for, computed by those in whose place it is."""
    x, weight, *residual, bias, stride, padding, dilation, groups = args
    y = aten.convolution.default(x, weight, bias, stride, padding, dilation, False, [0, 0], groups)
    if target is CONVOLUTION_ADD_RELU:
        y = aten.add.Tensor(y, residual[0])
    result: Tensor = aten.relu.default(y)
    return result


def _match(relu: fx.Node) -> _Match | None:
    before = relu.args[0]
    if _fits(before, relu):
        return _Match(relu, before, None)
    if not calls(before, aten.add.Tensor) or before.kwargs or only_user(before) is not relu or not alike(before, relu):
        return None
    # The later one: what is added to it is there by then, and the device has it at hand.
    first, second = before.args
    for convolution, residual in ((second, first), (first, second)):
        if _fits(convolution, before) and convolution is not residual and alike(residual, convolution):
            return _Match(relu, convolution, residual)
    return None


def _fits(node: Any, user: fx.Node) -> bool:
    """Whether a convolution is one that cuDNN's operators take, and read by `user` alone, which gives its like."""
    if not calls(node, aten.convolution.default) or node.kwargs or only_user(node) is not user or not alike(node, user):
        return False
    x, weight, bias, stride, padding, dilation, transposed, _, _ = node.args
    value = node.meta["val"]
    constants = [constant_value(each) for each in (weight, bias) if each is not None]
    return (
        not transposed
        and value.ndim == 4
        and value.dtype in _DTYPES
        and x.meta["val"].dtype == value.dtype
        and all(each is not None and each.dtype == value.dtype for each in constants)
        and all(isinstance(each, int) for each in (*stride, *padding, *dilation))
    )


def _without_bias(
    module: fx.GraphModule, residual: fx.Node | None, bias: fx.Node | None
) -> tuple[fx.Node | None, fx.Node | None]:
    """A residual without the bias of the convolution that it is, if it is one that nobody else reads; and both biases.

    PyTorch adds a bias in a launch of its own.
    """
    if residual is None or not calls(residual, aten.convolution.default) or len(residual.users) != 1:
        return residual, bias
    own = constant_value(residual.args[2])
    if own is None or residual.kwargs:
        return residual, bias
    graph = module.graph
    alone = graph.call_function(residual.target, (*residual.args[:2], None, *residual.args[3:]))
    alone.meta["val"] = residual.meta["val"]
    mine = constant_value(bias)
    both = own if mine is None else (own.double() + mine.double()).to(own.dtype)
    return alone, constant(module, both)


def guard_overflow(module: fx.GraphModule) -> None:
    """Makes the logits NaN, the first output, of images for which a fused convolution could overflow.

    Its ReLU would hide that: no NaN would reach the logits, where images that overflow are found. How large a map can
    be follows from the weights, and from how large an earlier map is: of a few in the graph, the images first, the
    largest value is looked at. Of images whose values are no larger than 2^32 nothing changes.

    In float16, which ends at 65504, there is no room between: convolutions in it are passed over.

    Raises:
        CompilationError: a convolution may overflow whatever it is given.
    """
    graph = module.graph
    bounds, guarded = _Bounds(), []
    for node in list(graph.nodes):
        if node.target not in FUSED or node.meta["val"].dtype == torch.float16 or bounds.of(node) <= _OVERFLOW:
            continue
        for each in [node.args[0], *([node.args[2]] if node.target is CONVOLUTION_ADD_RELU else [])]:
            if bounds.of(each) > _LARGEST:
                bounds.known[each] = _LARGEST
                guarded.append(each)
        del bounds.known[node]
        if bounds.of(node) > _OVERFLOW:
            raise CompilationError(f"the weights of {node} are so large that it may overflow whatever it is given")
    output = graph.output_node()
    (logits, *others) = output.args[0]
    largest = [_largest(graph, node) for node in dict.fromkeys(guarded)]
    if not largest:
        return
    with graph.inserting_before(output):
        together = graph.call_function(aten.stack.default, (largest, 1))
        small = graph.call_function(aten.le.Scalar, (together, _LARGEST))  # not of NaN
        all_small = graph.call_function(aten.all.dim, (small, 1, True))
        marked = graph.call_function(aten.where.ScalarOther, (all_small, logits, float("nan")))
    marked.meta["val"] = logits.meta["val"]
    output.args = ((marked, *others),)


def _largest(graph: fx.Graph, node: fx.Node) -> fx.Node:
    with graph.inserting_after(node):
        return graph.call_function(aten.linalg_vector_norm.default, (node, float("inf"), [1, 2, 3]))


class _Bounds:
    """How large the entries of a node can be, of images no larger than `_LARGEST`; infinity where nothing is known."""

    # What gives no larger values than it is given.
    _SELECTING = (
        aten.relu.default,
        aten.clone.default,
        aten.reshape.default,
        aten.slice.Tensor,
        aten.max_pool2d_with_indices.default,
        aten.avg_pool2d.default,
        aten._adaptive_avg_pool2d.default,
        aten.mean.dim,
    )

    def __init__(self) -> None:
        self.known: dict[fx.Node, float] = {}

    def of(self, node: fx.Node) -> float:
        if node not in self.known:
            self.known[node] = self._bound(node)
        return self.known[node]

    def _bound(self, node: fx.Node) -> float:
        target: Any = node.target
        if node.op == "placeholder":
            return float("inf")
        if target in self._SELECTING or target is operator.getitem:
            return max((self.of(each) for each in node.all_input_nodes), default=float("inf"))
        if target is aten.cat.default:
            return max(self.of(each) for each in node.all_input_nodes)
        if target is aten.add.Tensor and not node.kwargs and all(isinstance(each, fx.Node) for each in node.args):
            return sum(self.of(each) for each in node.args)
        if target is aten.convolution.default and not node.args[6]:
            return self._of_convolution(node.args[0], node.args[1], node.args[2])
        if target is CONVOLUTION_RELU:
            return self._of_convolution(node.args[0], node.args[1], node.args[2])
        if target is CONVOLUTION_ADD_RELU:
            return self._of_convolution(node.args[0], node.args[1], node.args[4]) + self.of(node.args[2])
        value = constant_value(node)
        return float("inf") if value is None or not value.numel() else float(value.abs().amax())

    def _of_convolution(self, x: Any, weight: Any, bias: Any) -> float:
        value = constant_value(weight)
        if value is None:
            return float("inf")
        factor = float(value.double().abs().sum((1, 2, 3)).amax())
        return factor * self.of(x) + (0.0 if bias is None else self.of(bias))
