"""Weights files, and models, that mean no good: each is refused by name, and the model stays as it was."""

import collections
import io
import json
import math
import os
import struct
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from gaia_fast.errors import WeightsError
from gaia_fast.models import load_weights

pytestmark = pytest.mark.usefixtures("deadline")


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2)).to(dtype).eval()


def good() -> dict[str, Tensor]:
    torch.manual_seed(4)
    state = network().state_dict()
    return collections.OrderedDict(
        (k, torch.rand_like(v) if v.is_floating_point() else v + 1) for k, v in state.items()
    )


def unchanged(model: nn.Module, path: str | Path, match: str) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if usual(tensor)}
    versions = {name: tensor._version for name, tensor in model.state_dict().items() if usual(tensor)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(WeightsError, match=match) as raised:
            load_weights(model, path)
    assert len(str(raised.value)) < 2000
    assert str(raised.value).isprintable()
    for name, tensor in model.state_dict().items():
        if name in before:
            assert torch.equal(tensor, before[name]), name
            assert tensor._version == versions[name] or "stays as it was" in str(raised.value)


def usual(tensor: object) -> bool:
    return (
        isinstance(tensor, torch.Tensor)
        and not nn.parameter.is_lazy(tensor)
        and tensor.layout == torch.strided
        and not tensor.is_meta
    )


def itself() -> dict[str, Any]:
    d: dict[str, Any] = {}
    d["state_dict"] = d
    return d


def each_other() -> dict[str, Any]:
    a: dict[str, Any] = {}
    b = {"model": a}
    a["state_dict"] = b
    return a


def with_itself_inside() -> dict[str, Any]:
    state: dict[str, Any] = dict(good())
    state["self"] = state
    return state


def wrapped(times: int) -> dict[str, Any]:
    d: dict[str, Any] = good()
    for _ in range(times):
        d = {"state_dict": d}
    return d


def changed(**changes: Tensor | Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    state = good()
    for name, change in changes.items():
        name = name.replace("__", ".")
        state[name] = change(state[name]) if callable(change) else change
    return state


def put(value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor.view(-1)[0] = value
        return tensor

    return change


def put64(tensor: Tensor) -> Tensor:
    return tensor.double() * 1e300


TORCH_FILES: dict[str, tuple[Callable[[], object], str]] = {
    "itself": (itself, "no tensors .'state_dict': dict"),
    "each other": (each_other, "no tensors"),
    "itself among tensors": (with_itself_inside, r"1 entries that are no tensors \('self': dict\)"),
    "100 wrappers": (lambda: wrapped(100), "no tensors"),
    "an empty state dict": (dict, "8 missing"),
    "integer keys": (lambda: dict([(0, torch.zeros(2)), *good().items()]), r"1 keys that are no names \(0\)"),
    "tuple keys": (lambda: {("0", "weight"): torch.zeros(2)}, "keys that are no names"),
    "None as key": (lambda: {None: torch.zeros(2)}, "keys that are no names"),
    "bytes as keys": (lambda: {b"0.weight": torch.zeros(2)}, "keys that are no names"),
    "integer keys alone": (lambda: dict(enumerate(good().values())), "keys that are no names"),
    "a wrapper that is a list": (lambda: {"state_dict": [good()]}, "'state_dict': list"),
    "a tensor": (lambda: torch.zeros(3), "holds a Tensor, not a state dict"),
    "None": (lambda: None, "holds a NoneType"),
    "sparse": (lambda: changed(**{"0__weight": lambda t: t.to_sparse()}), "layout torch.sparse_coo"),
    "sparse CSR": (lambda: changed(**{"3__weight": lambda t: t.to_sparse_csr()}), r"3\.weight .*sparse_csr"),
    "the last is sparse": (lambda: changed(**{"3__bias": lambda t: t.to_sparse()}), r"3\.bias is of the layout"),
    "meta": (lambda: changed(**{"3__weight": lambda t: t.to("meta")}), r"3\.weight is on the meta device"),
    "quantised": (
        lambda: changed(**{"3__weight": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)}),
        r"3\.weight is quantised",
    ),
    "nested": (
        lambda: changed(**{"3__bias": lambda _: torch.nested.nested_tensor([torch.zeros(1), torch.zeros(1)])}),
        r"3\.bias is nested",
    ),
    "jagged": (
        lambda: changed(
            **{"3__bias": lambda _: torch.nested.nested_tensor([torch.zeros(1)] * 2, layout=torch.jagged)}
        ),
        r"3\.bias is nested|cannot be read|more than tensors",
    ),
    "x beside module.x": (
        lambda: {**good(), "module.3.bias": torch.ones(2)},
        r"2 names for one tensor \(3\.bias, module\.3\.bias\)",
    ),
    "x beside _orig_mod.x": (lambda: {"_orig_mod.3.bias": torch.ones(2), **good()}, "names for one tensor"),
    "module.x beside module.module.x": (
        lambda: {"module.module.3.bias": torch.ones(2), **{f"module.{k}": v for k, v in good().items()}},
        "names for one tensor",
    ),
    "NaN": (lambda: changed(**{"3__weight": put(math.nan)}), r"3\.weight has 1 of 8 values that are NaN or infinite"),
    "infinity": (lambda: changed(**{"1__bias": put(math.inf)}), r"1\.bias has 1 of 4 values"),
    "minus infinity": (lambda: changed(**{"1__running_mean": put(-math.inf)}), r"1\.running_mean has 1 of 4"),
    "NaN in two": (
        lambda: changed(**{"0__bias": put(math.nan), "1__bias": put(math.inf)}),
        "2 tensors with unusable values",
    ),
    "all NaN": (lambda: {k: v * math.nan if v.is_floating_point() else v for k, v in good().items()}, "8 tensors"),
    "negative variance": (lambda: changed(**{"1__running_var": put(-1e-3)}), r"1\.running_var has variances below"),
    "infinite variance": (lambda: changed(**{"1__running_var": put(math.inf)}), r"1\.running_var has 1 of 4"),
    "float64 beyond float32": (lambda: changed(**{"3__bias": put64}), "infinite in torch.float32"),
    "complex": (lambda: changed(**{"3__weight": lambda t: t.cfloat()}), r"3\.weight is torch\.complex64"),
    "a complex counter": (
        lambda: changed(**{"1__num_batches_tracked": lambda t: t.cfloat()}),
        r"num_batches_tracked is torch\.complex64",
    ),
    "a counter of 2^64-1": (
        lambda: changed(**{"1__num_batches_tracked": torch.tensor(2**64 - 1, dtype=torch.uint64)}),
        r"num_batches_tracked has numbers that are none in torch\.int64",
    ),
    "a floating counter": (lambda: changed(**{"1__num_batches_tracked": lambda t: t.float()}), "wrong dtypes"),
    "boolean weights": (lambda: changed(**{"3__weight": lambda t: t > 0.5}), r"3\.weight is torch\.bool"),
    "0-d where 1-d": (lambda: changed(**{"3__bias": torch.tensor(1.0)}), r"3\.bias is \(\)"),
    "huge, expanded": (lambda: changed(**{"3__bias": torch.zeros(1).expand(2**50)}), r"3\.bias is \(112589"),
    "empty tensors": (lambda: changed(**{"3__bias": torch.zeros(0)}), r"3\.bias is \(0,\)"),
    "a name of a megabyte": (lambda: {**good(), "x" * 2**20: torch.zeros(1)}, "1 unexpected .xxx"),
    "a name that clears the terminal": (lambda: {**good(), "\x1b[2J\n\x07": torch.zeros(1)}, r"\('\\x1b\[2J"),
    "a thousand too many": (lambda: {**good(), **{f"x{i}": torch.zeros(1) for i in range(1000)}}, "1000 unexpected"),
    "a number among tensors": (lambda: {**good(), "epoch": 3}, "'epoch': int"),
    "None among tensors": (lambda: {**good(), "3.bias": None}, r"'3\.bias': NoneType"),
    "strings": (lambda: dict.fromkeys(good(), "tensor"), "entries that are no tensors"),
}  # fmt: skip


# torch itself writes arbitrary sizes, or numbers of another dtype, for these into its older format.
ZIP_ALONE = {"nested", "a counter of 2^64-1"}


@pytest.mark.parametrize(
    ("case", "zipped"),
    [(case, zipped) for case in TORCH_FILES for zipped in (True, False) if zipped or case not in ZIP_ALONE],
)
@pytest.mark.filterwarnings("ignore")
def test_torch_files(tmp_path: Path, case: str, zipped: bool) -> None:
    make, match = TORCH_FILES[case]
    torch.save(make(), tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    unchanged(network(), tmp_path / "w.pt", match)


def test_wrappers_as_found_in_the_wild_are_taken_off(tmp_path: Path) -> None:
    torch.save(wrapped(3), tmp_path / "w.pt")
    model = load_weights(network(), tmp_path / "w.pt")
    assert torch.equal(model.get_parameter("3.bias"), good()["3.bias"])


def rezipped(
    path: Path, compression: int = zipfile.ZIP_DEFLATED, change: Callable[[str, bytes], bytes] = lambda name, data: data
) -> None:
    with zipfile.ZipFile(path) as archive:
        records = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in records:
            archive.writestr(name, change(name, data))


def test_wrappers_without_end(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "w.pt")
    deep = b"\x80\x02" + b"}X\x0a\0\0\0state_dict" * 100_000 + b"}" + b"s" * 100_000 + b"."
    rezipped(tmp_path / "w.pt", zipfile.ZIP_STORED, lambda name, data: deep if name.endswith("data.pkl") else data)
    unchanged(network(), tmp_path / "w.pt", r"no tensors \('state_dict': dict\)")


def test_a_torch_file_that_inflates(tmp_path: Path) -> None:
    torch.save({**good(), "bomb": torch.zeros(2**22)}, tmp_path / "w.pt")
    rezipped(tmp_path / "w.pt")
    assert (tmp_path / "w.pt").stat().st_size < 2**17
    unchanged(network(), tmp_path / "w.pt", r"inflates to \d+ bytes")


def test_a_torch_file_whose_records_overlap(tmp_path: Path) -> None:
    torch.save(good(), tmp_path / "w.pt")
    with zipfile.ZipFile(tmp_path / "w.pt", "a", zipfile.ZIP_STORED) as archive:
        archive.filelist += [archive.filelist[0]] * 1000
        archive._didModify = True  # type: ignore[attr-defined]
    unchanged(network(), tmp_path / "w.pt", "cannot be read as a PyTorch file")


# ------------------------------------------------------------------------------------------------ .npz


def npy(array: np.ndarray | np.generic) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def header(shape: tuple[int, ...], dtype: str = "<f4", version: tuple[int, int] = (1, 0)) -> bytes:
    text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape!r}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version == (1, 0) else "<I", len(text)) + text


def arrays() -> dict[str, np.ndarray]:
    state = {name: tensor.numpy() for name, tensor in good().items()}
    return {name: each.transpose(2, 3, 1, 0) if each.ndim == 4 else each for name, each in state.items()}


def npz(path: Path, compression: int = zipfile.ZIP_STORED, /, **entries: bytes) -> None:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compression) as archive:
        warnings.simplefilter("ignore")  # of names that come twice
        for name, array in arrays().items():
            archive.writestr(f"{name}.npy", entries.pop(name.replace(".", "_"), npy(array)))
        for name, data in entries.items():
            archive.writestr(name.replace("__", "."), data)


NPZ_FILES: dict[str, tuple[dict[str, bytes], str]] = {
    "another shape": ({"3_bias": npy(np.zeros(3, np.float32))}, r"3\.bias is \(3,\)"),
    "another kind": ({"3_bias": npy(np.zeros(2, np.int32))}, r"3\.bias is torch\.int32"),
    "complex": ({"3_bias": npy(np.zeros(2, np.complex64))}, r"3\.bias is torch\.complex64"),
    "0-d": ({"3_bias": npy(np.float32(1))}, r"3\.bias is \(\)"),
    "text": ({"3_bias": npy(np.array(["a", "b"]))}, "cannot be read as an .npz"),
    "dates": ({"3_bias": npy(np.zeros(2, "M8[s]"))}, "cannot be read as an .npz"),
    "structured": ({"3_bias": npy(np.zeros(2, "f4,f4"))}, "cannot be read as an .npz"),
    "long double": ({"3_bias": npy(np.zeros(2, np.longdouble))}, "cannot be read as an .npz"),
    "objects": ({"3_bias": npy(np.array([{}, {}], dtype=object))}, "more than tensors"),
    "NaN": ({"3_bias": npy(np.full(2, np.nan, np.float32))}, r"3\.bias has 2 of 2 values that are NaN"),
    "an entry twice": ({"3__bias.npy": npy(np.zeros(2, np.float32))}, r"holds '3\.bias' more than once"),
    "an entry with and without .npy": ({"3__bias": npy(np.zeros(2, np.float32))}, "more than once"),
    "the header declares more": ({"3_bias": header((2**40,)) + bytes(8)}, "not of the size that its header says"),
    "the header declares less": ({"3_bias": header((2,)) + bytes(2**16)}, "not of the size that its header says"),
    "a negative size": ({"3_bias": header((-2,)) + bytes(8)}, "not of the size"),
    "sizes that overflow": ({"3_bias": header((2**40, 2**40)) + bytes(8)}, "not of the size"),
    "negative sizes that make up": ({"3_bias": header((-1, -2)) + bytes(8)}, "not of the size"),
    "a size of zero beside a huge one": ({"3_bias": header((2**62, 2**62, 0))}, r"cannot be read|3\.bias is \("),
    "format 2": ({"3_bias": header((2,), version=(2, 0)) + bytes(8)}, "format"),
    "format 9": ({"3_bias": header((2,), version=(9, 0)) + bytes(8)}, "format"),
    "a header that is code": ({"3_bias": b"\x93NUMPY\x01\x00\x14\x00__import__('os')    "}, "cannot be read"),
    "a header without end": ({"3_bias": b"\x93NUMPY\x01\x00\xff\xff{'descr': '<f4'"}, "cannot be read"),
    "a deep header": ({"3_bias": b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535}, "cannot be read"),
    "an empty entry": ({"3_bias": b""}, "cannot be read"),
    "no array": ({"3_bias": b"hello"}, "cannot be read"),
    "one more": ({"surplus.npy": npy(np.zeros(1))}, "1 unexpected .surplus"),
    "one more, of objects": ({"surplus.npy": npy(np.array([{}], dtype=object))}, "more than tensors"),
    "one more that is no array": ({"readme": b"text"}, "cannot be read"),
    "Google's name and PyTorch's": (
        {"resnet/head/conv2d/bias.npy": npy(np.zeros(2)), "head.conv.bias.npy": npy(np.zeros(2))}, "Google's name",
    ),
}  # fmt: skip


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
@pytest.mark.parametrize("case", NPZ_FILES)
def test_npz_files(tmp_path: Path, case: str, compression: int) -> None:
    entries, match = NPZ_FILES[case]
    npz(tmp_path / "w.npz", compression, **entries)
    unchanged(network(), tmp_path / "w.npz", match)


def test_npz_of_any_byte_order(tmp_path: Path) -> None:
    npz(
        tmp_path / "w.npz",
        **{name.replace(".", "_"): npy(each.astype(each.dtype.newbyteorder(">"))) for name, each in arrays().items()},
    )
    model = load_weights(network(), tmp_path / "w.npz")
    assert all(torch.equal(tensor, good()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("where", ["surplus", "misfit", "objects", "header"])
def test_an_npz_bomb_is_not_inflated(tmp_path: Path, where: str) -> None:
    zeros = bytes(2**26)
    entry, content, match = {
        "surplus": ("surplus.npy", header((2**24,)) + zeros, "1 unexpected"),
        "misfit": ("3_bias", header((2**24,)) + zeros, r"3\.bias is \(16777216,\)"),
        "objects": ("3_bias", header((2**23,), "|O") + zeros, "more than tensors"),
        "header": ("3_bias", b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**26) + zeros, "format"),
    }[where]
    npz(tmp_path / "w.npz", zipfile.ZIP_DEFLATED, **{entry: content})
    del zeros, content
    tracemalloc.start()
    try:
        unchanged(network(), tmp_path / "w.npz", match)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**22


# ---------------------------------------------------------------------------------------- .safetensors


def safetensors(entries: dict[str, Any] | str | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    text = (
        entries
        if isinstance(entries, bytes)
        else (entries if isinstance(entries, str) else json.dumps(entries)).encode()
    )
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


SAFETENSORS = {
    "a header of 2^63 bytes": safetensors({}, length=2**63),
    "a header longer than the file": safetensors({}, length=2**20),
    "no JSON": safetensors("}{"),
    "a list": safetensors("[]"),
    "deep JSON": safetensors("[" * 100_000),
    "data that are not there": safetensors({"3.bias": entry([2**40], 0, 2**42)}),
    "less data than the shape": safetensors({"3.bias": entry([2**40], 0, 8)}, bytes(8)),
    "sizes that overflow": safetensors({"3.bias": entry([2**40, 2**40], 0, 8)}, bytes(8)),
    "a negative size": safetensors({"3.bias": entry([-2], 0, 8)}, bytes(8)),
    "an unknown dtype": safetensors({"3.bias": entry([2], 0, 8, "F31")}, bytes(8)),
    "ends that cross": safetensors({"3.bias": entry([2], 8, 0)}, bytes(8)),
    "data that overlap": safetensors({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)),
    "a gap": safetensors({"a": entry([2], 0, 8), "b": entry([2], 16, 24)}, bytes(24)),
    "data left over": safetensors({"a": entry([2], 0, 8)}, bytes(64)),
    "floats of 4 bits": safetensors({"3.bias": entry([2], 0, 1, "F4")}, bytes(1)),
    "floats of 8 bits, scaled": safetensors({"3.bias": entry([2], 0, 2, "F8_E8M0")}, bytes(2)),
    "complex": safetensors({"3.bias": entry([2], 0, 16, "C64")}, bytes(16)),
    "names that are no Unicode": safetensors(b'{"\xff":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
    "a lone surrogate": safetensors('{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
    "a name twice": safetensors(
        '{"3.bias":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
        '"3.bias":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}', bytes(16),
    ),
    "zeros": bytes(64),
    "metadata of numbers": safetensors({"__metadata__": {"a": 3}}),
}  # fmt: skip


@pytest.mark.parametrize("case", SAFETENSORS)
def test_safetensors(tmp_path: Path, case: str) -> None:
    (tmp_path / "w.safetensors").write_bytes(SAFETENSORS[case])
    unchanged(network(), tmp_path / "w.safetensors", r"w\.safetensors (cannot be read as safetensors|does not fit)")


def test_a_name_twice_among_all_in_safetensors(tmp_path: Path) -> None:
    """Complete, but for one tensor that is there twice, with different values."""
    state = {**good(), "3.bias_": torch.zeros(2)}
    save_file(state, tmp_path / "w.safetensors")
    content = (tmp_path / "w.safetensors").read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    text = content[8 : 8 + length].replace(b'"3.bias_"', b'"3.bias" ')
    (tmp_path / "w.safetensors").write_bytes(content[:8] + text + content[8 + length :])
    unchanged(network(), tmp_path / "w.safetensors", "cannot be read as safetensors")


def test_values_in_safetensors(tmp_path: Path) -> None:
    save_file(changed(**{"1__running_var": put(-1.0)}), tmp_path / "w.safetensors")
    unchanged(network(), tmp_path / "w.safetensors", r"1\.running_var has variances below zero, down to -1\)")


def test_values_beyond_half_precision(tmp_path: Path) -> None:
    save_file(changed(**{"3__bias": put(1e5)}), tmp_path / "w.safetensors")
    unchanged(network(torch.float16), tmp_path / "w.safetensors", r"3\.bias has 1 of 2 .* infinite in torch\.float16")


# ----------------------------------------------------------------------------------------------- models


def replaced(parameter: Tensor) -> nn.Module:
    model = network()
    model[3].bias = nn.Parameter(parameter, requires_grad=False)
    return model


class Stubborn(nn.Linear):
    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        raise RuntimeError("this layer loads nothing")


class Twisting(nn.Linear):
    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self.bias.data.add_(1)


class WithExtraState(nn.Linear):
    def get_extra_state(self) -> dict[str, int]:
        return {"scale": 3}

    def set_extra_state(self, state: object) -> None:
        pass


def last(kind: Callable[[int, int], nn.Module]) -> nn.Sequential:
    model = network()
    model[3] = kind(4, 2)
    return model


def tied() -> nn.Sequential:
    model = network()
    model[1].bias = nn.Parameter(model.get_parameter("0.bias").data)
    return model


def partly_tied() -> nn.Module:
    model = network()
    whole = torch.zeros(6)
    model[0].bias, model[1].bias = nn.Parameter(whole[:4]), nn.Parameter(whole[2:])
    return model


def inference() -> nn.Module:
    with torch.inference_mode():
        return network()


MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "one parameter on meta": (lambda: replaced(torch.zeros(2, device="meta")), r"3\.bias is on the meta device"),
    "all on meta": (lambda: network().to("meta"), "9 tensors at fault"),
    "sparse": (lambda: replaced(torch.zeros(2).to_sparse()), r"3\.bias is of the layout"),
    "expanded": (lambda: replaced(torch.zeros(1).expand(2)), r"3\.bias is expanded"),
    "overlapping": (lambda: replaced(torch.zeros(3).as_strided((2,), (0,))), r"3\.bias is expanded"),
    "made in inference mode": (inference, "made under torch.inference_mode"),
    "lazy": (lambda: last(lambda *_: nn.LazyLinear(2)), r"3\.weight is uninitialised"),
    "a layer that refuses": (lambda: last(Stubborn), "loads nothing.*stays as it was"),
    "a layer that twists": (lambda: last(Twisting), r"does not keep 1 tensors of the file \(3\.bias\)"),
    "extra state": (lambda: last(WithExtraState), r"3\._extra_state is a dict, no tensor"),
    "tied, with other values in the file": (tied, r"does not keep 1 tensors of the file \((0|1)\.bias\)"),
    "partly tied": (partly_tied, "does not keep"),
}


@pytest.mark.parametrize("case", MODELS)
@pytest.mark.filterwarnings("ignore")
def test_models_that_cannot_be_overwritten(tmp_path: Path, case: str) -> None:
    save_file(good(), tmp_path / "w.safetensors")
    make, match = MODELS[case]
    unchanged(make(), tmp_path / "w.safetensors", match)


def test_an_interrupted_write_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    class Slow(nn.Linear):
        def _load_from_state_dict(self, *arguments: Any) -> None:
            raise KeyboardInterrupt

    save_file(good(), tmp_path / "w.safetensors")
    model = last(Slow)
    before = model.get_parameter("0.weight").clone()
    with pytest.raises(KeyboardInterrupt):
        load_weights(model, tmp_path / "w.safetensors")
    assert torch.equal(model.get_parameter("0.weight"), before)


def test_tied_parameters_of_one_value(tmp_path: Path) -> None:
    state = good()
    state["1.bias"] = state["0.bias"].clone()
    save_file(state, tmp_path / "w.safetensors")
    model = load_weights(tied(), tmp_path / "w.safetensors")
    assert torch.equal(model.get_parameter("1.bias"), state["0.bias"])


def test_infinities_that_the_model_has_too(tmp_path: Path) -> None:
    """A mask."""
    model = network()
    model.register_buffer("mask", torch.tensor([0.0, -math.inf]))
    save_file({**good(), "mask": torch.tensor([0.0, -math.inf])}, tmp_path / "w.safetensors")
    load_weights(model, tmp_path / "w.safetensors")
    save_file({**good(), "mask": torch.tensor([-math.inf, -math.inf])}, tmp_path / "w.safetensors")
    unchanged(model, tmp_path / "w.safetensors", "mask has 1 of 2 values")


def test_a_model_with_both_names(tmp_path: Path) -> None:
    """`x` and `module.x` are two tensors of this model."""
    model = nn.Module()
    model.scale, model.module = nn.Parameter(torch.zeros(2)), nn.Module()
    model.module.scale = nn.Parameter(torch.zeros(2))
    save_file({"scale": torch.ones(2), "module.scale": torch.full((2,), 2.0)}, tmp_path / "w.safetensors")
    load_weights(model, tmp_path / "w.safetensors")
    assert model.scale.tolist() == [1, 1]
    assert model.module.scale.tolist() == [2, 2]
    save_file({"module.scale": torch.ones(2), "module.module.scale": torch.full((2,), 3.0)}, tmp_path / "w.safetensors")
    unchanged(model, tmp_path / "w.safetensors", "Module holds 2 names for one tensor")


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "w.pt")
    unchanged(network(), tmp_path / "w.pt", "is not a file")
    (tmp_path / "w.npz").symlink_to(tmp_path / "w.pt")
    unchanged(network(), tmp_path / "w.npz", "is not a file")
    unchanged(network(), "/dev/zero", "is not a file")
