from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gaia_fast.baselines import SplitNetwork
from gaia_fast.errors import LayerError
from gaia_fast.models import digits_resnet, resnet18, wrn_40_2
from gaia_fast.models.bit import BitResNetV2


class FlattenedMaps(nn.Module):
    """A head that reads all positions: its features are no means."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4 * 8 * 8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.norm(self.conv(x))).flatten(1))


class NoBias(FlattenedMaps):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(x)).relu_().mean((2, 3)))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "pooled by a module": (wrn_40_2, 32),
    "pooled by a function": (resnet18, 32),
    "a convolution as the head": (lambda: BitResNetV2((1, 1), 7, width=32), 64),
    "trained": (lambda: digits_resnet(pretrained=True), 32),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_head_and_features_give_the_logits(name: str) -> None:
    make, side = NETWORKS[name]
    model = make().eval()
    images = torch.randn(3, 3, side, side)
    network = SplitNetwork(model, images[:1])
    found = network.represent(images)
    with torch.no_grad():
        torch.testing.assert_close(found.logits, model(images))
    torch.testing.assert_close(network.head(found.features), found.logits, rtol=1e-4, atol=1e-4)
    assert found.features.shape == (3, network.head.in_features)


@pytest.mark.parametrize("name", NETWORKS)
def test_maps_are_what_the_features_are_means_of(name: str) -> None:
    make, side = NETWORKS[name]
    model = make().eval()
    images = torch.randn(3, 3, side, side)
    network = SplitNetwork(model, images[:1])
    maps = network.feature_maps(images)
    found = network.represent(images)
    assert maps.ndim == 4
    assert maps.shape[2] > 1
    torch.testing.assert_close(maps.mean((2, 3)), found.features, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(network.logits_of_maps(maps), found.logits, rtol=1e-3, atol=1e-4)


def test_features_that_are_no_means() -> None:
    network = SplitNetwork(FlattenedMaps().eval(), torch.randn(1, 3, 8, 8))
    assert network.represent(torch.randn(2, 3, 8, 8)).features.shape == (2, 256)
    with pytest.raises(LayerError, match="'fc' of FlattenedMaps"):
        network.feature_maps(torch.randn(2, 3, 8, 8))


def test_maps_that_no_module_returns() -> None:
    """The ReLU is a function's, so the maps behind it are not had."""
    network = SplitNetwork(NoBias().eval(), torch.randn(1, 3, 8, 8))
    assert not network.head.bias.any()
    with pytest.raises(LayerError, match="not the mean over space"):
        network.feature_maps(torch.randn(2, 3, 8, 8))


def test_leaves_the_model_as_it_was() -> None:
    model = digits_resnet(pretrained=True)
    network = SplitNetwork(model, torch.rand(1, 3, 32, 32))
    network.represent(torch.rand(1, 3, 32, 32))
    network.feature_maps(torch.rand(1, 3, 32, 32))
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())
    assert all(each.grad is None and each.requires_grad for each in model.parameters())


def test_a_network_in_training_is_refused() -> None:
    with pytest.raises(RuntimeError, match="eval"):
        SplitNetwork(digits_resnet().train(), torch.rand(1, 3, 32, 32))
