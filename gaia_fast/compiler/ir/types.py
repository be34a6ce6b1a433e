"""The type of a node: a tensor without numbers, of its dtype, shape and device, in `node.meta["val"]`.

The first size is a symbol where a graph holds for any number of images.
"""

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from gaia_fast.compiler.ir.constants import constant_value


def infer_types(module: fx.GraphModule) -> None:
    """Gives a type to every node that has none, from those of its arguments: as the operator computes it."""
    mode: FakeTensorMode | None = None
    for node in module.graph.nodes:
        if node.op == "placeholder" and isinstance(node.meta.get("val"), FakeTensor):
            mode = node.meta["val"].fake_mode
        elif "val" in node.meta:
            continue
        elif (value := constant_value(node)) is not None:
            node.meta["val"] = value.detach()
        elif mode is not None and _is_inferred(node):
            node.meta["val"] = _infer(node, mode)


def value_of(node: fx.Node, target: Any = None) -> Any:
    """Returns what the node's operator, or another in its place, gives for its arguments: tensors without numbers."""
    values = (each.meta["val"] for each in node.all_input_nodes)
    mode = next(value.fake_mode for value in values if isinstance(value, FakeTensor))
    return _infer(node, mode, target)


def untyped(module: fx.GraphModule) -> list[fx.Node]:
    """Returns the nodes that should have a type, of a graph whose images have one, and have none."""
    images = next((node for node in module.graph.nodes if node.op == "placeholder"), None)
    if images is None or not isinstance(images.meta.get("val"), FakeTensor):
        return []
    return [node for node in module.graph.nodes if _is_inferred(node) and "val" not in node.meta]


def _is_inferred(node: fx.Node) -> bool:
    """Whether a node's type follows from its arguments': not of kernels, whose callers say what they give."""
    if node.target is operator.getitem:
        source = node.args[0]
        return isinstance(source, fx.Node) and source.op != "call_module"
    return node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)


def _infer(node: fx.Node, mode: FakeTensorMode, target: Any = None) -> Any:
    def fake(argument: fx.Node) -> Any:
        value = argument.meta["val"]
        if isinstance(value, FakeTensor):
            if value.fake_mode is mode:
                return value
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
        return mode.from_tensor(value, static_shapes=True) if isinstance(value, Tensor) else value

    with mode, enable_python_dispatcher(), torch.no_grad():
        args, kwargs = fx.map_arg((node.args, node.kwargs), fake)
        return (target or node.target)(*args, **kwargs)
