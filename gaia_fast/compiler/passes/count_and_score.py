"""The end of GAIA-Z's program as one operation over all maps: counts, preconditions on windows, norm.

PyTorch's compiler fuses no reduction into a convolution: each count and each precondition would be a launch of its own,
and with few images a launch takes longer than what it reads.
"""

import operator
from math import inf, prod
from sys import maxsize
from typing import Any

import torch
from torch import Tensor, fx

from gaia_fast.compiler.ir.constants import constant, constant_value
from gaia_fast.compiler.ir.counts import bounded, grid_of, over_space
from gaia_fast.compiler.ir.rewriting import calls, erase
from gaia_fast.ops import maps
from gaia_fast.ops.count_and_score import fits, scratch_size

aten = torch.ops.aten

# A map, the bound of its active units, and which of its channels are meant; None for all.
_Active = tuple[fx.Node, float, tuple[int, int] | None]


def count_and_score(module: fx.GraphModule, images: int) -> None:
    """Has torch.ops.gaia_fast.count_and_score count active units, check windows, and compute the score of the counts.

    It is handed counts of another kind as they are. What it does not know of preconditions and norms stays beside it.

    Args:
        module: a program.
        images: how many a batch has: the operation's memory is a constant of the program.
    """
    graph = module.graph
    returned = graph.output_node().all_input_nodes
    stack = next((node for node in returned if calls(node, aten.stack.default)), None)
    for packed in returned:
        if calls(packed, aten.cat.default) and _End(module, packed, stack).replace(images):
            stack = None


class _End:
    """The end of one method: what is packed, the norm of it, and the preconditions.

    Args:
        module: a program.
        packed: counts of all layers side by side, (N, sum of K_l).
        stack: preconditions side by side, (N, P); None where there are none, or are looked at already.
    """

    def __init__(self, module: fx.GraphModule, packed: fx.Node, stack: fx.Node | None) -> None:
        self._module, self._packed, self._stack = module, packed, stack
        self._before = set()
        for node in module.graph.nodes:
            if node is packed:
                break
            self._before.add(node)
        self._maps: dict[tuple[fx.Node, float], int] = {}
        self._slices: dict[tuple[fx.Node, int, int], fx.Node] = {}
        self._sums: dict[fx.Node, int] = {}

    def replace(self, images: int) -> bool:
        """Puts the operation in; returns whether there was anything to count."""
        graph, packed = self._module.graph, self._packed
        columns = packed.args[0]
        areas = self._areas()
        if list(packed.args[1:]) != [1] or areas is None or not all(_is_counts(each) for each in columns):
            return False
        with graph.inserting_before(packed):
            found = [None if each is None else self._map(*each) for each in (_counted(each) for each in columns)]
            if not self._maps and not any(_is_counted_elsewhere(each) for each in columns):
                return False
            windows: list[int] = []
            checked: dict[int, int] = {}  # the precondition's column, and which of the windows it is
            for column, each in enumerate(() if self._stack is None else self._stack.args[0]):
                if (grid := self._grid(each)) is None:
                    continue
                active, begin, step = grid
                if active[:2] not in self._maps and step > 1:
                    # Of a map that nothing else here reads, the grid alone is.
                    active, begin, step = self._grid_alone(*active, begin, step), 0, 1
                if (index := self._map(*active)) is not None:
                    checked[column] = len(windows) // 3
                    windows += [index, begin, step]
            layers = [
                len(self._maps) + self._sums.setdefault(each, len(self._sums)) if index is None else index
                for each, index in zip(columns, found, strict=True)
            ]
            read = [y for y, _ in self._maps]
            if not fits(len(read), len(self._sums), len(layers), len(windows) // 3):
                return False
            size = scratch_size([tuple(y.meta["val"].shape[1:]) for y in read], windows)
            memory = torch.zeros(images, size, dtype=torch.int32, device=packed.meta["val"].device)
            # Written by the kernel, and zeros again when it ends: to a compiler a constant. Of one recording alone:
            # its calls follow each other.
            made = graph.call_function(
                torch.ops.gaia_fast.count_and_score.default,
                (read, list(self._sums), layers, areas, [upper for _, upper in self._maps], windows),
                {"scratch": constant(self._module, memory)},
            )
            results = [graph.call_function(operator.getitem, (made, index)) for index in range(3)]
        self._use(results, checked)
        return True

    def _areas(self) -> list[float] | None:
        """The factor of each layer, where it is one."""
        scaled = self._scaled()
        weights = None if scaled is None else constant_value(scaled.args[1])
        if weights is None or weights.shape != self._packed.meta["val"].shape[1:]:
            return None
        parts = weights.cpu().split([each.meta["val"].shape[1] for each in self._packed.args[0]])
        if not all(part.numel() and bool((part == part[0]).all()) for part in parts):
            return None
        return [float(part[0]) for part in parts]

    def _scaled(self) -> fx.Node | None:
        return next((user for user in self._packed.users if calls(user, aten.mul.Tensor)), None)

    def _map(self, y: fx.Node, upper: float, channels: tuple[int, int] | None = None) -> int | None:
        """Returns the number of a map among those that are read; None where they have another dtype."""
        if any(y.meta["val"].dtype != other.meta["val"].dtype for other, _ in self._maps):
            return None
        if channels is not None:
            key = (y, *channels)
            if key not in self._slices:
                self._slices[key] = self._module.graph.call_function(aten.slice.Tensor, (y, 1, *channels))
                self._slices[key].meta["val"] = y.meta["val"][:, channels[0] : channels[1]]
            y = self._slices[key]
        return self._maps.setdefault((y, upper), len(self._maps))

    def _grid(self, least: Any) -> tuple[_Active, int, int] | None:
        """The map, the begin and the step of the grid that a precondition looks at."""
        if calls(least, aten._to_copy.default):
            least = least.args[0]
        if not calls(least, aten.amin.default) or (found := grid_of(least, _copied)) is None:
            return None
        y, begin, step = found
        active = (y, inf, None) if _is_map(y) else _active(y)
        if active is None or active[0] not in self._before:
            return None
        return active, begin, step

    def _grid_alone(self, y: fx.Node, upper: float, channels: tuple[int, int] | None, begin: int, step: int) -> _Active:
        """The positions of a grid as a map of their own, without a copy."""
        value = y.meta["val"]
        for axis in (2, 3):
            y = self._module.graph.call_function(aten.slice.Tensor, (y, axis, begin, maxsize, step))
        y.meta["val"] = value[:, :, begin::step, begin::step]
        return y, upper, channels

    def _use(self, results: list[fx.Node], checked: dict[int, int]) -> None:
        graph = self._module.graph
        packed, live, score = results
        scaled = self._scaled()
        for norm in [] if scaled is None else list(scaled.users):
            if calls(norm, aten.linalg_vector_norm.default) and list(norm.args[1:]) == [2, [1]] and not norm.kwargs:
                norm.replace_all_uses_with(score)
                erase(graph, norm)
        if self._stack is not None and checked:
            columns = list(self._stack.args[0])
            with graph.inserting_before(self._stack):
                if len(checked) == len(columns):
                    together = live
                else:
                    for column, index in checked.items():
                        columns[column] = graph.call_function(aten.select.int, (live, 1, index))
                    together = graph.call_function(aten.stack.default, (columns, 1))
            self._stack.replace_all_uses_with(together)
            erase(graph, self._stack)
        self._packed.replace_all_uses_with(packed)
        erase(graph, self._packed)


def _is_counts(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.meta["val"].ndim == 2 and node.meta["val"].dtype == torch.float32


def _is_counted_elsewhere(node: fx.Node) -> bool:
    """Whether the kernel that writes a map has counted it."""
    return calls(node, operator.getitem) and calls(node.args[0], torch.ops.gaia_fast.relu_forward_count.default)


def _is_map(node: Any) -> bool:
    if not isinstance(node, fx.Node) or not isinstance(node.meta.get("val"), Tensor):
        return False
    value = node.meta["val"]
    return value.ndim == 4 and value.dtype in maps.DTYPE_CODES and prod(value.shape[2:]) <= maps.MAX_POSITIONS


def _copied(node: fx.Node) -> fx.Node:
    """The bools that a node is a copy of, as numbers; else the node."""
    bools = calls(node, aten._to_copy.default) and node.args[0].meta["val"].dtype == torch.bool
    return node.args[0] if bools else node


def _counted(node: fx.Node) -> _Active | None:
    """Of which map the active units are counted, up to which bound, in which channels (None for all)."""
    return _active(_copied(node.args[0])) if over_space(node) else None


def _active(mask: Any) -> _Active | None:
    """Of which map a mask is the active units."""
    if calls(mask, aten.slice.Tensor) and mask.args[1] == 1 and list(mask.args[4:]) in ([], [1]):
        whole, (first, last) = _active(mask.args[0]), mask.args[2:4]
        if whole is None or whole[2] is not None:
            return None
        return whole[0], whole[1], (first, min(last, int(whole[0].meta["val"].shape[1])))
    if calls(mask, aten.gt.Scalar) and mask.args[1] == 0:
        return (mask.args[0], inf, None) if _is_map(mask.args[0]) else None
    if isinstance(mask, fx.Node) and (upper := bounded(mask)) is not None:
        y = mask.args[0].args[0]
        return (y, upper, None) if _is_map(y) else None
    return None
