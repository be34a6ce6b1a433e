import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from gaia_fast.errors import WeightsError
from gaia_fast.models import ARCHITECTURES, load_weights
from gaia_fast.models.resnet import ResNet


def tiny(num_classes: int = 3, width: int = 2) -> ResNet:
    return ResNet((1,), num_classes, width)


@pytest.fixture
def trained() -> ResNet:
    torch.manual_seed(1)
    model = tiny()
    model.get_buffer("bn1.running_mean").normal_()
    model.get_buffer("bn1.num_batches_tracked").fill_(7)
    return model


def assert_same(model: nn.Module, other: nn.Module) -> None:
    theirs = other.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".ckpt", ".tar", ".PT"])
def test_round_trip(tmp_path: Path, trained: ResNet, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(trained.state_dict(), path)
    model = tiny()
    assert load_weights(model, str(path)) is model
    assert model.training
    assert_same(model, trained)


def test_legacy_pt(tmp_path: Path, trained: ResNet) -> None:
    torch.save(trained.state_dict(), tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    assert_same(load_weights(tiny(), tmp_path / "w.pt"), trained)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
def test_wrapped_and_prefixed(tmp_path: Path, trained: ResNet, key: str) -> None:
    state = {f"module._orig_mod.{name}": tensor for name, tensor in trained.state_dict().items()}
    torch.save({"epoch": 3, key: state, "optimizer": {"state": {}}}, tmp_path / "w.pt")
    assert_same(load_weights(tiny(), tmp_path / "w.pt"), trained)


def test_into_a_wrapped_model(tmp_path: Path, trained: ResNet) -> None:
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    model = tiny()
    load_weights(nn.DataParallel(model), tmp_path / "w.safetensors")
    assert_same(model, trained)


def test_a_model_of_another_dtype_keeps_it(tmp_path: Path, trained: ResNet) -> None:
    save_file(
        {k: v.half() if v.is_floating_point() else v for k, v in trained.state_dict().items()},
        tmp_path / "w.safetensors",
    )
    model = load_weights(tiny().double(), tmp_path / "w.safetensors")
    assert model.linear.weight.dtype == torch.float64
    assert torch.equal(model.linear.weight, trained.linear.weight.half().double())


def test_num_batches_tracked_may_be_missing(tmp_path: Path, trained: ResNet) -> None:
    state = {k: v for k, v in trained.state_dict().items() if not k.endswith("num_batches_tracked")}
    save_file(state, tmp_path / "w.safetensors")
    model = load_weights(tiny(), tmp_path / "w.safetensors")
    assert torch.equal(model.get_buffer("bn1.running_mean"), trained.get_buffer("bn1.running_mean"))
    assert model.bn1.num_batches_tracked == 0


def test_missing_and_unexpected_names_change_nothing(tmp_path: Path, trained: ResNet) -> None:
    state = trained.state_dict()
    state["fc.weight"] = state.pop("linear.weight")
    save_file(state, tmp_path / "w.safetensors")
    model = tiny()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(
        WeightsError,
        match=r"w\.safetensors does not fit ResNet: 1 missing \(linear\.weight\); 1 unexpected \(fc\.weight\)\. Choose",
    ):
        load_weights(model, tmp_path / "w.safetensors")
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_long_lists_of_names_are_cut(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"conv1\.weight, bn1\.weight, bn1\.bias, bn1\.running_mean, and \d+ more\)"):
        load_weights(tiny(), tmp_path / "w.safetensors")


def test_wrong_shapes_change_nothing(tmp_path: Path, trained: ResNet) -> None:
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    model = tiny(num_classes=4)
    before = model.conv1.weight.clone()
    with pytest.raises(WeightsError, match=r"linear\.weight is \(3, 2\), the model wants \(4, 2\).*number of classes"):
        load_weights(model, tmp_path / "w.safetensors")
    assert torch.equal(model.conv1.weight, before)


def test_integer_weights_are_refused(tmp_path: Path, trained: ResNet) -> None:
    state = trained.state_dict()
    state["conv1.weight"] = (state["conv1.weight"] * 100).to(torch.int8)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"conv1\.weight is torch\.int8.*unquantised"):
        load_weights(tiny(), tmp_path / "w.safetensors")


class RunsCode:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return (pytest.fail, ("the file's code ran",))


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_modules_and_code_are_refused(tmp_path: Path, trained: ResNet, zipped: bool) -> None:
    for name, content in (("module.pt", trained), ("code.pt", {"state_dict": trained.state_dict(), "x": RunsCode()})):
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
        with pytest.raises(
            WeightsError, match=rf"{name} holds more than tensors \(\w.*save its state_dict\(\)"
        ) as raised:
            load_weights(tiny(), tmp_path / name)
        assert "weights_only" not in str(raised.value)  # torch's own message advises to switch it off


def test_another_pickle_protocol_is_named(tmp_path: Path, trained: ResNet) -> None:
    torch.save(trained.state_dict(), tmp_path / "w.pt", pickle_protocol=4)
    with pytest.raises(WeightsError, match=r"Unsupported operand 149; torch\.save must .* default pickle_protocol"):
        load_weights(tiny(), tmp_path / "w.pt")


def test_plain_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.pt").write_bytes(pickle.dumps({"x": RunsCode()}, protocol=2))
    with pytest.raises(WeightsError, match=r"p\.pt holds more than tensors"):
        load_weights(tiny(), tmp_path / "p.pt")


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "script.pt"))
    with pytest.raises(WeightsError, match=r"script\.pt holds more than tensors"):
        load_weights(tiny(), tmp_path / "script.pt")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".npz"])
def test_missing_empty_and_foreign_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    with pytest.raises(WeightsError, match=r"is not a file\. Check the path"):
        load_weights(tiny(), path)
    path.write_bytes(b"")
    with pytest.raises(WeightsError, match=r"is empty\. Download or save"):
        load_weights(tiny(), path)
    for text in (b"<html>404</html>", b"hello world, these are no weights"):
        path.write_bytes(text)
        with pytest.raises(WeightsError, match=rf"w{suffix} cannot be read as .* download or save the weights again"):
            load_weights(tiny(), path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".legacy.pt"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_truncated_files(tmp_path: Path, trained: ResNet, suffix: str, share: float) -> None:
    path = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        save_file(trained.state_dict(), path)
    else:
        torch.save(trained.state_dict(), path, _use_new_zipfile_serialization=suffix == ".pt")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(WeightsError, match=r"cannot be read as .* damaged, cut short"):
        load_weights(tiny(), path)


def test_unknown_suffix_and_folder(tmp_path: Path) -> None:
    (tmp_path / "w.h5").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"suffix '\.h5'.*\.safetensors, \.npz, \.pt"):
        load_weights(tiny(), tmp_path / "w.h5")
    with pytest.raises(WeightsError, match="is not a file"):
        load_weights(tiny(), tmp_path)


def test_contents_that_are_no_state_dict(tmp_path: Path) -> None:
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    with pytest.raises(WeightsError, match="holds a list, not a state dict"):
        load_weights(tiny(), tmp_path / "list.pt")
    torch.save({"epoch": 3, "weights": {"a": torch.zeros(2)}}, tmp_path / "odd.pt")
    with pytest.raises(WeightsError, match=r"'epoch': int, 'weights': dict.*under the key 'state_dict'"):
        load_weights(tiny(), tmp_path / "odd.pt")


def test_architectures_by_name() -> None:
    assert list(ARCHITECTURES) == ["resnet18", "resnet34", "wrn_40_2", "bit_s_r101x1", "digits_resnet"]
    with torch.device("meta"):
        for name, factory in ARCHITECTURES.items():
            model = factory(num_classes=13)
            head = list(model.state_dict().values())[-1]
            assert head.shape == (13,), name
