"""Fusion: each convolution takes up what stands behind it, for this package's own kernels.

Forward, that is the residual added to it, the ReLU and the count of what is active; backward, the gradient added to it,
the ReLU's mask, the sums that the score needs, the norm's factor and the skip connection's gradient. A norm and a ReLU
behind anything else become `relu_forward_count`. What fits nowhere stays PyTorch's.
"""

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from gaia_fast.compiler.ir.constants import constant_value
from gaia_fast.compiler.ir.rewriting import CONVOLUTIONS, alike, call_kernel, calls, only_user, pair, per_channel
from gaia_fast.compiler.native.kernels import Convolution, Pointwise
from gaia_fast.ops.active_everywhere import active_everywhere
from gaia_fast.ops.convolution import Part, Weights, adjoint_parts, output_size, takes
from gaia_fast.ops.convolution.packing import Algorithm
from gaia_fast.ops.convolution.parts import Pair

aten = torch.ops.aten


def fuse(module: fx.GraphModule) -> None:
    """Makes a float32 program on the CPU one of the kernels above."""
    _Fuser(module).run()


class _Fuser:
    def __init__(self, module: fx.GraphModule) -> None:
        self.module, self.graph = module, module.graph
        self._weights: dict[str, Weights] = {}
        self._exact = _counted(self.graph)

    def run(self) -> None:
        for node in list(self.graph.nodes):
            if node.target in CONVOLUTIONS:
                self._convolution(node)
        for node in list(self.graph.nodes):
            if node.target is aten.relu.default:
                self._relu(node)
            elif node.target is aten.where.self:
                self._relu_backward(node)
        for node in list(self.graph.nodes):
            if node.target is aten.amin.default:
                self._condition(node)
            elif _normalises_channels(node):
                self._channels_first(node)

    def _place(self, kernel: nn.Module, inputs: tuple[fx.Node | None, ...], like: Any) -> tuple[fx.Node, fx.Node]:
        """A call of a kernel, at the graph's current place of insertion: its map, and its sums."""
        made = call_kernel(self.graph, kernel, inputs)
        y = self.graph.call_function(operator.getitem, (made, 0))
        y.meta["val"] = like
        return y, self.graph.call_function(operator.getitem, (made, 1))

    def _replace(self, node: fx.Node, y: fx.Node, sums: list[fx.Node], total: fx.Node) -> None:
        """Has a map and its sums come from a kernel, and takes out what made them."""
        node.replace_all_uses_with(y)
        for each in sums:
            total.meta["val"] = each.meta["val"]
            each.replace_all_uses_with(total)
        if not sums:
            self.graph.erase_node(total)
        for each in [*sums, node]:
            erase(self.graph, each)

    def _convolution(self, node: fx.Node) -> None:
        weight = constant_value(node.args[1])
        bias = node.args[2] if len(node.args) > 2 else None
        bias_value = None if bias is None else constant_value(bias)
        if weight is None or (bias is not None and bias_value is None):
            return
        input_size = None
        if (part := convolution_part(node, weight, self._weights)) is not None:
            parts = [part]
        elif (adjoint := _adjoint(node, weight)) is not None:
            parts, input_size = adjoint
        else:
            return
        last = node
        residual = relu_mask = skip = scale = None
        relu = False
        if added := _added(last):
            residual, last = added
        if (user := only_user(last)) is not None and user.target is aten.relu.default:
            relu, last = True, user
        elif masked := _masked(last):
            relu_mask, last = masked
        value = node.meta["val"]
        statistic, sums = summed(last, relu)
        if not relu and (factor := scaled(last, sums, int(value.shape[1]))):
            scale, product = factor
            if (added := _added(product)) and _unread(sums, last, added[1]):
                skip, last = added
            else:
                last = product
        algorithm = Algorithm.INDIRECT_GEMM if node in self._exact else None
        kernel = Convolution(parts, bias_value, scale, input_size, relu, statistic, algorithm)
        with self.graph.inserting_before(last):
            y, total = self._place(kernel, (node.args[0], residual, relu_mask, skip), last.meta["val"])
        self._replace(last, y, sums, total)

    def _relu(self, node: fx.Node) -> None:
        """relu(x * scale + shift), with the count of what is active."""
        value = node.meta["val"]
        if value.ndim != 4 or value.dtype != torch.float32:
            return
        x, parameters = node.args[0], {}
        for name, target in (("shift", aten.add.Tensor), ("scale", aten.mul.Tensor)):
            if calls(x, target) and len(x.users) == 1 and not x.kwargs and alike(x.args[0], node):
                factor = per_channel(x.args[1], int(value.shape[1]))
                if factor is not None:
                    parameters[name], x = factor, x.args[0]
        _, counts = summed(node, True)
        if not parameters and not counts:
            return
        kernel = Pointwise(parameters.get("scale"), parameters.get("shift"), None, "positive")
        with self.graph.inserting_before(node):
            y, total = self._place(kernel, (x, None, None, None), value)
        self._replace(node, y, counts, total)

    def _relu_backward(self, node: fx.Node) -> None:
        """A gradient through a ReLU, with its sums and the norm's factor."""
        value, g = node.meta["val"], node.args[2]
        if value.ndim != 4 or value.dtype != torch.float32 or not alike(g, node):
            return
        if (relu_mask := relu_mask_of(node)) is None:
            return
        statistic, sums = summed(node, False)
        scale, last = scaled(node, sums, int(value.shape[1])) or (None, node)
        with self.graph.inserting_before(last):
            y, total = self._place(Pointwise(None, None, scale, statistic), (g, None, relu_mask, None), value)
        self._replace(last, y, sums, total)

    def _channels_first(self, node: fx.Node) -> None:
        """Has PyTorch normalise each channel by itself with its positions side by side.

        Channels last it takes the variance for the mean of squares less the square of the mean, of which rounding alone
        is left where a channel is constant, and the norm makes up to 300 times as much of it.
        """
        x = node.args[0]
        with self.graph.inserting_before(node):
            first = self.graph.call_function(aten.clone.default, (x,), {"memory_format": torch.contiguous_format})
            first.meta["val"] = x.meta["val"]
        node.replace_input_with(x, first)

    def _condition(self, node: fx.Node) -> None:
        """Whether each position of a grid has an active channel, of all or of some that follow each other."""
        highest = node.args[0]
        if not calls(highest, aten.reshape.default) or list(node.args[1]) != [1] or node.meta["val"].ndim != 1:
            return
        highest = highest.args[0]
        if not calls(highest, aten.amax.default) or list(highest.args[1]) != [1]:
            return
        y, begin, step, channels = highest.args[0], 0, 1, (0, None)
        while calls(y, aten.slice.Tensor) and y.args[1] in (2, 3):
            y, _, begin, _, step = [*y.args, 1][:5]
        if calls(y, aten.slice.Tensor) and y.args[1] == 1 and list(y.args[4:]) in ([], [1]):
            y, _, *channels = y.args[:4]
        value = y.meta["val"]
        if value.ndim != 4 or value.dtype != torch.float32 or len(node.args) > 2:
            return
        with self.graph.inserting_before(node):
            told = self.graph.call_function(active_everywhere, (y, begin, step, *channels))
            told.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(told)
        erase(self.graph, node)


def convolution_part(node: fx.Node, weight: Any, known: dict[str, Weights]) -> Part | None:
    """A convolution over two axes, of one group, not transposed, that the kernel takes; None for any other node."""
    value = node.meta["val"]
    if value.ndim != 4 or value.dtype != torch.float32 or not takes(weight):
        return None
    if node.target is aten.convolution.default:
        _, _, _, stride, padding, dilation, transposed, _, groups = node.args
        if transposed:
            return None
    else:
        defaults: list[Any] = [None, None, None, [1, 1], [0, 0], [1, 1], 1]
        stride, padding, dilation, groups = [*node.args, *defaults[len(node.args) :]][3:]
    if groups != 1 or isinstance(padding, str):
        return None
    weights = known.setdefault(str(node.args[1].target), Weights(weight))
    return Part(weights, pair(stride), pair(padding), pair(dilation))


def _adjoint(node: fx.Node, weight: Tensor) -> tuple[list[Part], Pair] | None:
    """The parts of a transposed convolution of one group that is the adjoint of a strided one, and where it leads."""
    value = node.meta["val"]
    if node.target is not aten.convolution.default or not node.args[6] or value.ndim != 4 or weight.ndim != 4:
        return None
    _, _, _, stride, padding, dilation, _, _, groups = node.args
    exchanged = weight.transpose(0, 1)
    if groups != 1 or pair(dilation) != (1, 1) or value.dtype != torch.float32 or not takes(exchanged):
        return None
    input_size = (int(value.shape[2]), int(value.shape[3]))
    stride, padding = pair(stride), pair(padding)
    reached = output_size(value.shape, exchanged.shape, stride, padding, (1, 1))
    if reached != tuple(node.args[0].meta["val"].shape[2:]):
        return None
    return adjoint_parts(weight, stride, padding), input_size


def _counted(graph: fx.Graph) -> set[fx.Node]:
    """The nodes of the gradients whose non-zeros are counted, without those that the logits are made of.

    Made of zeros alone, they have to be zero exactly: in Winograd's tiles rounding leaves something of the neighbours.
    """
    results = graph.output_node().args[0]
    logits = results[0] if isinstance(results, (tuple, list)) else results
    counts = [node for node in graph.nodes if calls(node, aten.ne.Scalar) and node.args[1] == 0]
    return _behind(counts) - _behind([logits])


def _normalises_channels(node: fx.Node) -> bool:
    """Whether a node is a norm by the variance of each channel of each image."""
    if node.target is aten.native_group_norm.default:
        return bool(node.args[4] == node.args[6])  # as many groups as channels
    return node.target is aten._native_batch_norm_legit.no_stats


def _behind(nodes: list[Any]) -> set[fx.Node]:
    """The nodes, and all that they are made of."""
    found: set[fx.Node] = set()
    left = [node for node in nodes if isinstance(node, fx.Node)]
    while left:
        node = left.pop()
        if node not in found:
            found.add(node)
            left += node.all_input_nodes
    return found


def _unread(sums: list[fx.Node], node: fx.Node, last: fx.Node) -> bool:
    """Whether nothing reads the sums of a node before `last`, where a kernel that makes both would stand."""
    between = set()
    while last is not node:
        last = last.prev
        between.add(last)
    return not any(user in between for each in sums for user in each.users)


def _added(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """What is added to a node that nothing else reads, and the sum."""
    user = only_user(node)
    if user is None or user.target is not aten.add.Tensor or user.kwargs or len(user.args) != 2:
        return None
    other = user.args[1] if user.args[0] is node else user.args[0]
    return None if other is node or not alike(other, node) else (other, user)


def _masked(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The map whose active units let a node through that nothing else reads, and what is let through."""
    user = only_user(node)
    if user is None or user.target is not aten.where.self or user.args[2] is not node:
        return None
    relu_mask = relu_mask_of(user)
    return None if relu_mask is None else (relu_mask, user)


def relu_mask_of(where: fx.Node) -> fx.Node | None:
    """The map where a selection is zero because it is not positive there; None of any other selection."""
    inactive, zero, _ = where.args
    if not isinstance(inactive, fx.Node) or inactive.target is not aten.le.Scalar or inactive.args[1] != 0:
        return None
    nothing = constant_value(zero)
    relu_mask = inactive.args[0]
    return None if nothing is None or bool(nothing.any()) or not alike(relu_mask, where) else relu_mask


def summed(node: fx.Node, relu: bool) -> tuple[str | None, list[fx.Node]]:
    """What of a node is summed over space, and the sums."""
    for name, find in _STATISTICS.items():
        if name == "positive" and not relu:
            continue
        if sums := [each for user in node.users for each in find(user) if _over_space(each)]:
            return name, sums
    return None, []


def _absolute(user: fx.Node) -> list[fx.Node]:
    return list(user.users) if user.target is aten.abs.default else []


def _positive(user: fx.Node) -> list[fx.Node]:
    if user.target is not aten.gt.Scalar or user.args[1] != 0:
        return []
    return [each for copy in user.users if copy.target is aten._to_copy.default for each in copy.users]


_STATISTICS = {"sum": lambda user: [user], "abs_sum": _absolute, "positive": _positive}


def _over_space(node: fx.Node) -> bool:
    if node.target is not aten.sum.dim_IntList or list(node.args[1]) not in ([2, 3], [-2, -1], [-1, -2]):
        return False
    value = node.meta["val"]
    return value.ndim == 2 and value.dtype == torch.float32  # axes may be kept, and another dtype asked for


def scaled(node: fx.Node, sums: list[fx.Node], channels: int) -> tuple[Tensor, fx.Node] | None:
    """The factor a channel of a node that nothing but its sums reads besides, and the product."""
    users = [user for user in node.users if user not in sums and not any(each in sums for each in user.users)]
    if len(users) != 1 or users[0].target is not aten.mul.Tensor or users[0].args[0] is not node:
        return None
    if not _unread(sums, node, users[0]):
        return None
    factor = per_channel(users[0].args[1], channels)
    return None if factor is None else (factor, users[0])


def erase(graph: fx.Graph, node: fx.Node) -> None:
    """Takes out a node that nothing reads any more, and what was there for it alone."""
    if node.users or node.op != "call_function":
        return
    inputs = node.all_input_nodes
    graph.erase_node(node)
    for each in inputs:
        erase(graph, each)
