"""Graphs as plain data, and back."""

import json

import pytest
import torch
from torch import fx

from gaia_fast import Gaia
from gaia_fast.compiler.ir.serialization import NotSerializableError, digest, from_data, to_data
from gaia_fast.compiler.ir.types import infer_types

import zoo


@pytest.mark.parametrize("name", sorted(zoo.ZOO.keys() - {"resnet34", "wrn_40_2"}))
def test_a_graph_comes_back_as_it_was(name: str) -> None:
    x = zoo.images(3, zoo.image_size(name))
    prepared = Gaia(zoo.build(name), engine="compiled", runtime="eager").prepare(x).program(x)
    assert prepared is not None
    graph = prepared.program.graph
    data, constants = to_data(graph)
    read = from_data(json.loads(json.dumps(data)), constants)
    assert read.code == graph.code
    assert read.meta["passes"] == graph.meta["passes"]
    assert digest(read) == digest(graph)
    for mine, theirs in zip(read.graph.nodes, graph.graph.nodes, strict=True):
        if isinstance(theirs.meta.get("val"), torch.Tensor):
            given, expected = mine.meta["val"], theirs.meta["val"]
            assert (given.dtype, given.device) == (expected.dtype, expected.device)
            assert [*map(str, given.shape[1:])] == [*map(str, expected.shape[1:])]
            assert [isinstance(size, int) for size in given.shape] == [isinstance(size, int) for size in expected.shape]
    for mine, theirs in zip(read(x), graph(x), strict=True):
        assert torch.equal(mine, theirs)


def test_what_plain_data_cannot_say_is_named() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output((graph.call_function(torch.add, (x, x)),))
    module = fx.GraphModule(torch.nn.Module(), graph)
    x.meta["val"] = torch.empty(2, device="meta")
    infer_types(module)
    with pytest.raises(NotSerializableError, match="is called"):
        to_data(module)


@pytest.mark.parametrize(
    "target", ["os.system", "aten.system.default", "operator.attrgetter", "torch.ops.load_library"]
)
def test_nothing_but_known_operators_is_read(target: str) -> None:
    node = {"op": "call_function", "name": "x", "args": ["tuple"], "kwargs": {}, "target": target, "type": ["none"]}
    with pytest.raises(Exception, match=r"operators|attribute|unpack"):
        from_data({"nodes": [node], "passes": []}, {})
