import pytest
import torch
from torch import nn

from gaia_fast.compiler.pipeline import FOLD_CONSTANTS

import zoo
from graphs import captured, fold, targets

aten = torch.ops.aten


@pytest.mark.parametrize("name", ["strided_shortcut", "dense_like", "plain_norm", "small_bit", "convolution_head"])
def test_folding_changes_nothing_but_the_last_bits(name: str) -> None:
    model, x = zoo.build(name, torch.float64), zoo.images(3, zoo.image_size(name), torch.float64)
    found = captured(model, x)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fold(found.graph)
    assert aten._native_batch_norm_legit_no_training.default not in targets(found.graph)
    with torch.no_grad():
        torch.testing.assert_close(found.graph(x), model(x.clone()), rtol=1e-11, atol=1e-12)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_norm_behind_its_own_convolution_disappears_and_another_becomes_a_factor_and_a_shift() -> None:
    found = captured(zoo.build("strided_shortcut"), zoo.images(2))
    fold(found.graph)
    assert aten.mul.Tensor not in targets(found.graph)  # four norms, each behind a convolution
    found = captured(zoo.build("dense_like"), zoo.images(2))
    fold(found.graph)
    assert targets(found.graph).count(aten.mul.Tensor) == 4  # norms of concatenated maps


def test_a_convolution_that_others_read_too_keeps_its_weights() -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return self.fc((self.norm(y) + y).relu().mean((2, 3)))

    model, x = Read().eval(), zoo.images(2)
    assert model.norm.running_mean is not None
    model.norm.running_mean.fill_(0.5)
    found = captured(model, x)
    fold(found.graph)
    with torch.no_grad():
        torch.testing.assert_close(found.graph(x), model(x), rtol=1e-5, atol=1e-6)


def test_what_weights_alone_decide_is_computed_once() -> None:
    """BiT standardises its weights at every call."""
    found = captured(zoo.build("small_bit"), zoo.images(2, 32))
    before = len(targets(found.graph))
    FOLD_CONSTANTS(found.graph)
    left = targets(found.graph)
    assert len(left) < before
    assert aten.var_mean.correction not in left
    assert aten.var.correction not in left
    constants = [node for node in found.graph.graph.nodes if node.op == "get_attr"]
    assert len({node.target for node in constants}) == len(constants)
    assert not list(found.graph.parameters())
