"""Loading of weights from files that are never allowed to run code."""

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from gaia_fast.errors import WeightsError

ModelT = TypeVar("ModelT", bound=nn.Module)

_TORCH_SUFFIXES = (".pt", ".pth", ".ckpt", ".tar")
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile

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


def load_weights(model: ModelT, path: str | PathLike[str]) -> ModelT:
    """The model, its parameters and buffers overwritten by those of a file.

    Reads `.safetensors`, PyTorch's `.pt`, `.pth`, `.ckpt` and `.tar` (tensors only, `weights_only=True`) and Google's
    BiT `.npz`. A state dict wrapped in `state_dict`, `model_state_dict` or `model` is unwrapped, and the prefixes
    `module.` and `_orig_mod.` are ignored. `num_batches_tracked` may be missing. Nothing is written unless everything
    fits.

    Args:
        model: the network; changed in place. Its mode (train or eval) stays as it is.
        path: the weights file. Tensors are cast to the dtype and device of the model's.

    Returns:
        The same model.

    Raises:
        WeightsError: the file is missing, damaged, of an unknown kind or holds more than tensors, or its names or
            shapes do not fit the model.
    """
    path = Path(path)
    state = {_strip(name): tensor for name, tensor in _read(path).items()}
    own = {_strip(name): (name, tensor) for name, tensor in model.state_dict().items()}

    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    if missing or unexpected:
        raise WeightsError(
            f"{path} does not fit {type(model).__name__}: {_first('missing', missing)}; "
            f"{_first('unexpected', unexpected)}. Choose the architecture that these weights were saved from, or "
            "rename the tensors in the file."
        )
    shared = [(name, state[name], own[name][1]) for name in own if name in state]
    misfits = [
        f"{name} is {tuple(theirs.shape)}, the model wants {tuple(ours.shape)}"
        for name, theirs, ours in shared
        if theirs.shape != ours.shape
    ]
    if misfits:
        raise WeightsError(
            f"{path} does not fit {type(model).__name__}: {_first('wrong shapes', misfits)}. Build the model with the "
            "number of classes and the width of the weights."
        )
    # Integers would be cast without a word: a quantised checkpoint would load as nonsense.
    kinds = [
        f"{name} is {theirs.dtype}, the model wants {ours.dtype}"
        for name, theirs, ours in shared
        if theirs.is_floating_point() != ours.is_floating_point()
    ]
    if kinds:
        raise WeightsError(
            f"{path} does not fit {type(model).__name__}: {_first('wrong dtypes', kinds)}. Save the weights as "
            "floating-point numbers, unquantised."
        )
    model.load_state_dict({own[name][0]: tensor for name, tensor, _ in shared}, strict=False)
    return model


def _strip(name: str) -> str:
    while name.startswith(_PREFIXES):
        name = name.split(".", 1)[1]
    return name


def _first(what: str, items: Iterable[str], limit: int = 4) -> str:
    items = list(items)
    more = f", and {len(items) - limit} more" if len(items) > limit else ""
    return f"{len(items)} {what}" + (f" ({', '.join(items[:limit])}{more})" if items else "")


def _read(path: Path) -> dict[str, Tensor]:
    """The file's tensors by name, unwrapped."""
    if not path.is_file():
        raise WeightsError(f"{path} is not a file. Check the path of the weights.")
    if path.stat().st_size == 0:
        raise WeightsError(f"{path} is empty. Download or save the weights again.")
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return _read_safetensors(path)
    if suffix == ".npz":
        return _read_bit_npz(path)
    if suffix in _TORCH_SUFFIXES:
        return _read_torch(path)
    raise WeightsError(
        f"{path} has the suffix '{path.suffix}', which says no known kind of weights. Rename it to one of "
        f".safetensors, .npz, {', '.join(_TORCH_SUFFIXES)}."
    )


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
    except (SafetensorError, OSError) as error:
        raise _damaged(path, "safetensors", _reason(error)) from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
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

    while isinstance(content, Mapping):
        inner = next((content[name] for name in _WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not a state dict. Save model.state_dict().")
    odd = [f"{name!r}: {type(value).__name__}" for name, value in content.items() if not isinstance(value, Tensor)]
    if odd:
        raise WeightsError(
            f"{path} holds {_first('entries that are no tensors', odd)}, so it is not a state dict. Save "
            "model.state_dict(), alone or under the key 'state_dict'."
        )
    return dict(content)


def _read_bit_npz(path: Path) -> dict[str, Tensor]:
    try:
        # Not a zip, numpy would take it for a single array or a pickle.
        with zipfile.ZipFile(path):
            pass
        with np.load(path, allow_pickle=False) as archive:
            return {_bit_name(name): _bit_tensor(archive[name]) for name in archive.files}
    # As with torch: zlib, zipfile, numpy and from_numpy each report damage in their own way.
    except Exception as error:
        if "Object arrays" in str(error):
            raise _more_than_tensors(path, "pickled objects") from error
        raise _damaged(path, "an .npz archive", _reason(error)) from error


def _bit_name(name: str) -> str:
    """The state-dict name of a tensor of Google's; any other name stays, and is reported as unexpected."""
    unit = _BIT_UNIT.fullmatch(name)
    if unit and unit[4] in _BIT_IN_UNIT:
        return f"body.{unit[1]}.{unit[2]}." + _BIT_IN_UNIT[unit[4]].format("abc".index(unit[3]) + 1)
    return _BIT_ELSEWHERE.get(name, name)


def _bit_tensor(array: np.ndarray) -> Tensor:
    """Kernels are stored HWIO; PyTorch's are OIHW."""
    return torch.from_numpy(np.ascontiguousarray(array.transpose(3, 2, 0, 1) if array.ndim == 4 else array))
