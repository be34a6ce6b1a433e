"""What is taken for a grid of windows, and what is not."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from gaia_fast.compiler.ir.counts import grid_of
from gaia_fast.compiler.pipeline import DROP_IDENTITIES, RESHAPE_VIEWS, run_passes

GRIDS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, int] | None]] = {
    "all": (lambda y: y, (0, 1)),
    "every third": (lambda y: y[:, :, 1::3, 1::3], (1, 3)),
    "of some channels": (lambda y: y[:, 2:][:, :, ::2, ::2], (0, 2)),
    "without a border": (lambda y: y[:, :, 1:-1, 1:-1], None),
    "without a border at the top": (lambda y: y[:, :, 2:, :-1], None),
    "of a map without a border": (lambda y: y[:, :, 1:-1, 1:-1][:, :, 1::3, 1::3], None),
    "of rows alone": (lambda y: y[:, :, ::2], None),
    "another step along columns": (lambda y: y[:, :, ::2, ::3], None),
    "another begin along columns": (lambda y: y[:, :, ::2, 1::2], None),
}


@pytest.mark.parametrize("name", GRIDS)
def test_grids(name: str) -> None:
    positions, expected = GRIDS[name]

    def least(y: Tensor) -> Tensor:
        return positions(y).amax(1, keepdim=True).flatten(1).amin(1)

    recorded = make_fx(least, tracing_mode="symbolic")(torch.ones(2, 4, 12, 12))
    graph = run_passes([DROP_IDENTITIES, RESHAPE_VIEWS], recorded).graph
    (amin,) = graph.find_nodes(op="call_function", target=torch.ops.aten.amin.default)
    found = grid_of(amin)
    assert (None if found is None else found[1:]) == expected
