"""What a program's convolutions cost, and how much of it this package's kernels take."""

from torch import fx

from gaia_fast.compiler.ir.rewriting import CONVOLUTIONS
from gaia_fast.compiler.native.fusion import convolution_part


def operations(module: fx.GraphModule) -> tuple[float, float]:
    """Multiplications and additions of a graph's convolutions for one image: of all, and of those that are fused."""
    total = ours = 0.0
    for node in module.graph.nodes:
        if node.target not in CONVOLUTIONS or node.meta["val"].ndim != 4:
            continue
        weight = node.args[1].meta["val"]
        here = 2.0 * weight.numel() * int(node.meta["val"].shape[2]) * int(node.meta["val"].shape[3])
        total += here
        if convolution_part(node, weight, {}) is not None:
            ours += here
    return total, ours
