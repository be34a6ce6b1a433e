"""Weights files of every kind, read without ever running code from them."""

import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from gaia_fast import npz
from gaia_fast.errors import WeightsError, printable

_TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".tar")
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_MOST_WRAPPERS = 4

# One unit's tensors in Google's BiT files: "a", "b", "c" are the three norm-convolution pairs.
_BIT_UNIT = re.compile(r"resnet/(block\d+)/(unit\d+)/([abc])/(.+)")
_BIT_IN_UNIT = {
    "standardized_conv2d/kernel": "conv{}.weight",
    "group_norm/gamma": "gn{}.weight",
    "group_norm/beta": "gn{}.bias",
    "proj/standardized_conv2d/kernel": "downsample.weight",
}
_BIT_ELSEWHERE = {
    "resnet/root_block/standardized_conv2d/kernel": "root.conv.weight",
    "resnet/group_norm/gamma": "before_head.gn.weight",
    "resnet/group_norm/beta": "before_head.gn.bias",
    "resnet/head/conv2d/kernel": "head.conv.weight",
    "resnet/head/conv2d/bias": "head.conv.bias",
}


@dataclass(frozen=True)
class WeightsFile:
    """A weights file.

    Attributes:
        declared: its tensors by name; for shape and dtype alone, so they may be on the meta device.
        read: gives the same tensors with their values.
    """

    declared: Mapping[str, Tensor]
    read: Callable[[], Mapping[str, Tensor]]


def read(path: Path) -> WeightsFile:
    """The tensors of a file, unwrapped.

    Raises:
        WeightsError: the file is missing, damaged, of an unknown kind, or holds more than dense tensors with names.
    """
    if not path.is_file():
        raise WeightsError(f"{path} is not a file. Check the path of the weights.")
    if path.stat().st_size == 0:
        raise WeightsError(f"{path} is empty. Download or save the weights again.")
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return _loaded(_read_safetensors(path))
    if suffix == ".npz":
        return _read_bit_npz(path)
    if suffix in _TORCH_SUFFIXES:
        return _loaded(_read_torch(path))
    raise WeightsError(
        f"{path} has the suffix '{path.suffix}', which says no known kind of weights. Rename it to one of "
        f".safetensors, .npz, {', '.join(_TORCH_SUFFIXES)}."
    )


def _loaded(tensors: Mapping[str, Tensor]) -> WeightsFile:
    return WeightsFile(tensors, lambda: tensors)


def listed(what: str, items: Iterable[str], limit: int = 4) -> str:
    """How many there are, and the first of them."""
    items = [_shown(item) for item in items]
    more = f", and {len(items) - limit} more" if len(items) > limit else ""
    return f"{len(items)} {what}" + (f" ({', '.join(items[:limit])}{more})" if items else "")


def _shown(text: str, limit: int = 160) -> str:
    text = printable(text)
    return text if len(text) <= limit else text[:limit] + "..."


def unfit(tensor: Any, *, written: bool = False) -> str:
    """What keeps a tensor from being copied from, or to; empty if nothing does."""
    if not isinstance(tensor, Tensor):
        return f"a {type(tensor).__name__}, no tensor"
    if nn.parameter.is_lazy(tensor):
        return "uninitialised"
    if tensor.is_nested:
        return "nested"
    if tensor.is_quantized:
        return "quantised"
    if tensor.layout != torch.strided:
        return f"of the layout {tensor.layout}"
    if tensor.is_meta:
        return "on the meta device, without values"
    if written and tensor.is_inference() and not torch.is_inference_mode_enabled():
        return "made under torch.inference_mode()"
    if written and any(size > 1 and step == 0 for size, step in zip(tensor.shape, tensor.stride(), strict=True)):
        return "expanded, with one number in many places"
    return ""


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _damaged(path: Path, kind: str, reason: str) -> WeightsError:
    return WeightsError(
        f"{path} cannot be read as {kind} ({reason}). It is damaged, cut short or of another "
        "kind: download or save the weights again."
    )


def _more_than_tensors(path: Path, what: str) -> WeightsError:
    return WeightsError(
        f"{path} holds more than tensors ({what}): reading it could run code, so it is refused. If you trust it, load "
        "it yourself and save its state_dict() as .safetensors."
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    # Whatever damaged bytes make it trip over, such as a dtype without a counterpart in torch.
    except Exception as error:
        raise _damaged(path, "safetensors", _reason(error)) from error


def _read_torch(path: Path) -> Mapping[str, Tensor]:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                declared = sum(info.file_size for info in archive.infolist())
            # torch inflates whatever it finds, but compresses nothing itself.
            if declared > path.stat().st_size:
                raise ValueError(f"it says that it inflates to {declared} bytes; torch.save does not compress")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of pickle protocols and TorchScript; the error says it
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's message advises reading the file with code allowed: only what it names is repeated.
        if named := re.search(r"GLOBAL (\S+)", str(error)):
            raise _more_than_tensors(path, named[1]) from error
        refused = re.search(r"Unsupported \w+ \S+", str(error))
        reason = refused[0] if refused else "its pickle is broken"
        if zipfile.is_zipfile(path):
            reason += "; torch.save must have been called with its default pickle_protocol"
        raise _damaged(path, "a PyTorch file of tensors alone", reason) from error
    # torch reports damage by whatever its readers trip over: KeyError, RuntimeError, EOFError, AttributeError, ...
    except Exception as error:
        if "TorchScript" in str(error):
            raise _more_than_tensors(path, "a TorchScript program") from error
        raise _damaged(path, "a PyTorch file of tensors alone", _reason(error)) from error

    for _ in range(_MOST_WRAPPERS):  # one that holds itself has no end
        if isinstance(content, Mapping):
            content = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not a state dict. Save model.state_dict().")
    unnamed = [f"{name!r}" for name in content if not isinstance(name, str)]
    if unnamed:
        raise WeightsError(
            f"{path} holds {listed('keys that are no names', unnamed)}, so it is not a state dict. Save "
            "model.state_dict()."
        )
    odd = [f"{name!r}: {type(value).__name__}" for name, value in content.items() if not isinstance(value, Tensor)]
    if odd:
        raise WeightsError(
            f"{path} holds {listed('entries that are no tensors', odd)}, so it is not a state dict. Save "
            "model.state_dict(), alone or under the key 'state_dict'."
        )
    odd = [f"{name} is {reason}" for name, tensor in content.items() if (reason := unfit(tensor))]
    if odd:
        raise WeightsError(
            f"{path} holds {listed('tensors that cannot be copied from', odd)}. Save plain, dense tensors with values."
        )
    return content


def _read_bit_npz(path: Path) -> WeightsFile:
    try:
        headers = npz.read_headers(path, npz.names(path))
        own = {_bit_name(name): name for name in headers}
        if len(own) < len(headers):
            raise ValueError("it holds a tensor under Google's name and under PyTorch's")
        declared = {name: _bit_declared(headers[there]) for name, there in own.items()}
    # As with torch: zlib, zipfile, numpy and from_numpy each report damage in their own way.
    except Exception as error:
        if "Object arrays" in str(error):
            raise _more_than_tensors(path, "pickled objects") from error
        raise _damaged(path, "an .npz archive", _reason(error)) from error

    def read() -> dict[str, Tensor]:
        try:
            arrays = npz.read_arrays(path, headers)
            return {name: _bit_tensor(arrays[there]) for name, there in own.items()}
        except Exception as error:
            raise _damaged(path, "an .npz archive", _reason(error)) from error

    return WeightsFile(declared, read)


def _bit_name(name: str) -> str:
    """The state-dict name of a tensor of Google's; any other name stays, and is reported as unexpected."""
    unit = _BIT_UNIT.fullmatch(name)
    if unit and unit[4] in _BIT_IN_UNIT:
        return f"body.{unit[1]}.{unit[2]}." + _BIT_IN_UNIT[unit[4]].format("abc".index(unit[3]) + 1)
    return _BIT_ELSEWHERE.get(name, name)


def _bit_declared(header: npz.Header) -> Tensor:
    """A tensor of the shape and dtype that an array will have, without memory."""
    dtype = torch.from_numpy(np.empty(0, header.dtype.newbyteorder("="))).dtype
    return _oihw(torch.empty(header.shape, dtype=dtype, device="meta"))


def _bit_tensor(array: np.ndarray) -> Tensor:
    return _oihw(torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False)))


def _oihw(tensor: Tensor) -> Tensor:
    """Google's kernels are HWIO."""
    return tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor
