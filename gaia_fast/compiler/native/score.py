"""The score of a program by this package's own `frobenius`, instead of one operator for each of its steps."""

from itertools import accumulate, groupby

import torch
from torch import Tensor, fx, nn

from gaia_fast.compiler.ir.constants import constant_value
from gaia_fast.compiler.ir.rewriting import alike, call_kernel, calls, only_user
from gaia_fast.ops.frobenius.cpu import frobenius_cpu

aten = torch.ops.aten


class Score(nn.Module):
    """`gaia_fast.ops.frobenius` of order 2 with its layers: (packed, output component or None) to scores, unchecked.

    Args:
        inverse_area: for each column, 1 / (H_l * W_l).
    """

    def __init__(self, inverse_area: list[float]) -> None:
        super().__init__()
        layers = [(area, len(list(columns))) for area, columns in groupby(inverse_area)]
        self.widths, self.inverse_area = [width for _, width in layers], [area for area, _ in layers]
        self.begins = list(accumulate(self.widths[:-1], initial=0))

    def forward(self, packed: Tensor, component: Tensor | None) -> Tensor:
        score = torch.empty(packed.shape[0], dtype=torch.float32, device="cpu")
        component = None if component is None else component.contiguous()
        frobenius_cpu(packed.contiguous(), self.begins, self.widths, self.inverse_area, component, 2.0, score)
        return score


def use_score_kernel(module: fx.GraphModule) -> None:
    """Has `Score` compute the norm of the packed sums, and the division by the output component."""
    graph = module.graph
    for node in [node for node in graph.nodes if node.target is aten.linalg_vector_norm.default]:
        scaled = node.args[0]
        if list(node.args[1:]) != [2, [1]] or node.kwargs or not calls(scaled, aten.mul.Tensor):
            continue
        packed, areas = scaled.args[0], constant_value(scaled.args[1])
        value = packed.meta["val"]
        if areas is None or value.ndim != 2 or value.dtype != torch.float32 or areas.shape != value.shape[1:]:
            continue
        last, component = node, None
        user = only_user(node)
        if user is not None and user.target is aten.div.Tensor and user.args[0] is node and alike(user.args[1], node):
            last, component = user, user.args[1]
        with graph.inserting_before(last):
            found = call_kernel(graph, Score(areas.tolist()), (packed, component), last.meta["val"])
        last.replace_all_uses_with(found)
