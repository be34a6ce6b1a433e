"""What a recorded graph tells of norms: which ran without a hook being called for them."""

from collections import Counter
from collections.abc import Sequence

from torch import Tensor, nn
from torch.autograd.graph import Node

from gaia_fast.errors import ModelError
from gaia_fast.inspection.layers import InspectedLayer, around_hooks

# PyTorch's own norms, and their autograd nodes: each returns a tensor that nothing else holds, and none keeps it for
# the backward pass, so a tap may take it over without a copy.
NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, nn.GroupNorm, nn.InstanceNorm2d)
NORM_NODES = ("NativeBatchNormBackward0", "CudnnBatchNormBackward0", "NativeGroupNormBackward0")
_COMPILED = "CompiledFunction"
# Of nn.LayerNorm and what is made of it, which turn axes around it, so that what they return may be a view.
_LAYER_NORM = "NativeLayerNormBackward0"


def check_norms(logits: Tensor, layers: Sequence[InspectedLayer], calls: Counter[InspectedLayer]) -> None:
    """Raises ModelError if the graph of the logits holds more of a layer's norm than its calls left there.

    What is beyond them ran by `forward`, or in a thread of the model's own; compiled code is one node, whatever runs in
    it. A norm that is told by neither parameters nor statistics of its own goes unseen.

    Args:
        logits: of a recorded forward pass, before the backward pass.
        layers: all that are inspected.
        calls: for each layer that hooks were called for, how many of the calls left a node in the graph.
    """
    norms = (*NORM_NODES, _LAYER_NORM)
    found = [node for node in _nodes(logits) if (kind := node.name()) in norms or kind.startswith(_COMPILED)]
    if not found:
        return
    owners = {
        id(each): layer
        for layer in layers
        for each in (*layer.module.parameters(recurse=False), *layer.module.buffers(recurse=False))
    }
    ran = Counter(owners[used] for node in found if (used := id(_own_tensor(node))) in owners)
    hidden = [
        layer.name
        for layer, count in ran.items()
        if count > calls[layer] and (layer not in calls or type(layer.module) in (*NORMS, nn.LayerNorm))
    ]
    if any(node.name().startswith(_COMPILED) for node in found):
        hidden += [layer.name for layer in layers if layer not in calls]
    if hidden:
        raise ModelError(around_hooks(hidden))


def _nodes(logits: Tensor) -> set[Node]:
    assert logits.grad_fn is not None
    found = {logits.grad_fn}
    ahead = [logits.grad_fn]
    while ahead:
        for node, _ in ahead.pop().next_functions:
            if node is not None and node not in found:
                found.add(node)
                ahead.append(node)
    return found


def _own_tensor(node: Node) -> Tensor | None:
    """A parameter or buffer that the norm behind a node used."""
    try:
        weight: Tensor | None = getattr(node, "_saved_weight", None)
        return getattr(node, "_saved_running_mean", None) if weight is None else weight
    except RuntimeError:  # written since; the backward pass says so
        return None
