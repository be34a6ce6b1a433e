import pytest
import torch
from torch import Tensor

from gaia_fast import GaiaA, GaiaZ

import zoo
from graphs import with_channels_last


@pytest.mark.parametrize("make", [GaiaZ, GaiaA])
@pytest.mark.parametrize("name", ["strided_shortcut", "parallel"])
def test_layout_changes_rounding_alone(name: str, make: type[GaiaZ] | type[GaiaA]) -> None:
    model, x = zoo.build(name).double(), zoo.images(3).double()
    prepared = make(model, engine="compiled", runtime="eager").prepare(x).program(x)
    assert prepared is not None
    graph = prepared.program.graph
    before = {key: value for key, value in vars(graph).items() if isinstance(value, Tensor)}
    with torch.no_grad():
        for one, other in zip(graph(x), with_channels_last(graph)(x), strict=True):
            assert torch.allclose(one, other, rtol=1e-9)
    for key, value in before.items():
        assert getattr(graph, key) is value


def test_maps_lie_channels_last() -> None:
    x = zoo.images(3)
    prepared = GaiaZ(zoo.build("strided_shortcut"), engine="compiled", runtime="eager").prepare(x).program(x)
    assert prepared is not None
    graph = prepared.program
    seen: list[bool] = []

    class Look(torch.fx.Interpreter):  # type: ignore[misc]
        def run_node(self, n: torch.fx.Node) -> object:
            value = super().run_node(n)
            if n.target is torch.ops.aten.convolution.default:
                seen.append(value.is_contiguous(memory_format=torch.channels_last) and not value.is_contiguous())
            return value

    with torch.no_grad():
        Look(with_channels_last(graph.graph)).run(x)
    assert seen
    assert all(seen)
