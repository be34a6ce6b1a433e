import pytest
import torch

from gaia_fast.errors import BackendError
from gaia_fast.ops.active_everywhere import active_everywhere

from cases import INTERPRETED, NAN

if INTERPRETED:
    pytest.skip("active_everywhere has no Triton kernel", allow_module_level=True)


@pytest.mark.parametrize(("begin", "step"), [(0, 1), (1, 3), (0, 2)])
@pytest.mark.parametrize("channels", [1, 16, 37])
def test_one_position_without_an_open_channel_is_enough(channels: int, begin: int, step: int) -> None:
    y = torch.zeros(6, channels, 5, 7)
    y[:, channels // 2] = 1
    y[1, :, 4, 4] = 0  # on the grid (1, 3) and (0, 2)
    y[2, :, 0, 0] = -1  # on (0, 2)
    y[3, :, 3, 1] = 0  # on neither
    y[4, channels // 2, 4, 4] = 1e-38
    y[5] = NAN
    expected = (y[:, :, begin::step, begin::step] > 0).any(1).flatten(1).all(1).float()
    assert torch.equal(active_everywhere(y, begin, step), expected)
    assert torch.equal(active_everywhere(y.contiguous(memory_format=torch.channels_last), begin, step), expected)
    assert torch.equal(active_everywhere(y, begin, step, backend="torch"), expected)
    assert expected.tolist() == [1, float((begin, step) == (0, 7)), float(begin == 1), float(step != 1), 1, 0]


@pytest.mark.parametrize(("first", "last"), [(3, None), (0, 20), (17, 20), (5, 5), (-4, None)])
def test_some_of_the_channels(first: int, last: int | None) -> None:
    y = torch.zeros(37, 37, 3, 3)
    for channel in range(37):
        y[channel, channel] = 1
    expected = torch.zeros(37)
    expected[first:last] = 1
    assert torch.equal(active_everywhere(y, 0, 1, first, last), expected)
    assert torch.equal(active_everywhere(y, 0, 1, first, last, backend="torch"), expected)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(BackendError, match="y must be"):
        active_everywhere(torch.zeros(2, 3, 4, 4, dtype=torch.bfloat16), 0, 1)
