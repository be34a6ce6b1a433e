"""Networks that other people wrote, torchvision's and timm's, with random weights."""

import warnings

import pytest
import torch
from torch import nn

import torchvision_schemas  # noqa: F401  (before torchvision)

torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed (see `make test`)")
timm = pytest.importorskip("timm", reason="timm is not installed (see `make test`)")


def create(name: str) -> nn.Module:
    library, architecture = name.split("/")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # googlenet announces another initialisation
        factory = torchvision.models.get_model if library == "torchvision" else timm.create_model
        model = factory(architecture)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            if module.weight is not None:  # timm begins training with residual branches at zero, and nobody ends there
                module.weight.data[module.weight == 0] = 1
        elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)  # the sum of what one with equal weights gives is constant
    return model.eval()
