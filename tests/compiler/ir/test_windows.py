import itertools

import pytest
import torch

from gaia_fast.compiler.ir.windows import Geometry


def geometry(kernel: int, stride: int, padding: int, dilation: int, size: int) -> Geometry | None:
    out = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    if out < 1:
        return None
    return Geometry(
        (kernel, kernel), (stride, stride), (padding, padding), (dilation, dilation), 1, 1, (size, size), (out, out)
    )


CASES = [
    made
    for each in itertools.product((1, 2, 3, 4), (1, 2, 3), (0, 1), (1, 2), (5, 8, 9))
    if (made := geometry(*each)) is not None
]


def reached(case: Geometry, windows: torch.Tensor) -> torch.Tensor:
    """Which positions some of these windows look at: where the gradient of their sums is not zero."""
    x = torch.zeros(1, 1, *case.size, requires_grad=True)
    y = torch.conv2d(x, torch.ones(1, 1, *case.kernel), None, case.stride, case.padding, case.dilation)
    (g,) = torch.autograd.grad((y * windows).sum(), x)
    return g != 0


@pytest.mark.parametrize("case", CASES, ids=str)
def test_which_positions_and_windows_there_are(case: Geometry) -> None:
    everywhere = torch.ones(1, 1, *case.out)
    assert case.covers() == bool(reached(case, everywhere).all())
    missed = []
    for i, j in itertools.product(*map(range, case.out)):
        windows = everywhere.clone()
        windows[0, 0, i, j] = 0
        missed.append(not torch.equal(reached(case, windows), reached(case, everywhere)))
        if case.covers():
            assert torch.equal(case.reach(windows) > 0, reached(case, windows))
    assert case.needs_each() == all(missed)
