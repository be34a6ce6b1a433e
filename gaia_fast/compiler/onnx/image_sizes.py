"""One ONNX graph for images of several sizes: a branch for each.

Each branch has its own weights, although they are the same: onnxruntime brings a convolution's weights into its blocked
layout only in the graph that they belong to, and is slower without it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    import onnx

Named = TypeVar("Named", "onnx.NodeProto", "onnx.TensorProto", "onnx.ValueInfoProto")


def by_size(models: Sequence["onnx.ModelProto"], sizes: Sequence[tuple[int, ...]]) -> "onnx.ModelProto":
    """Returns a model that does with "images" (N, C, H, W) what the model for their size does.

    Images of another size are refused by a node whose name says which sizes there are.

    Args:
        models: with the same input and outputs, by name.
        sizes: height and width of each one's images.
    """
    from onnx import TensorProto, helper, numpy_helper

    first = models[0].graph
    branches = [_branch(model.graph, f"size{place}_") for place, model in enumerate(models)]

    def integers(name: str, values: object) -> "onnx.TensorProto":
        return numpy_helper.from_array(np.asarray(values, dtype=np.int64), name)

    constants = [integers("sizes", sizes), integers("last", [-1]), integers("zero", [0]), integers("one", 1)]
    constants += [integers(f"place{place}", place) for place in range(len(models) - 1)]
    listed = "_or_".join(f"{height}x{width}" for height, width in sizes)
    nodes = [
        helper.make_node("Shape", ["images"], ["size"], start=2, end=4),
        helper.make_node("Equal", ["sizes", "size"], ["equal"]),
        helper.make_node("Cast", ["equal"], ["equal_numbers"], to=TensorProto.INT64),
        helper.make_node("ReduceMin", ["equal_numbers", "last"], ["fits"], keepdims=0),
        helper.make_node("ReduceMax", ["fits"], ["any_fits"], keepdims=0),
        helper.make_node("Sub", ["one", "any_fits"], ["none_fits"]),
        # An index beyond the end, 1 of one entry, is an error; what is read is 0.
        helper.make_node("Gather", ["zero", "none_fits"], ["nothing"], name=f"images_must_be_{listed}"),
        helper.make_node("ArgMax", ["fits"], ["place_of_size"], axis=0, keepdims=0),
        helper.make_node("Add", ["place_of_size", "nothing"], ["place"]),
    ]
    outputs = [each.name for each in first.output]
    found = [_left_open(each, models) for each in first.output]
    rest = branches[-1]
    for place in range(len(models) - 2, -1, -1):
        inner = place > 0
        names = [f"{name}_from{place}" if inner else name for name in outputs]
        condition = f"is_place{place}"
        chosen = [
            helper.make_node("Equal", ["place", f"place{place}"], [condition]),
            helper.make_node("If", [condition], names, then_branch=branches[place], else_branch=rest),
        ]
        if not inner:
            nodes += chosen
            break
        values = [_named(each, name) for each, name in zip(found, names, strict=True)]
        rest = helper.make_graph(chosen, f"from{place}", [], values)
    images = _left_open(first.input[0], models)
    for place, name in ((2, "height"), (3, "width")):
        images.type.tensor_type.shape.dim[place].dim_param = name
    graph = helper.make_graph(nodes, "by_size", [images], found, constants)
    return helper.make_model(graph, opset_imports=list(models[0].opset_import), ir_version=models[0].ir_version)


def _left_open(given: "onnx.ValueInfoProto", models: Sequence["onnx.ModelProto"]) -> "onnx.ValueInfoProto":
    """A copy, for any number of images unless all models are for the same."""
    numbers = [model.graph.input[0].type.tensor_type.shape.dim[0] for model in models]
    copied = _named(given, given.name)
    if any(each.dim_param or each.dim_value != numbers[0].dim_value for each in numbers):
        copied.type.tensor_type.shape.dim[0].dim_param = "number"
    return copied


def _branch(graph: "onnx.GraphProto", prefix: str) -> "onnx.GraphProto":
    """A graph as a branch: without an input of its own, and with names that begin with the prefix."""
    from onnx import helper

    names = {each.name: each.name for each in graph.input}
    constants = [_named(each, prefix + each.name) for each in graph.initializer]
    nodes = []
    for given in graph.node:
        node = _named(given, prefix + given.name)
        for of in (node.input, node.output):
            of[:] = [names.get(name, prefix + name) if name else "" for name in of]
        nodes.append(node)
    outputs = [_named(each, prefix + each.name) for each in graph.output]
    return helper.make_graph(nodes, prefix.rstrip("_"), [], outputs, constants)


def _named(given: Named, name: str) -> Named:
    """A copy under another name."""
    renamed = type(given)()
    renamed.CopyFrom(given)
    renamed.name = name
    return renamed
