"""The hooks engine on networks that other people wrote: torchvision's and timm's, with random weights."""

import copy
from typing import Any

import pytest
import torch

from gaia_fast import GaiaA, GaiaZ, reference
from gaia_fast.errors import LayerError

from architectures import create

# Name -> the number of inspected layers, the head, and the module that A_last comes from.
SCORED = {
    "torchvision/resnet18": (20, "fc", "avgpool"),
    "torchvision/densenet121": (121, "classifier", "features"),
    "torchvision/vgg11_bn": (8, "classifier.6", "avgpool"),
    "torchvision/mobilenet_v2": (52, "classifier.1", "features"),
    "torchvision/googlenet": (57, "fc", "avgpool"),
    "torchvision/shufflenet_v2_x0_5": (56, "fc", "conv5"),
    "torchvision/efficientnet_b0": (49, "classifier.1", "avgpool"),
    "timm/resnetv2_50x1_bit": (49, "head.fc", "head.drop"),
    "timm/seresnet18": (20, "fc", "global_pool.pool"),
    "timm/densenet121": (121, "classifier", "global_pool.pool"),
    "timm/efficientnet_b0": (49, "classifier", "global_pool.pool"),
    "timm/regnety_002": (44, "head.fc", "head.global_pool.pool"),
    "timm/mobilenetv3_small_050": (34, "classifier", "act2"),
}
REFUSED = ["torchvision/convnext_tiny", "torchvision/squeezenet1_0", "timm/vit_tiny_patch16_224"]


@pytest.mark.parametrize("name", SCORED)
def test_scores_equal_the_reference(name: str) -> None:
    model, x = create(name), torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    double = copy.deepcopy(model).double()
    for detector, method in ((GaiaZ, reference.gaia_z), (GaiaA, reference.gaia_a)):
        truth = method(double, x.double()).score
        plain = (method(model, x).score.double() / truth - 1).abs().max()
        error = (detector(model)(x).double() / truth - 1).abs().max()
        # 1e-5, unless plain PyTorch in float32 is itself further off on this network.
        assert error <= max(1e-5, 2 * float(plain))
    plan = GaiaA(model).plan(x)
    assert (len(plan.maps), plan.head, plan.last) == SCORED[name]


@pytest.mark.parametrize("name", REFUSED)
def test_networks_without_norms_over_maps_are_refused_with_the_fix(name: str) -> None:
    with pytest.raises(LayerError, match=r"no normalisation layer .* layers=\[\.\.\.\]"):
        GaiaZ(create(name))


def test_any_layers_can_be_named_where_there_are_no_norms() -> None:
    model = create("torchvision/squeezenet1_0")
    x = torch.randn(2, 3, 64, 64)
    options: dict[str, Any] = {"layers": ["features.7", "features.12"], "head": "classifier.1"}
    truth = reference.gaia_a(copy.deepcopy(model).double(), x.double(), **options).score
    assert (GaiaA(model, **options)(x) / truth - 1).abs().max() < 1e-5
