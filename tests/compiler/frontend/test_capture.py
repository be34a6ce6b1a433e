import pytest
import torch
from torch import Tensor, nn

from gaia_fast.compiler.ir.marks import LAST, MAP, PHI, marks
from gaia_fast.errors import LayerError

import zoo
from graphs import captured


@pytest.mark.parametrize("name", ["strided_shortcut", "shared_norm", "norm_act", "vgg_like", "small_bit"])
def test_every_inspected_map_is_marked_and_logits_are_the_models(name: str) -> None:
    model, x = zoo.build(name), zoo.images(3, zoo.image_size(name))
    found = captured(model, x)
    with torch.no_grad():
        expected = model(x.clone())
        assert torch.equal(found.graph(x), expected)
    nodes = marks(found.graph.graph, MAP)
    assert [node.args[2] for node in nodes] == list(range(len(found.maps)))
    for node, each in zip(nodes, found.maps, strict=True):
        assert node.meta["val"].shape[1:] == (each.channels, each.height, each.width)
    assert len(marks(found.graph.graph, PHI)) == 1
    assert marks(found.graph.graph, LAST)
    assert found.dynamic


def test_a_module_called_twice_is_two_maps() -> None:
    found = captured(zoo.build("shared_norm"), zoo.images(2))
    assert [each.name for each in found.maps] == ["norm", "norm (call 2)"]


def test_maps_that_are_never_made_are_an_error() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused, self.fc = nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.used(x).mean((2, 3)))

    with pytest.raises(LayerError, match="'unused' made no feature map"):
        captured(Unused().eval(), zoo.images(2), ["unused"], with_head=False)


def test_the_model_is_left_as_it_was() -> None:
    model, x = zoo.build("strided_shortcut"), zoo.images(2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    captured(model, x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_batch_size_written_into_the_model_is_kept() -> None:
    model, x = zoo.FixedBatch(3).eval(), zoo.images(3)
    found = captured(model, x, with_head=False)
    assert not found.dynamic
    with torch.no_grad():
        assert torch.equal(found.graph(x), model(x))
