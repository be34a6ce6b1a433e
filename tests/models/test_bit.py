from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from gaia_fast.errors import WeightsError
from gaia_fast.models import bit_s_r101x1, load_weights
from gaia_fast.models.bit import BitResNetV2, PreActBottleneck, StdConv2d


def tiny() -> BitResNetV2:
    return BitResNetV2((1, 2), num_classes=5, width=32)


def google_arrays(rng: np.random.Generator) -> dict[str, Any]:
    """The tensors of `tiny` under Google's names, written out by hand from their file layout."""
    arrays: dict[str, Any] = {}

    def kernel(name: str, h: int, i: int, o: int) -> None:
        arrays[f"resnet/{name}/kernel"] = rng.normal(size=(h, h, i, o)).astype(np.float32)

    def norm(name: str, channels: int) -> None:
        for part in ("gamma", "beta"):
            arrays[f"resnet/{name}group_norm/{part}"] = rng.normal(size=channels).astype(np.float32)

    kernel("root_block/standardized_conv2d", 7, 3, 32)
    for unit, i, o in (("block1/unit01", 32, 128), ("block2/unit01", 128, 256), ("block2/unit02", 256, 256)):
        inner = o // 4
        norm(f"{unit}/a/", i)
        kernel(f"{unit}/a/standardized_conv2d", 1, i, inner)
        norm(f"{unit}/b/", inner)
        kernel(f"{unit}/b/standardized_conv2d", 3, inner, inner)
        norm(f"{unit}/c/", inner)
        kernel(f"{unit}/c/standardized_conv2d", 1, inner, o)
        if unit.endswith("01"):
            kernel(f"{unit}/a/proj/standardized_conv2d", 1, i, o)
    norm("", 256)
    kernel("head/conv2d", 1, 256, 5)
    arrays["resnet/head/conv2d/bias"] = rng.normal(size=5).astype(np.float32)
    return arrays


def test_full_size_state_dict_names_and_shapes() -> None:
    with torch.device("meta"):
        state = bit_s_r101x1().state_dict()
    expected = {
        "root.conv.weight",
        "before_head.gn.weight",
        "before_head.gn.bias",
        "head.conv.weight",
        "head.conv.bias",
    }
    for block, count in enumerate((3, 4, 23, 3), start=1):
        expected.add(f"body.block{block}.unit01.downsample.weight")
        for unit in range(1, count + 1):
            prefix = f"body.block{block}.unit{unit:02d}"
            for i in (1, 2, 3):
                expected |= {f"{prefix}.conv{i}.weight", f"{prefix}.gn{i}.weight", f"{prefix}.gn{i}.bias"}
    assert set(state) == expected
    assert state["root.conv.weight"].shape == (64, 3, 7, 7)
    assert state["body.block1.unit01.conv1.weight"].shape == (64, 64, 1, 1)
    assert state["body.block3.unit23.conv2.weight"].shape == (256, 256, 3, 3)
    assert state["body.block4.unit01.downsample.weight"].shape == (2048, 1024, 1, 1)
    assert state["head.conv.weight"].shape == (1000, 2048, 1, 1)
    assert sum(tensor.numel() for tensor in state.values()) == 44_541_480  # as published for R101x1 with 1000 classes


def test_maps_and_logits() -> None:
    model = tiny().eval()
    maps = []
    for name, module in model.named_modules():
        if name:
            module.register_forward_hook(lambda _, __, out, name=name: maps.append((name, tuple(out.shape))))
    logits = model(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 5)
    shapes = dict(maps)
    assert shapes["root"] == (2, 32, 16, 16)
    assert shapes["body.block1"] == (2, 128, 16, 16)
    assert shapes["body.block2"] == (2, 256, 8, 8)
    before = [name for name, shape in maps if len(shape) == 4 and not name.startswith("head")]
    assert before[-2:] == ["before_head.pool", "before_head"]
    assert shapes["before_head.pool"] == (2, 256, 1, 1)


def test_convolution_standardises_its_weight() -> None:
    torch.manual_seed(0)
    conv = StdConv2d(3, 4, 3, stride=2, padding=1, bias=False).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    flat = conv.weight.detach().numpy().reshape(4, -1)
    weight = (flat - flat.mean(1, keepdims=True)) / np.sqrt(flat.var(1, keepdims=True) + 1e-10)
    expected = F.conv2d(x, torch.from_numpy(weight.reshape(4, 3, 3, 3)), stride=2, padding=1)
    torch.testing.assert_close(conv(x), expected)
    torch.nn.init.constant_(conv.weight, 3.0)
    assert torch.equal(conv(x), torch.zeros_like(expected))


def test_root_pads_the_max_pool_with_zeros() -> None:
    model = tiny().eval()
    pad_and_pool = model.root[1:]
    x = -torch.ones(1, 2, 4, 4)
    assert pad_and_pool(x)[0, 0].tolist() == [[0.0, 0.0], [0.0, -1.0]]


def test_unit_against_its_formula() -> None:
    torch.manual_seed(0)
    unit = PreActBottleneck(32, 128, stride=2).eval()
    x = torch.randn(2, 32, 8, 8)
    assert unit.downsample is not None
    a = unit.gn1(x).clamp(min=0)
    inner = unit.conv2(unit.gn2(unit.conv1(a)).clamp(min=0))
    expected = unit.conv3(unit.gn3(inner).clamp(min=0)) + unit.downsample(a)
    torch.testing.assert_close(unit(x), expected)

    same = PreActBottleneck(128, 128, stride=1).eval()
    assert same.downsample is None
    x = torch.randn(2, 128, 4, 4)
    torch.nn.init.constant_(same.conv3.weight, 1.0)
    assert torch.equal(same(x), x)


def test_google_npz_fills_every_tensor(tmp_path: Path) -> None:
    arrays = google_arrays(np.random.default_rng(0))
    np.savez(tmp_path / "bit.npz", **arrays)
    state = load_weights(tiny(), tmp_path / "bit.npz").state_dict()

    def same(name: str, google: str, kernel: bool = False) -> None:
        array = arrays[google]
        np.testing.assert_array_equal(state[name].numpy(), np.einsum("hwio->oihw", array) if kernel else array)

    same("root.conv.weight", "resnet/root_block/standardized_conv2d/kernel", kernel=True)
    same("body.block1.unit01.conv1.weight", "resnet/block1/unit01/a/standardized_conv2d/kernel", kernel=True)
    same("body.block2.unit02.conv2.weight", "resnet/block2/unit02/b/standardized_conv2d/kernel", kernel=True)
    same("body.block2.unit01.conv3.weight", "resnet/block2/unit01/c/standardized_conv2d/kernel", kernel=True)
    same("body.block2.unit01.downsample.weight", "resnet/block2/unit01/a/proj/standardized_conv2d/kernel", kernel=True)
    same("body.block2.unit02.gn1.weight", "resnet/block2/unit02/a/group_norm/gamma")
    same("body.block2.unit02.gn3.bias", "resnet/block2/unit02/c/group_norm/beta")
    same("before_head.gn.weight", "resnet/group_norm/gamma")
    same("before_head.gn.bias", "resnet/group_norm/beta")
    same("head.conv.weight", "resnet/head/conv2d/kernel", kernel=True)
    same("head.conv.bias", "resnet/head/conv2d/bias")


def test_google_npz_that_does_not_fit(tmp_path: Path) -> None:
    arrays = google_arrays(np.random.default_rng(0))
    arrays["resnet/block2/unit03/a/group_norm/gamma"] = np.zeros(256, np.float32)
    arrays["elsewhere"] = np.zeros(1, np.float32)
    del arrays["resnet/group_norm/gamma"]
    np.savez(tmp_path / "bit.npz", **arrays)
    with pytest.raises(
        WeightsError, match=r"bit\.npz.*1 missing \(before_head\.gn\.weight\); 2 unexpected.*unit03\.gn1"
    ):
        load_weights(tiny(), tmp_path / "bit.npz")


def test_npz_of_objects_is_never_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "objects.npz", a=np.array([{}], dtype=object))
    with pytest.raises(WeightsError, match=r"objects\.npz holds more than tensors"):
        load_weights(tiny(), tmp_path / "objects.npz")


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"no archive" * 9, lambda b: b[:-200] + b[-190:]]
)
def test_damaged_npz(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "bit.npz"
    np.savez(path, a=np.zeros(1000, np.float32))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(WeightsError, match=r"bit\.npz cannot be read as an \.npz archive \((BadZipFile|OSError)"):
        load_weights(tiny(), path)
