"""Programs whose maps have their channels next to each other, as tensor cores read them."""

import torch
from torch import Tensor, fx


def channels_last(module: fx.GraphModule) -> None:
    """Lays images and four-dimensional constants out with the channels last.

    Convolutions and what stands between them keep the layout by themselves; results differ by rounding.
    """
    for node in list(module.graph.nodes):
        if node.op == "placeholder":
            with module.graph.inserting_after(node):
                moved = module.graph.call_function(
                    torch.ops.aten.clone.default, (node,), {"memory_format": torch.channels_last}
                )
            node.replace_all_uses_with(moved, delete_user_cb=lambda user, moved=moved: user is not moved)
        elif node.op == "get_attr":
            value = getattr(module, str(node.target))
            if isinstance(value, Tensor) and value.ndim == 4:
                setattr(module, str(node.target), value.contiguous(memory_format=torch.channels_last))
