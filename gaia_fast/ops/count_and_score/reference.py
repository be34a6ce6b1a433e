"""`count_and_score` in plain PyTorch."""

from collections.abc import Sequence
from math import inf

import torch
from torch import Tensor

from gaia_fast.ops.count_and_score import begins_of
from gaia_fast.ops.frobenius.reference import frobenius_reference


@torch.no_grad()
def count_and_score_reference(
    maps: Sequence[Tensor],
    sums: Sequence[Tensor],
    layers: Sequence[int],
    inverse_area: Sequence[float],
    upper: Sequence[float],
    windows: Sequence[int],
    p: float,
    scratch: Tensor,
    packed: Tensor,
    live: Tensor,
    score: Tensor,
) -> None:
    """Writes the counts, whether the windows are live, and the norms; needs no scratch; see `count_and_score`."""
    active = [(y > 0) if bound == inf else (y > 0) & (y < bound) for y, bound in zip(maps, upper, strict=True)]
    counts = [mask.sum((2, 3)).to(torch.float32) for mask in active] + list(sums)
    widths = [counts[layer].shape[1] for layer in layers]
    for layer, columns in zip(layers, packed.split(widths, dim=1), strict=True):
        columns.copy_(counts[layer])
    for j in range(live.shape[1]):
        m, begin, step = windows[3 * j : 3 * j + 3]
        some, unknown = active[m].any(1), maps[m].isnan().any(1)
        live[:, j] = (some & ~unknown)[:, begin::step, begin::step].flatten(1).all(1)
    frobenius_reference(packed, begins_of(widths), widths, inverse_area, None, p, score)
