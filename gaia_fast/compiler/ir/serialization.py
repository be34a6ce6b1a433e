"""Graphs as plain data: what JSON holds, and their constants as tensors. Nothing that is read is ever run as code."""

import hashlib
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import SymInt, Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from gaia_fast.compiler.ir.constants import attribute
from gaia_fast.compiler.ir.passes import clean_up

# What a graph may call beside the operators of these.
_NAMESPACES = ("aten", "prims", "gaia_fast")
_FUNCTIONS = {f"operator.{name}": getattr(operator, name) for name in ("getitem", "add", "sub", "mul", "floordiv")}
# Values that are written as their names in torch.
_NAMED: tuple[type, ...] = (torch.dtype, torch.memory_format, torch.layout)

_BATCH = "batch"  # stands for the number of images


class NotSerializableError(Exception):
    """A graph holds what plain data cannot say; the message names it."""


def to_data(module: fx.GraphModule) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns a graph as plain data, and its constants by name.

    Args:
        module: ATen operators from one placeholder to the output, every node typed.

    Raises:
        NotSerializableError: see there.
    """
    writer = _Writer(module)
    nodes = [writer.node(node) for node in module.graph.nodes]
    return {"nodes": nodes, "passes": list(module.meta.get("passes", []))}, writer.constants


def from_data(data: Mapping[str, Any], constants: Mapping[str, Tensor]) -> fx.GraphModule:
    """Returns the graph that `to_data` was given.

    Raises:
        Exception: of many kinds, where the data are not those of a graph.
    """
    root = nn.Module()
    for name, tensor in constants.items():
        *path, last = name.split(".")
        holder = root
        for part in path:
            if not hasattr(holder, part):
                holder.add_module(part, nn.Module())
            holder = holder.get_submodule(part)
        holder.register_buffer(last, tensor)
    graph, reader = fx.Graph(), _Reader()
    for each in data["nodes"]:
        args, kwargs = reader.value(each["args"]), reader.value(each["kwargs"])
        target = _target(each["target"]) if each["op"] == "call_function" else each["target"]
        node = graph.create_node(each["op"], target, tuple(args), kwargs, each["name"])
        reader.nodes[each["name"]] = node
        if each["op"] == "get_attr":
            node.meta["val"] = constants[each["target"]]
        elif each["op"] != "output":
            node.meta["val"] = reader.type(each["type"])
    module = fx.GraphModule(root, graph)
    module.meta["passes"] = list(data["passes"])
    clean_up(module)
    return module


def digest(module: fx.GraphModule) -> str:
    """Returns a hash of a graph and of its constants' sizes, not of their values."""
    of = hashlib.sha256(module.code.encode())
    for node in module.graph.nodes:
        if node.op == "get_attr":
            of.update(f"{node.target} {tuple(attribute(module, str(node.target)).shape)}".encode())
    return of.hexdigest()[:32]


class _Writer:
    def __init__(self, module: fx.GraphModule) -> None:
        self.module, self.constants = module, dict[str, Tensor]()
        images = next(node for node in module.graph.nodes if node.op == "placeholder").meta["val"]
        self.batch = images.shape[0].node.expr if isinstance(images.shape[0], SymInt) else None

    def node(self, node: fx.Node) -> dict[str, Any]:
        written = {"op": node.op, "name": node.name, "args": self.value(node.args), "kwargs": self.value(node.kwargs)}
        if node.op == "call_function":
            return written | {"target": self.target(node.target), "type": self.type(node.meta["val"])}
        if node.op == "get_attr":
            value = attribute(self.module, str(node.target))
            if type(value) not in (Tensor, nn.Parameter):
                raise NotSerializableError(f"the constant {node.target} is a {type(value).__name__}")
            self.constants[str(node.target)] = value.detach()
        elif node.op == "placeholder":
            written["type"] = self.type(node.meta["val"])
        elif node.op != "output":
            raise NotSerializableError(f"{node.name} is a {node.op}")
        return written | {"target": str(node.target)}

    def target(self, target: Any) -> str:
        if isinstance(target, torch._ops.OpOverload) and target.namespace in _NAMESPACES:
            return str(target)
        name = next((name for name, each in _FUNCTIONS.items() if each is target), None)
        if name is None:
            raise NotSerializableError(f"{target} is called")
        return name

    def value(self, value: Any) -> Any:
        """An argument: plain values as they are, all others as a list that begins with their kind."""
        if value is None or isinstance(value, (bool, str)) or type(value) is int:
            return value
        if isinstance(value, fx.Node):
            return ["node", value.name]
        if type(value) is float:
            return value if math.isfinite(value) else ["float", str(value)]
        if isinstance(value, (list, tuple)):
            return ["tuple" if type(value) is tuple else "list", *map(self.value, value)]
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return {key: self.value(each) for key, each in value.items()}
        if isinstance(value, _NAMED):
            return ["torch", str(value).removeprefix("torch.")]
        if isinstance(value, torch.device):
            return ["device", str(value)]
        raise NotSerializableError(f"an argument is a {type(value).__name__}")

    def type(self, value: Any) -> Any:
        """A type: ["tensor", dtype, sizes, strides, device], ["int", size] or ["none"]; a list of these for several."""
        if value is None:
            return ["none"]
        if isinstance(value, Tensor):
            dtype, device = self.value(value.dtype)[1], str(value.device)
            return ["tensor", dtype, [*map(self.size, value.shape)], [*map(self.size, value.stride())], device]
        if isinstance(value, (list, tuple)):
            return ["several", *map(self.type, value)]
        return ["int", self.size(value)]

    def size(self, size: Any) -> Any:
        """A number, or what it is in terms of the number of images, [factor, added]."""
        if type(size) is int:
            return size
        if not isinstance(size, SymInt) or self.batch is None:
            raise NotSerializableError(f"a size is {size!r}")
        expression = size.node.expr
        added = expression.subs(self.batch, 0)
        factor = expression.subs(self.batch, 1) - added
        if not (added.is_Integer and factor.is_Integer) or expression != factor * self.batch + added:
            raise NotSerializableError(f"a size is {expression}")
        return [_BATCH, int(factor), int(added)]


class _Reader:
    def __init__(self) -> None:
        self.nodes: dict[str, fx.Node] = {}
        self.mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
        context = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC])
        # Two: one image would be taken for a promise that there will always be one.
        self.batch = self.mode.from_tensor(torch.empty(2), symbolic_context=context).shape[0]

    def value(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self.value(each) for key, each in value.items()}
        if not isinstance(value, list):
            return value
        kind, *rest = value
        if kind in ("tuple", "list"):
            found = [self.value(each) for each in rest]
            return tuple(found) if kind == "tuple" else found
        (only,) = rest
        made: dict[str, Callable[[str], Any]] = {
            "node": lambda name: self.nodes[name],
            "float": float,
            "torch": lambda name: _named(name),
            "device": torch.device,
        }
        return made[kind](only)

    def type(self, written: Any) -> Any:
        kind, *rest = written
        if kind == "none":
            return None
        if kind == "several":
            return tuple(self.type(each) for each in rest)
        if kind == "int":
            return self.size(rest[0])
        dtype, sizes, strides, device = rest
        with self.mode:
            made = torch.empty_strided(
                [self.size(each) for each in sizes],
                [self.size(each) for each in strides],
                dtype=_named(dtype),
                device=device,
            )
        assert isinstance(made, FakeTensor)
        return made

    def size(self, written: Any) -> Any:
        if type(written) is int:
            return written
        _, factor, added = written
        return self.batch * factor + added if factor != 1 or added else self.batch


def _named(name: str) -> Any:
    found = getattr(torch, name)
    if not isinstance(found, _NAMED):
        raise ValueError(f"torch.{name} is none of {_NAMED}")
    return found


def _target(name: str) -> Any:
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    namespace, operation, overload = name.split(".")
    if namespace not in _NAMESPACES:
        raise ValueError(f"{name} is none of the operators of {_NAMESPACES}")
    return getattr(getattr(getattr(torch.ops, namespace), operation), overload)
