"""The hooks engine on networks that other people wrote: torchvision's and timm's, with random weights."""

import ast
import copy
import re
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
    "torchvision/convnext_tiny": (5, "classifier.2", "classifier.0"),
    "timm/convnext_atto": (17, "head.fc", "head.norm"),
    "timm/convnextv2_atto": (17, "head.fc", "head.norm"),
}
# What the refusal of a network without norms proposes, and where it is deep, how many of how many.
WITHOUT_NORMS = {
    "torchvision/squeezenet1_1": "convolutions', or the last 8 of the 25, ",
    "torchvision/vgg11": "convolutions', which is ",
    "timm/test_nfnet": "convolutions', or the last 8 of the 20, ",
}


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


@pytest.mark.parametrize("name", WITHOUT_NORMS)
def test_networks_without_norms_are_scored_on_the_layers_that_their_refusal_proposes(name: str) -> None:
    model, x = create(name), torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with pytest.raises(LayerError, match=rf"layers='{WITHOUT_NORMS[name]}") as refused:
        GaiaZ(model)
    found = re.search(r"layers=(\[.*\])", str(refused.value))
    assert found is not None
    layers = ast.literal_eval(found[1])
    truth = reference.gaia_z(copy.deepcopy(model).double(), x.double(), layers).score
    plain = (reference.gaia_z(model, x, layers).score.double() / truth - 1).abs().max()
    assert (GaiaZ(model, layers=layers)(x).double() / truth - 1).abs().max() <= max(1e-5, 2 * float(plain))


@pytest.mark.parametrize(("name", "size", "maps"), [("timm/test_vit", 160, 13), ("torchvision/swin_t", 32, 29)])
def test_transformers_are_scored_on_the_tokens_that_their_refusal_proposes(name: str, size: int, maps: int) -> None:
    model, x = create(name), torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with pytest.raises(LayerError, match=r"layers='token_maps', which is experimental"):
        GaiaZ(model)
    detector = GaiaA(model, layers="token_maps", fusion="inner")
    plan = detector.plan(x)
    assert len(plan.maps) == maps
    layers = [each.name for each in plan.maps]
    truth = reference.gaia_a(copy.deepcopy(model).double(), x.double(), layers, fusion="inner").score
    assert (detector(x).double() / truth - 1).abs().max() < 1e-5


def test_any_layers_can_be_named_where_there_are_no_norms() -> None:
    model = create("torchvision/squeezenet1_0")
    x = torch.randn(2, 3, 64, 64)
    options: dict[str, Any] = {"layers": ["features.7", "features.12"], "head": "classifier.1"}
    truth = reference.gaia_a(copy.deepcopy(model).double(), x.double(), **options).score
    assert (GaiaA(model, **options)(x) / truth - 1).abs().max() < 1e-5
