"""Scores of the logits alone: what a classifier tells without GAIA. They cost next to nothing beside a forward pass."""

import torch
from torch import Tensor

from gaia_fast.options import LogitScore


def logit_score(name: str, logits: Tensor) -> Tensor:
    """Returns a score of the logits S (N, C): (N,) float32, larger = more out of distribution.

        msp       -max softmax(S)
        energy    -log(sum of exp(S)), at temperature 1
        max_logit -max S

    In float32 the softmax of a class that leads by 17 or more is 1: such images have one score "msp", -1.

    Args:
        name: of `gaia_fast.options.LogitScore`.
        logits: of any floating dtype; half precision is widened.

    Raises:
        ArgumentError: no such score.

    Example:
        >>> logits = torch.tensor([[2.0, 2.0], [9.0, 0.0]])
        >>> logit_score("max_logit", logits)
        tensor([-2., -9.])
        >>> unsure, sure = logit_score("msp", logits)
        >>> bool(unsure > sure)
        True
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    score = LogitScore.parse(name, "score")
    if score == LogitScore.MSP:
        found = torch.softmax(wide, dim=1).amax(1)
    elif score == LogitScore.ENERGY:
        found = torch.logsumexp(wide, dim=1)
    else:
        found = wide.amax(1)
    return found.neg().to(torch.float32)
