"""The methods that GAIA is compared with: the paper's, and those that came after it; from pytorch-ood (the extra
`baselines`) but for ExGrad, which it lacks."""

from gaia_fast.baselines.methods import BASELINES, Baseline, Hyperparameters
from gaia_fast.baselines.split import Representation, SplitNetwork

__all__ = ["BASELINES", "Baseline", "Hyperparameters", "Representation", "SplitNetwork"]
