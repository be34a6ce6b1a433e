"""Masks of a program by this package's own kernels: which units are active, which of them a window looks at, how many.

GAIA-Z's densities are made of them (`gaia_fast.compiler.sparsity.patterns`). An activation's kernel writes its own mask
as bits; what is made of masks reads and writes bits alone, a thirty-second of the maps.
"""

import operator
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import fx

from gaia_fast.compiler.ir.constants import constant_value
from gaia_fast.compiler.ir.counts import grid_of
from gaia_fast.compiler.ir.pooling import scattered_by_pooling
from gaia_fast.compiler.ir.rewriting import call_kernel, calls, erase, pair
from gaia_fast.compiler.native.kernels import Convolution, Mask, MaskCheck, Pointwise, Pool, Windows
from gaia_fast.ops.convolution.packing import NR

aten = torch.ops.aten


@dataclass(frozen=True)
class Ref:
    """A mask that a kernel gives, or (first, channels) of it."""

    node: fx.Node
    channels: tuple[int, int] | None = None


@dataclass(frozen=True)
class Reached:
    """What windows look at that have an entry in a mask."""

    of: Ref
    windows: Windows
    group: int


class MaskFuser:
    """Has `Mask` and `MaskCheck` compute what they can of a graph whose activations are kernels already."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self._known: dict[fx.Node, Ref | None] = {}

    def run(self) -> None:
        for node in list(self.graph.nodes):
            if node.target is aten.sum.dim_IntList and list(node.args[1]) == [2, 3] and node.meta["val"].ndim == 2:
                self._count(node)
            elif node.target is aten.amin.default:
                self._check(node)
        for node in reversed(list(self.graph.nodes)):
            if not node.users and (node.op == "call_module" or node.target is operator.getitem):
                self.graph.erase_node(node)

    def _count(self, node: fx.Node) -> None:
        """The entries of a mask, channel by channel."""
        mask = _copied(node.args[0])
        if mask is None or node.meta["val"].dtype != torch.float32:
            return
        counts = self._winners(mask)
        if counts is None:
            found = self._mask(mask)
            if found is None or found.channels is not None or not _is_made(found.node):
                return
            counts = self._result(found.node.args[0], 1, node.meta["val"])
        node.replace_all_uses_with(counts)
        erase(self.graph, node)

    def _check(self, node: fx.Node) -> None:
        """Whether some channel is in a mask at each position of a grid."""
        grid = grid_of(node, _copied)
        found = None if grid is None else self._mask(grid[0])
        if grid is None or found is None or found.channels is not None:
            return
        _, begin, step = grid
        with self.graph.inserting_before(node):
            made = call_kernel(self.graph, MaskCheck(begin, step), (found.node,))
        told = self._result(made, 0, node.meta["val"])
        node.replace_all_uses_with(told)
        erase(self.graph, node)

    def _mask(self, node: Any) -> Ref | None:
        """The mask that a node of bools is, by kernels; None where it is something else."""
        if not isinstance(node, fx.Node) or node.meta["val"].dtype != torch.bool or node.meta["val"].ndim != 4:
            return None
        if node not in self._known:
            self._known[node] = self._made(node)
        return self._known[node]

    def _made(self, node: fx.Node) -> Ref | None:
        if calls(node, aten.slice.Tensor) and node.args[1] == 1 and list(node.args[4:]) in ([], [1]):
            whole, (first, last) = self._mask(node.args[0]), node.args[2:4]
            if whole is None or whole.channels is not None or first % NR:
                return None
            channels = int(node.args[0].meta["val"].shape[1])
            last = min(last, channels)
            if last != channels and last % NR:  # the word holds bits of others
                return None
            return Ref(whole.node, (first, last - first))
        if calls(node, aten.gt.Scalar) and node.args[1] == 0:
            if (reached := self._reached(node)) is not None:
                height, width = node.meta["val"].shape[2:]
                return self._call(
                    node, None, reached.of, Mask(reached.windows, reached.group, (int(height), int(width)))
                )
            return self._active(node.args[0], inf)
        if calls(node, aten.bitwise_and.Tensor):
            above, below = node.args
            if calls(above, aten.gt.Scalar) and calls(below, aten.lt.Scalar) and above.args[0] is below.args[0]:
                return self._active(above.args[0], float(below.args[1])) if above.args[1] == 0 else None
            for one, other in (node.args, node.args[::-1]):
                reached = self._reached(other)
                inner = None if reached is None else self._mask(one)
                if reached is not None and inner is not None:
                    return self._call(node, inner, reached.of, Mask(reached.windows, reached.group))
        if calls(node, aten.bitwise_or.Tensor) or calls(node, aten.bitwise_and.Tensor):
            both = [self._mask(each) for each in node.args]
            if both[0] is not None and both[1] is not None:
                either = node.target is aten.bitwise_or.Tensor
                return self._call(node, both[0], both[1], Mask(None, either=either))
        return None

    def _call(self, node: fx.Node, inner: Ref | None, outer: Ref, kernel: Mask) -> Ref:
        kernel.slices = (None if inner is None else inner.channels, outer.channels)
        with self.graph.inserting_before(node):
            made = call_kernel(self.graph, kernel, (None if inner is None else inner.node, outer.node))
        return Ref(self._result(made, 0, node.meta["val"]))

    def _active(self, y: Any, upper: float) -> Ref | None:
        """The mask of an activation's output, which its kernel gives."""
        if not calls(y, operator.getitem) or y.args[1] != 0 or y.args[0].op != "call_module":
            return None
        kernel = self.graph.owning_module.get_submodule(str(y.args[0].target))
        if (
            not isinstance(kernel, (Convolution, Pointwise))
            or kernel.scale is not None
            or y.args[0].args[3] is not None
        ):
            return None
        if kernel.activation.name != "relu" or kernel.activation.upper != upper:
            return None
        value = y.meta["val"]
        return Ref(self._result(y.args[0], 2, torch.empty_like(value, dtype=torch.bool)))

    def _reached(self, node: Any) -> Reached | None:
        """What some windows look at: the adjoint of a convolution of ones by a mask, or a max-pooling of one."""
        if not calls(node, aten.gt.Scalar) or node.args[1] != 0:
            return None
        windows, group = node.args[0], 1
        while calls(windows, aten.slice.Tensor) and windows.args[1] in (2, 3) and windows.args[2] == 0:
            windows = windows.args[0]  # what hangs over the edge
        size = windows.meta["val"].shape
        if calls(windows, aten.reshape.default):  # of a number a group, one for each of its channels
            each = windows.args[0]
            while (
                calls(each, aten.clone.default)
                or calls(each, aten.expand.default)
                or calls(each, aten.unsqueeze.default)
            ):
                each = each.args[0]
            if each.meta["val"].ndim != 4 or size[1] % each.meta["val"].shape[1]:
                return None
            windows, group = each, int(size[1] // each.meta["val"].shape[1])
        found = self._adjoint_of_ones(windows) or _pooled(windows)
        if found is None:
            return None
        mask, geometry = found
        if group > 1:
            if (
                not calls(mask, aten.amax.default)
                or list(mask.args[1]) != [2]
                or not calls(mask.args[0], aten.reshape.default)
            ):
                return None
            if tuple(mask.args[0].meta["val"].shape[1:3]) != (windows.meta["val"].shape[1], group):
                return None  # as many channels in as out
            mask = mask.args[0].args[0]
        source = _copied(mask)
        of = self._mask(source)
        if of is None or of.channels is not None or (group % NR and NR % group):
            return None
        return Reached(of, geometry, group)

    def _adjoint_of_ones(self, node: Any) -> tuple[fx.Node, Windows] | None:
        if not calls(node, aten.convolution.default) or not node.args[6] or node.args[2] is not None:
            return None
        windows, weight, _, stride, padding, dilation, _, _, groups = node.args
        ones = constant_value(weight)
        if ones is None or ones.shape[1] != 1 or groups != ones.shape[0] or not bool((ones == 1).all()):
            return None
        if calls(windows, aten.clamp.default) and list(windows.args[1:]) == [None, 1]:
            windows = windows.args[0]
        kernel = (int(ones.shape[2]), int(ones.shape[3]))
        out = windows.meta["val"].shape[2:]
        return windows, Windows(kernel, pair(stride), pair(padding), pair(dilation), (int(out[0]), int(out[1])))

    def _winners(self, mask: fx.Node) -> fx.Node | None:
        """The counts of active units that are the first maximum of a window, by the pooling; None of another mask."""
        if not calls(mask, aten.bitwise_and.Tensor):
            return None
        for one, other in (mask.args, mask.args[::-1]):
            if not calls(one, aten.gt.Scalar) or one.args[1] != 0 or not calls(other, aten.gt.Scalar):
                continue
            found = scattered_by_pooling(other.args[0]) if other.args[1] == 0 else None
            if found is None or found[0].args[0] is not one.args[0]:
                continue
            pool, what = found
            return self._count_winners(mask, pool, what)
        return None

    def _count_winners(self, mask: fx.Node, pool: fx.Node, what: fx.Node) -> fx.Node | None:
        x, *given = pool.args
        y = next((each for each in pool.users if each.args[1] == 0), None)
        if y is None or self._active(x, inf) is None:
            return None
        out = y.meta["val"].shape[2:]
        alive = None
        if not calls(what, aten.ones_like.default):
            found = self._mask(_copied(what))
            if found is None or found.channels is not None:
                return None
            alive = found.node
        windows = windows_of(given, (int(out[0]), int(out[1])))
        with self.graph.inserting_before(mask if alive is not None else y.next):
            made = call_kernel(self.graph, Pool("maximum", windows), (x, alive))
        if alive is None:
            y.replace_all_uses_with(self._result(made, 0, y.meta["val"]))
        return self._result(made, 1, x.meta["val"][:, :, 0, 0])

    def _result(self, made: fx.Node, index: int, value: Any) -> fx.Node:
        """What a kernel gives, read once."""
        for each in made.users:
            if each.args[1] == index:
                return each
        with self.graph.inserting_after(made):
            result = self.graph.call_function(operator.getitem, (made, index))
        result.meta["val"] = value
        return result


def windows_of(given: list[Any], out: tuple[int, int]) -> Windows:
    """The windows of a pooling with these arguments: kernel, stride, padding, and dilation."""
    kernel, stride, padding, dilation = [*given[:4], *[[], 0, 1][max(len(given), 1) - 1 :]][:4]
    kernel = pair(kernel)
    return Windows(kernel, pair(stride) if stride else kernel, pair(padding), pair(dilation), out)


def _copied(node: Any) -> Any:
    """The bools that a node is a copy of, as numbers."""
    return node.args[0] if calls(node, aten._to_copy.default) else None


def _is_made(node: fx.Node) -> bool:
    """Whether a mask is `Mask`'s, not an activation's own."""
    kernel = node.graph.owning_module.get_submodule(str(node.args[0].target))
    return isinstance(kernel, Mask)


def _pooled(node: Any) -> tuple[fx.Node, Windows] | None:
    """The mask of which a max-pooling in strides of 1 tells what is near it, and the windows that look at that."""
    if not calls(node, operator.getitem) or node.args[1] != 0:
        return None
    pool = node.args[0]
    if not calls(pool, aten.max_pool2d_with_indices.default):
        return None
    mask, *given = pool.args
    out = mask.meta["val"].shape[2:]
    windows = windows_of(given, (int(out[0]), int(out[1])))
    if windows.stride != (1, 1):
        return None
    around = [d * (k - 1) - p for d, k, p in zip(windows.dilation, windows.kernel, windows.padding, strict=True)]
    return mask, Windows(windows.kernel, (1, 1), (around[0], around[1]), windows.dilation, windows.out)
