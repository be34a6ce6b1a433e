"""The passes of the compiler, in order: from a captured model to a program, and from there to each runtime.

Each list is run by `run_passes`. With GAIA_FAST_DUMP=FOLDER in the environment, the graph is written there after every
pass.
"""

from collections.abc import Sequence

from torch import fx

from gaia_fast.compiler.frontend.pooling_indices import show_indices
from gaia_fast.compiler.ir.passes import Pass
from gaia_fast.compiler.native.fusion import fuse
from gaia_fast.compiler.native.head import with_own_head
from gaia_fast.compiler.native.partition import partition
from gaia_fast.compiler.native.score import with_own_score
from gaia_fast.compiler.onnx.blocked_layout import blocked
from gaia_fast.compiler.onnx.saturation import whole_exponentials
from gaia_fast.compiler.passes.backward_operators import as_forward_operators
from gaia_fast.compiler.passes.channels_last import channels_last
from gaia_fast.compiler.passes.constant_folding import fold_constants
from gaia_fast.compiler.passes.hoisting import fold_rows, spread_last
from gaia_fast.compiler.passes.norm_folding import fold_norms
from gaia_fast.compiler.passes.recorded_copies import drop_identities, own_results
from gaia_fast.compiler.passes.reshape_views import reshape_views

SHOW_INDICES = Pass("show indices", show_indices)
RESHAPE_VIEWS = Pass("reshape views", reshape_views)
FOLD_CONSTANTS = Pass("fold constants", fold_constants)
FOLD_NORMS = Pass("fold norms", fold_norms, requires=[FOLD_CONSTANTS])
DROP_IDENTITIES = Pass("drop identities", drop_identities)
AS_FORWARD_OPERATORS = Pass("backward operators as forward ones", as_forward_operators)
SPREAD_LAST = Pass("spread last", spread_last)
FOLD_ROWS = Pass("fold rows", fold_rows)
OWN_RESULTS = Pass("own results", own_results)
FUSE = Pass("fuse", fuse, requires=[RESHAPE_VIEWS])
LINEAR_HEAD = Pass("linear head", with_own_head, requires=[RESHAPE_VIEWS])
SCORE = Pass("score", with_own_score)
PARTITION = Pass("partition", partition, requires=[FUSE])
WHOLE_EXPONENTIALS = Pass("whole exponentials", whole_exponentials)
BLOCKED_LAYOUT = Pass("blocked layout", blocked)
CHANNELS_LAST = Pass("channels last", channels_last)

# The model as it was captured.
CAPTURED = (
    FOLD_CONSTANTS,  # a norm is folded where its parameters are constants
    FOLD_NORMS,
    FOLD_CONSTANTS,  # the factors and shifts that norms left
)
# What was recorded of logits, gradients and score.
RECORDED = (
    DROP_IDENTITIES,
    RESHAPE_VIEWS,  # a gradient may lie in memory otherwise than the map that it is of
    AS_FORWARD_OPERATORS,
    SPREAD_LAST,  # before rows are looked for: a mean of what is spread is a row
    FOLD_ROWS,
    FOLD_CONSTANTS,
    OWN_RESULTS,  # last: folding would make a constant of a copy
)
# On this package's own CPU kernels, call by call,
KERNELS = (
    RESHAPE_VIEWS,
    FUSE,
    LINEAR_HEAD,  # and the output component behind it
    SCORE,
)
# and those that follow each other in one call.
NATIVE = (*KERNELS, PARTITION)
# For onnxruntime.
ONNX = (
    WHOLE_EXPONENTIALS,  # before the layout: its sums and products are written in that, too
    BLOCKED_LAYOUT,
    FOLD_CONSTANTS,  # the areas that sums were divided by
)
# For a CUDA device.
CUDA = (CHANNELS_LAST,)


def run_passes(passes: Sequence[Pass], module: fx.GraphModule) -> fx.GraphModule:
    """Runs passes one after the other, in place; returns the graph that the last one gives."""
    for each in passes:
        module = each(module)
    return module
