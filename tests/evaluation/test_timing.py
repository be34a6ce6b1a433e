"""What the timing reports, with a clock that the test holds."""

import pytest
import torch

from gaia_fast import GaiaZ
from gaia_fast.evaluation import timing

from zoo import build, images


def test_what_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Median of the forward pass, and median of the ratios of each turn; the first turn warms up."""
    seconds = iter([9.0, 9.0, 1.0, 2.0, 2.0, 8.0, 4.0, 12.0])
    monkeypatch.setattr(timing, "_seconds", lambda run: next(seconds))
    found = timing.measure_times({"gaia-z": GaiaZ(build("vgg_like"))}, images(2), repeats=3)
    assert (found.forward_ms, found.ratios) == (2000.0, {"gaia-z": 3.0})
    assert (found.images, found.repeats, found.threads) == (2, 3, torch.get_num_threads())


def test_a_real_clock() -> None:
    found = timing.measure_times({"gaia-z": GaiaZ(build("vgg_like"))}, images(2), repeats=2)
    assert found.forward_ms > 0
    assert found.ratios["gaia-z"] > 0
