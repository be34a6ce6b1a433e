import os
from pathlib import Path

import pytest
import torch

from gaia_fast.data import load_images
from gaia_fast.errors import ArgumentError
from gaia_fast.models import load_weights, wrn_40_2
from gaia_fast.models.wide_resnet import PreActBlock, WideResNet

BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def test_state_dict_names_and_shapes() -> None:
    state = wrn_40_2(100).state_dict()
    expected = {"conv1.weight", "fc.weight", "fc.bias"} | {f"bn1.{part}" for part in BN}
    for stage in (1, 2, 3):
        expected.add(f"block{stage}.layer.0.convShortcut.weight")
        for i in range(6):
            prefix = f"block{stage}.layer.{i}"
            expected |= {f"{prefix}.conv1.weight", f"{prefix}.conv2.weight"}
            expected |= {f"{prefix}.{bn}.{part}" for bn in ("bn1", "bn2") for part in BN}
    assert set(state) == expected
    assert state["conv1.weight"].shape == (16, 3, 3, 3)
    assert state["block1.layer.0.convShortcut.weight"].shape == (32, 16, 1, 1)
    assert state["block3.layer.0.bn1.weight"].shape == (64,)
    assert state["block3.layer.5.conv2.weight"].shape == (128, 128, 3, 3)
    assert state["fc.weight"].shape == (100, 128)


def test_the_pool_is_the_last_module_that_returns_a_map() -> None:
    model = WideResNet(10, 1, num_classes=7).eval()
    maps = []
    for name, module in model.named_modules():
        if name:
            module.register_forward_hook(lambda _, __, out, name=name: maps.append((name, tuple(out.shape))))
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    shapes = dict(maps)
    assert [shapes[f"block{s}"] for s in (1, 2, 3)] == [(2, 16, 32, 32), (2, 32, 16, 16), (2, 64, 8, 8)]
    assert [entry for entry in maps if len(entry[1]) == 4][-1] == ("pool", (2, 64, 1, 1))


def test_a_widening_block_takes_its_shortcut_behind_the_norm_and_others_before_it() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 8, 8)
    widening = PreActBlock(4, 6, stride=2).eval()
    assert widening.convShortcut is not None
    torch.nn.init.zeros_(widening.conv2.weight)
    assert torch.equal(widening(x), widening.convShortcut(widening.bn1(x).clamp(min=0)))

    same = PreActBlock(4, 4, stride=1).eval()
    assert same.convShortcut is None
    a = same.bn1(x).clamp(min=0)
    assert torch.equal(same(x), same.conv2(same.bn2(same.conv1(a)).clamp(min=0)) + x)


@pytest.mark.parametrize("depth", [4, 11, 41])
def test_impossible_depth(depth: int) -> None:
    with pytest.raises(ArgumentError, match="6n \\+ 4"):
        WideResNet(depth, 2, 10)


def test_trained_weights_predict_cifar10() -> None:
    shared = Path(os.environ.get("GAIA_FAST_SHARED", Path(__file__).parents[3] / "shared" / "data"))
    weights, images = shared / "wrn_40_2_cifar10.safetensors", shared / "cifar10_test.npz"
    if not (weights.is_file() and images.is_file()):
        pytest.skip(f"no {weights.name} and {images.name} in {shared}; set GAIA_FAST_SHARED to their folder")
    model = load_weights(wrn_40_2(), weights).eval()
    source = load_images(images, "cifar10")
    batch = next(source.batches(200))
    with torch.inference_mode():
        accuracy = (model(batch.images).argmax(1) == batch.labels).float().mean()
    assert 0.85 < accuracy < 0.94  # 89.15 % on all 2000; a wrong shortcut or normalisation costs far more
