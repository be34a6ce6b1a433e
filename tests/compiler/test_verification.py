"""Programs held to the reference."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gaia_fast.compiler.verification import Found, Verifier, rounding
from gaia_fast.inspection.layers import inspected_layers
from gaia_fast.inspection.requests import Request
from gaia_fast.method import Method


def test_what_is_allowed_follows_either_setting_of_convolutions() -> None:
    """PyTorch has two settings for TF32, and the older cannot be read once the newer has been used."""
    logits: Any = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32)
    convolutions: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = convolutions.fp32_precision
    try:
        for precision, eps in (("tf32", 2.0**-11), ("ieee", 2.0**-23)):
            convolutions.fp32_precision = precision
            assert rounding(logits) == eps
    finally:
        convolutions.fp32_precision = before


class Sharp(nn.Module):
    """One unit of four that is zero to rounding for the first image: its score is half as large again if it opens."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc = nn.BatchNorm2d(1, eps=0), nn.Linear(1, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.norm(x)).mean((2, 3)))


def test_an_image_whose_score_hangs_on_rounding_is_held_to_what_rounding_does() -> None:
    torch.manual_seed(0)
    model = Sharp().eval()
    nn.init.constant_(model.norm.bias, -1)
    x = torch.tensor([[[[3.0, 2.0], [1.0 + 1e-7, -5.0]]], [[[3.0, 2.0], [1.5, -5.0]]]])
    verifier = Verifier(model, [Request(Method("gaia-z"), tuple(inspected_layers(model)))], None)
    own = verifier.reference(x)
    (expected,) = own.scores
    assert expected.tolist() == [0.75, 0.75]
    for image, fine in ((0, True), (1, False)):
        score = expected.clone()
        score[image] = 0.5
        off, allowed = verifier.error(Found(own.logits, (score,), (None,)), x, own)
        assert off == pytest.approx(1 / 3)
        assert (off <= allowed) == fine
    off, allowed = verifier.error(Found(own.logits * torch.nan, own.scores, (None,)), x, own)
    assert not off <= allowed


class SharpBesideSteady(Sharp):
    """With a norm beside it all of whose units are active."""

    def __init__(self) -> None:
        super().__init__()
        self.steady, self.fc = nn.BatchNorm2d(1), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.norm(x), self.steady(x) + 9], dim=1)
        return self.fc(torch.relu(both).mean((2, 3)))


def test_what_one_score_loses_to_rounding_is_no_leave_for_another() -> None:
    torch.manual_seed(0)
    model = SharpBesideSteady().eval()
    nn.init.constant_(model.norm.bias, -1)
    x = torch.tensor([[[[3.0, 2.0], [1.0 + 1e-7, -5.0]]]])
    requests = [Request(Method("gaia-z"), tuple(inspected_layers(model, [name]))) for name in ("norm", "steady")]
    verifier = Verifier(model, requests, None)
    own = verifier.reference(x)
    sharp, steady = own.scores
    off, allowed = verifier.error(Found(own.logits, (sharp * (2 / 3), steady), (None, None)), x, own)
    assert off <= allowed
    off, allowed = verifier.error(Found(own.logits, (sharp, steady * 1.2), (None, None)), x, own)
    assert off == pytest.approx(0.2, rel=1e-3)
    assert not off <= allowed
