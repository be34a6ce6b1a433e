"""Programs held to the reference."""

from types import SimpleNamespace

import torch

from gaia_fast.compiled.verification import rounding


def test_what_is_allowed_follows_either_setting_of_convolutions() -> None:
    """PyTorch has two settings for TF32, and the older cannot be read once the newer has been used."""
    logits = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32)
    convolutions = torch.backends.cudnn.conv
    before = convolutions.fp32_precision
    try:
        for precision, eps in (("tf32", 2.0**-11), ("ieee", 2.0**-23)):
            convolutions.fp32_precision = precision
            assert rounding(logits) == eps
    finally:
        convolutions.fp32_precision = before
