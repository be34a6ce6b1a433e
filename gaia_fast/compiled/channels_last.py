"""Programs whose maps have their channels next to each other, as tensor cores read them."""

import torch
from torch import Tensor, fx

from gaia_fast.compiled.nodes import copy_of


def channels_last(module: fx.GraphModule) -> fx.GraphModule:
    """Returns a copy of a program, its images and four-dimensional constants laid out with the channels last.

    Convolutions and what stands between them keep the layout by themselves; results differ by rounding.
    """
    copied = copy_of(module)
    for node in list(copied.graph.nodes):
        if node.op == "placeholder":
            with copied.graph.inserting_after(node):
                moved = copied.graph.call_function(
                    torch.ops.aten.clone.default, (node,), {"memory_format": torch.channels_last}
                )
            node.replace_all_uses_with(moved, delete_user_cb=lambda user, moved=moved: user is not moved)
        elif node.op == "get_attr":
            value = getattr(copied, str(node.target))
            if isinstance(value, Tensor) and value.ndim == 4:
                setattr(copied, str(node.target), value.contiguous(memory_format=torch.channels_last))
    copied.recompile()
    return copied
