import pytest
import torch

from gaia_fast.data.digits import held_out_digits
from gaia_fast.errors import WeightsError
from gaia_fast.models import digits_resnet


def test_shipped_weights_recognise_held_out_digits() -> None:
    model = digits_resnet(pretrained=True)
    assert not model.training
    images, labels = held_out_digits()
    with torch.inference_mode():
        accuracy = (model(images).argmax(1) == labels).float().mean()
    assert accuracy >= 0.98


def test_untrained_network() -> None:
    torch.manual_seed(0)
    model = digits_resnet(num_classes=4)
    assert model.training
    assert model.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 4)
    assert set(digits_resnet().state_dict()) == set(digits_resnet(pretrained=True).state_dict())
    assert not torch.equal(digits_resnet().conv1.weight, digits_resnet(pretrained=True).conv1.weight)


def test_shipped_weights_know_ten_classes() -> None:
    with pytest.raises(WeightsError, match=r"linear\.weight is \(10, 64\), the model wants \(7, 64\)"):
        digits_resnet(7, pretrained=True)
