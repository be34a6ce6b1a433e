"""Where the gradient of a logit is zero, told from the structure of the network and the signs of its forward pass.

GAIA-Z counts non-zero gradients (Eq. 10). In a ReLU network they need not be computed: a gradient entry is zero where
a closed unit stops it, and elsewhere it is a sum of products of weights that are not zero, which is zero only by an
accident of rounding. So the *pattern* of non-zeros follows rules of its own, backwards through the graph:

    logits                       the row of the top-1 class alone; it stays a row through views, sums and means, and the
                                 head's weights, none of them zero for that class, make everything of it
    ReLU, ReLU6, sigmoid, clamp  open units only: the pattern behind it, where the unit is open
    add, scale, norm             as behind it
    product with a gate          as behind it; at the gate, where the map beside it is not zero
    concatenation                the slice of it
    group norm                   everything, if each group has a non-zero entry
    max-pooling                  the positions that the windows chose, of the windows that are not zero
    convolution, linear          everything, if each window that reads a position has a non-zero channel; where
                                 channels are grouped, the positions of which that is true, group by group
    several readers              the union, if each path has weights of its own as factors, so that nothing cancels

Each rule, and what it needs, is one function of `rules.py`. `analyse` derives the pattern of each inspected map. What
it needs to be true of the images ("each window has an open channel") is computed beside the densities, image by image:
`Counter.live`. A map whose pattern is not known gets none, and its gradient is computed.
"""

from gaia_fast.compiled.sparsity.analysis import analyse
from gaia_fast.compiled.sparsity.conditions import Condition
from gaia_fast.compiled.sparsity.counter import Counter
from gaia_fast.compiled.sparsity.density import Density

__all__ = ["Condition", "Counter", "Density", "analyse"]
