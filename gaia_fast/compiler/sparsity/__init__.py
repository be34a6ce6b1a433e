"""Where the gradient of the top-1 logit is zero, proven from the structure of the network and its forward pass.

GAIA-Z counts non-zero gradients (Eq. 10). In a ReLU network they need not be computed: an entry is zero where an
inactive unit stops it, and elsewhere it is a sum of products of weights, which is zero only by an accident of rounding.
So the sparsity pattern of the gradient follows transfer rules of its own, backwards through the graph, and its
non-zeros are counted in the forward pass. docs/sparsity.md explains the method, its rules, and what they need.

    patterns.py       sets of entries, as functions of values of the forward pass
    preconditions.py  what must be true of an image for a pattern to hold
    transfer/         one rule an operator, registered by its target
    cancellation.py   whether gradients from several users of a tensor may cancel
    analysis.py       applies the rules, from the logits back to each inspected map
    counter.py        counts the patterns and checks the preconditions while a program is recorded

A map for which nothing is proven gets no pattern, and its gradient is computed.
"""

from gaia_fast.compiler.sparsity.analysis import analyse
from gaia_fast.compiler.sparsity.counter import NonZeroCounter
from gaia_fast.compiler.sparsity.preconditions import Precondition
from gaia_fast.compiler.sparsity.result import Sparsity

__all__ = ["NonZeroCounter", "Precondition", "Sparsity", "analyse"]
