"""The passes of the compiler, in order: from a captured model to a program, and from there to each runtime.

Each list is run by `run_passes`. With GAIA_FAST_DUMP=FOLDER in the environment, the graph is written there after every
pass.
"""

from collections.abc import Collection, Sequence
from functools import partial

from torch import fx

from gaia_fast.compiler.frontend.pooling_indices import return_pool_indices
from gaia_fast.compiler.ir.passes import Pass
from gaia_fast.compiler.ir.results import ResultNames
from gaia_fast.compiler.native.fusion import fuse
from gaia_fast.compiler.native.head import use_linear_head
from gaia_fast.compiler.native.partition import partition
from gaia_fast.compiler.native.score import check_results, use_score_kernels
from gaia_fast.compiler.onnx.blocked_layout import to_blocked_layout
from gaia_fast.compiler.onnx.pooling_argmax import expand_pooling_argmax
from gaia_fast.compiler.onnx.saturation import expand_sigmoids
from gaia_fast.compiler.passes.backward_operators import decompose_backward
from gaia_fast.compiler.passes.channels_last import channels_last
from gaia_fast.compiler.passes.constant_folding import fold_constants
from gaia_fast.compiler.passes.count_and_score import count_and_score
from gaia_fast.compiler.passes.cudnn_fusion import fuse_convolutions, guard_overflow
from gaia_fast.compiler.passes.hoisting import fold_batch_constants, sink_broadcasts
from gaia_fast.compiler.passes.norm_folding import fold_norms
from gaia_fast.compiler.passes.padding_folding import fold_padding
from gaia_fast.compiler.passes.pooling_counts import count_pooled
from gaia_fast.compiler.passes.recorded_copies import copy_returned_constants, drop_identities
from gaia_fast.compiler.passes.relu_counts import count_in_relus
from gaia_fast.compiler.passes.reshape_views import reshape_views

RETURN_POOL_INDICES = Pass("return pool indices", return_pool_indices)
RESHAPE_VIEWS = Pass("reshape views", reshape_views)
FOLD_CONSTANTS = Pass("fold constants", fold_constants)
FOLD_PADDING = Pass("fold padding", fold_padding)
FOLD_NORMS = Pass("fold norms", fold_norms, requires=[FOLD_CONSTANTS])
DROP_IDENTITIES = Pass("drop identities", drop_identities)
DECOMPOSE_BACKWARD = Pass("decompose backward", decompose_backward)
SINK_BROADCASTS = Pass("sink broadcasts", sink_broadcasts)
FOLD_BATCH_CONSTANTS = Pass("fold batch constants", fold_batch_constants)
COPY_RETURNED_CONSTANTS = Pass("copy returned constants", copy_returned_constants)
FUSE = Pass("fuse", fuse, requires=[RESHAPE_VIEWS])
LINEAR_HEAD = Pass("linear head", use_linear_head, requires=[RESHAPE_VIEWS])
SCORE = Pass("score", use_score_kernels, requires=[LINEAR_HEAD])
PARTITION = Pass("partition", partition, requires=[FUSE])
EXPAND_SIGMOIDS = Pass("expand sigmoids", expand_sigmoids)
EXPAND_POOLING_ARGMAX = Pass("expand pooling argmax", expand_pooling_argmax)
BLOCKED_LAYOUT = Pass("blocked layout", to_blocked_layout)
COUNT_POOLED = Pass("count pooled", count_pooled)
CHANNELS_LAST = Pass("channels last", channels_last)
FUSE_CONVOLUTIONS = Pass("fuse convolutions", fuse_convolutions, requires=[CHANNELS_LAST])
GUARD_OVERFLOW = Pass("guard overflow", guard_overflow, requires=[FUSE_CONVOLUTIONS])

# The model as it was captured.
CAPTURED = (
    FOLD_CONSTANTS,  # a norm is folded where its parameters are constants
    FOLD_NORMS,
    FOLD_CONSTANTS,  # the factors and shifts that norms left
    FOLD_PADDING,
)
# What was recorded of logits, gradients and scores.
RECORDED = (
    DROP_IDENTITIES,
    RESHAPE_VIEWS,  # a gradient may lie in memory otherwise than the map that it is of
    DECOMPOSE_BACKWARD,
    SINK_BROADCASTS,  # before what is the same for each image is looked for: a mean of a broadcast is
    FOLD_BATCH_CONSTANTS,
    FOLD_CONSTANTS,
    COPY_RETURNED_CONSTANTS,  # last: folding would make a constant of a copy
)
# On this package's own CPU kernels, call by call; `native` puts those that follow each other into one.
KERNELS = (
    RESHAPE_VIEWS,
    FUSE,
    LINEAR_HEAD,  # and the output component behind it
    SCORE,
)
# For onnxruntime.
ONNX = (
    EXPAND_POOLING_ARGMAX,
    EXPAND_SIGMOIDS,  # before the layout: its sums and products are written in that, too
    BLOCKED_LAYOUT,
    FOLD_CONSTANTS,  # the areas that sums were divided by
)


def cuda(images: int, l2_bytes: int = 0, kernels: bool = True, channels_last: bool = True) -> tuple[Pass, ...]:
    """Returns the passes for a CUDA device.

    Args:
        images: how many a batch has.
        l2_bytes: the size of the device's L2 cache; see `count_in_relus`.
        kernels: whether this package's kernels run on the device.
        channels_last: whether maps are to lie so.
    """
    layout = (CHANNELS_LAST,) if channels_last else ()
    if not kernels:
        return (COUNT_POOLED, *layout)
    in_relus = Pass("count in ReLUs", partial(count_in_relus, images=images, l2_bytes=l2_bytes))
    at_the_end = Pass("count and score", partial(count_and_score, images=images), requires=[in_relus])
    return (COUNT_POOLED, in_relus, at_the_end, *layout)


def native(outputs: Sequence[str] | None = None, results: Sequence[ResultNames] = ()) -> tuple[Pass, ...]:
    """Returns the passes of the runtime "native".

    Args:
        outputs, results: the names of what the program gives, where its results are to be checked: see `check_results`.
    """
    if outputs is None:
        return (*KERNELS, PARTITION)
    check = Pass("check results", partial(check_results, outputs=outputs, results=results), requires=[SCORE])
    return (*KERNELS, check, PARTITION)


def cudnn(but_for: Collection[int] = (), hides_overflow: bool = False) -> tuple[Pass, ...]:
    """Returns the passes of the runtime "cudagraph" behind those of `cuda`.

    Args:
        but_for: which of the convolutions that can be fused are not; see `fuse_convolutions`.
        hides_overflow: whether fused ones give numbers where they overflow; see `guard_overflow`.
    """
    fuse = Pass(FUSE_CONVOLUTIONS.name, partial(fuse_convolutions, but_for=but_for), requires=[CHANNELS_LAST])
    return (fuse, GUARD_OVERFLOW) if hides_overflow else (fuse,)


def run_passes(passes: Sequence[Pass], module: fx.GraphModule) -> fx.GraphModule:
    """Runs passes one after the other, in place; returns the graph that the last one gives."""
    for each in passes:
        module = each(module)
    return module
