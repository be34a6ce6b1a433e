"""`check_results` in plain PyTorch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gaia_fast.ops.result_checks import divisible


@torch.no_grad()
def check_results_reference(
    logits: Tensor,
    scores: Sequence[Tensor],
    preconditions: Tensor | None,
    components: Sequence[Tensor],
    finite: Tensor | None,
    memory: Sequence[Tensor],
    expected: Tensor | None,
    pieces: Tensor | None,
    counts: Tensor | None,
    told: Tensor | None,
    answers: Tensor,
) -> None:
    """Writes the (N,) answers, and counts; see `check_results`."""
    holds = torch.isfinite(logits).all(1)
    for score in scores:
        holds &= torch.isfinite(score)
    if preconditions is not None:
        holds &= (preconditions > 0).all(1)
    for component in components:
        holds &= divisible(component, logits)
    if finite is not None:
        holds &= finite.bool().all(1)
    answers.copy_(holds)
    if counts is None or told is None:
        return
    whole = holds.all()
    if memory and expected is not None:
        whole &= (torch.cat([*memory]) == expected).all()
    counts[2] += ~whole
    counts[1] += 1
    told.copy_(counts.flip(0)[:2])
