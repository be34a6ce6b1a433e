from collections.abc import Callable

import pytest
import torch

from gaia_fast.models import resnet18, resnet34
from gaia_fast.models.resnet import BasicBlock, ResNet

BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def block_names(prefix: str, projection: bool) -> set[str]:
    names = {f"{prefix}.conv1.weight", f"{prefix}.conv2.weight"}
    names |= {f"{prefix}.{bn}.{part}" for bn in ("bn1", "bn2") for part in BN}
    if projection:
        names |= {f"{prefix}.shortcut.0.weight"} | {f"{prefix}.shortcut.1.{part}" for part in BN}
    return names


@pytest.mark.parametrize(("factory", "blocks"), [(resnet18, (2, 2, 2, 2)), (resnet34, (3, 4, 6, 3))])
def test_state_dict_names_and_shapes(factory: Callable[[int], ResNet], blocks: tuple[int, ...]) -> None:
    with torch.device("meta"):
        state = factory(100).state_dict()
    expected = {"conv1.weight", "linear.weight", "linear.bias"} | {f"bn1.{part}" for part in BN}
    for stage, count in enumerate(blocks, start=1):
        for i in range(count):
            expected |= block_names(f"layer{stage}.{i}", projection=stage > 1 and i == 0)
    assert set(state) == expected
    assert state["conv1.weight"].shape == (64, 3, 3, 3)
    assert state["layer2.0.shortcut.0.weight"].shape == (128, 64, 1, 1)
    assert state["layer4.1.conv2.weight"].shape == (512, 512, 3, 3)
    assert state["linear.weight"].shape == (100, 512)


def test_full_size_forward() -> None:
    with torch.inference_mode():
        assert resnet18().eval()(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_resolution_halves_after_the_first_stage_and_the_last_stage_is_the_last_map() -> None:
    model = ResNet((1, 1, 1, 1), num_classes=7, width=4).eval()
    maps = []
    for name, module in model.named_modules():
        if name:
            module.register_forward_hook(lambda _, __, out, name=name: maps.append((name, tuple(out.shape))))
    model(torch.randn(2, 3, 32, 32))
    shapes = dict(maps)
    assert [shapes[f"layer{s}"] for s in (1, 2, 3, 4)] == [(2, 4, 32, 32), (2, 8, 16, 16), (2, 16, 8, 8), (2, 32, 4, 4)]
    assert [name for name, shape in maps if len(shape) == 4][-1] == "layer4"


def test_block_against_its_formula() -> None:
    torch.manual_seed(0)
    block = BasicBlock(3, 5, stride=2).eval()
    block.get_buffer("shortcut.1.running_mean").normal_()
    x = torch.randn(2, 3, 8, 8)
    inner = block.bn1(block.conv1(x)).clamp(min=0)
    expected = (block.bn2(block.conv2(inner)) + block.shortcut[1](block.shortcut[0](x))).clamp(min=0)
    assert torch.equal(block(x), expected)
    assert (expected == 0).any()

    same = BasicBlock(3, 3, stride=1).eval()
    assert len(same.shortcut) == 0
    torch.nn.init.zeros_(same.conv2.weight)
    assert torch.equal(same(x), x.clamp(min=0))
