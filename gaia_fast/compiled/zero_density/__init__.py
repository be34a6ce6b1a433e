"""Where the gradient of a logit is zero, told from the structure of the network and the signs of its forward pass.

GAIA-Z counts non-zero gradients (Eq. 10). In a ReLU network they need not be computed: a gradient entry is zero where
a closed unit stops it, and elsewhere it is a sum of products of weights that are not zero, which is zero only by an
accident of rounding. So the *pattern* of non-zeros follows rules of its own, backwards through the graph:

    logits                       every entry of A that some path reaches
    ReLU, ReLU6, sigmoid         open units only: the pattern behind it, where the unit is open
    add, scale, norm             as behind it
    concatenation                the slice of it
    group norm                   everything, if each group has a non-zero entry
    max-pooling                  the positions that the windows chose, of the windows that are not zero
    convolution, linear          everything, if each window that reads a position has a non-zero channel; where
                                 channels are grouped, the positions of which that is true, group by group
    several readers              the union

`analyse` derives the pattern of each inspected map. What it needs to be true of the images ("each window has an open
channel") is computed beside the densities, image by image: `Counter.live`. A map whose pattern is not known gets none,
and its gradient is computed.
"""

from gaia_fast.compiled.zero_density.analysis import analyse
from gaia_fast.compiled.zero_density.conditions import Condition
from gaia_fast.compiled.zero_density.counter import Counter
from gaia_fast.compiled.zero_density.density import Density

__all__ = ["Condition", "Counter", "Density", "analyse"]
