"""Constants of a graph: buffers of its module, and the nodes that read them."""

from typing import Any

from torch import Tensor, fx


def constant(module: fx.GraphModule, value: Tensor) -> fx.Node:
    """A new buffer of the module, read at the graph's current place of insertion."""
    index = 0
    while hasattr(module, f"constant_{index}"):
        index += 1
    module.register_buffer(f"constant_{index}", value.detach())
    node = module.graph.get_attr(f"constant_{index}")
    node.meta["val"] = value.detach()
    return node


def constant_value(node: Any) -> Tensor | None:
    """The value of a node that reads a buffer; None for any other."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    return attribute(node.graph.owning_module, str(node.target))


def attribute(module: Any, name: str) -> Any:
    """Returns what a module holds under a name with dots in it."""
    for part in name.split("."):
        module = getattr(module, part)
    return module
