"""The one numerical contract of all backends.

A result may be off from float64 by at most twice what plain PyTorch is off on the same input, plus

    eps * (sqrt(number summed) * typical magnitude + 8 * |result|)

with eps the machine epsilon of the accumulator. The first part of the sum is what reordering additions costs where
PyTorch's own error happens to be nil. The second is for values of one sign, above all for equal ones, whose rounding
errors all point one way: a chain of 32 additions, as long as the kernels have them, can cost 8 units in the last place.
Counts are equal, and so is everything not finite: a sum that overflows, or meets infinities or NaN, is what the true
sum becomes when rounded to the accumulator.
"""

import torch
from torch import Tensor

from cases import bits

CHAIN_ULPS = 8.0
EPS = {torch.float32: 2.0**-23, torch.float64: 2.0**-52}
NAMES = ("sum", "abs_sum", "nonzero")


def assert_close(
    got: Tensor,
    truth: Tensor,
    plain: Tensor,
    what: str,
    *,
    count: int = 0,
    typical: Tensor | float = 0.0,
    ulps: float = CHAIN_ULPS,
) -> None:
    """Checks `got` against `truth` in float64 and `plain` PyTorch, all of one shape; see the module."""
    got64, truth, plain64 = got.double().cpu(), truth.cpu(), plain.double().cpu()
    typical = typical.cpu() if isinstance(typical, Tensor) else typical
    rounded = truth.to(got.dtype).double()
    finite = rounded.isfinite()
    same = (got64 == rounded) | (got64.isnan() & rounded.isnan())
    assert bool((same | finite).all()), f"{what}: {got64[~finite]} where the truth is {rounded[~finite]}"
    own_error = (plain64 - truth).abs()[finite & plain64.isfinite()]
    own = own_error.max().item() if own_error.numel() else 0.0
    allowed = 2 * own + EPS[got.dtype] * (count**0.5 * typical + ulps * truth.abs())
    error = (got64 - truth).abs()
    bad = finite & ~(error <= allowed)
    assert not bool(bad.any()), (
        f"{what}: off by {error[bad].max():.3g} at {bad.nonzero()[0].tolist()} of {tuple(got.shape)}, allowed "
        f"{allowed.expand_as(error)[bad].min():.3g}, plain PyTorch is off by {own:.3g}"
    )


def assert_moments(got: Tensor, g: Tensor, what: str = "") -> None:
    """Checks (3, N, K) moments against the map `g` that they should be of; `what` names the case."""
    accumulator = torch.float64 if g.dtype == torch.float64 else torch.float32
    assert got.shape == (3, *g.shape[:2])
    assert got.dtype == accumulator
    assert got.device == g.device
    g64 = g.double()
    typical = g64.square().sum((2, 3)).div(max(1, g.shape[2] * g.shape[3])).sqrt().nan_to_num(0.0, 0.0, 0.0)
    truths = (g64.sum((2, 3)), g64.abs().sum((2, 3)))
    plains = (g.sum((2, 3), dtype=accumulator), g.abs().sum((2, 3), dtype=accumulator))
    for i in range(2):
        assert_close(got[i], truths[i], plains[i], f"{NAMES[i]} {what}", count=g.shape[2] * g.shape[3], typical=typical)
    counts = (g != 0).sum((2, 3)).to(accumulator)
    assert torch.equal(got[2], counts), f"nonzero {what}: {got[2]} instead of {counts}"


def assert_same_bits(got: Tensor, expected: Tensor, what: str) -> None:
    """Checks that both hold the same bits; one NaN is as good as another."""
    assert got.dtype == expected.dtype, f"{what}: {got.dtype} instead of {expected.dtype}"
    assert got.shape == expected.shape, f"{what}: {got.shape} instead of {expected.shape}"
    got, expected = got.contiguous(), expected.contiguous()
    differ = (bits(got) != bits(expected)) & ~(got.isnan() & expected.isnan())
    assert not bool(differ.any()), (
        f"{what}: {got[differ][:4]} instead of {expected[differ][:4]} at {differ.nonzero()[:4].tolist()}"
    )
