"""Weights from a file into a model: all of them fit and mean something, or none is written."""

from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gaia_fast.errors import WeightsError, first_line
from gaia_fast.models import weight_files
from gaia_fast.models.weight_files import listed, unfit

ModelT = TypeVar("ModelT", bound=nn.Module)

_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile


def load_weights(model: ModelT, path: str | PathLike[str]) -> ModelT:
    """The model, its parameters and buffers overwritten by those of a file.

    Reads `.safetensors`, PyTorch's `.pt`, `.pth`, `.ckpt` and `.tar` (tensors only, `weights_only=True`) and Google's
    BiT `.npz`. A state dict wrapped in `state_dict`, `model_state_dict` or `model` is unwrapped, and the prefixes
    `module.` and `_orig_mod.` are ignored. `num_batches_tracked` may be missing. The model is overwritten as a whole or
    not at all.

    Args:
        model: the network; changed in place. Its mode (train or eval) stays as it is.
        path: the weights file. Tensors are cast to the dtype and device of the model's.

    Returns:
        The same model.

    Raises:
        WeightsError: the file is missing, damaged, of an unknown kind or holds more than tensors; its names or shapes
            do not fit the model; values are NaN, negative variances, infinite where the model's own are not, or out of
            range of the model's dtype; or the model has tensors that cannot be written to.
    """
    path = Path(path)
    own = _own_tensors(model)
    file = weight_files.read(path)
    theirs = _names_in_file(path, file.declared, model, own)
    _check_kinds(path, file.declared, model, own, theirs)
    tensors = file.read()
    _overwrite(model, own, _values(path, tensors, own, theirs))
    return model


def _own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The model's state, once nothing in it is known to refuse being overwritten."""
    own: dict[str, Any] = model.state_dict()
    faults = [f"{name} is {reason}" for name, tensor in own.items() if (reason := unfit(tensor, written=True))]
    if faults:
        raise WeightsError(
            f"{type(model).__name__} cannot be overwritten: {listed('tensors at fault', faults)}. Build it with plain "
            "tensors that have memory of their own: to_empty() for the meta device, one forward pass for lazy modules."
        )
    return own


def _names_in_file(
    path: Path, declared: Mapping[str, Tensor], model: nn.Module, own: Mapping[str, Tensor]
) -> dict[str, str]:
    """The name in the file for each of the model's; `num_batches_tracked` may have none."""
    if declared.keys() == own.keys():
        return {name: name for name in own}
    ours, theirs = _stripped(type(model).__name__, own), _stripped(str(path), declared)
    missing = [name for name in ours if name not in theirs and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in theirs if name not in ours]
    if missing or unexpected:
        raise WeightsError(
            f"{path} does not fit {type(model).__name__}: {listed('missing', missing)}; "
            f"{listed('unexpected', unexpected)}. Choose the architecture that these weights were saved from, or "
            "rename the tensors in the file."
        )
    return {ours[name]: theirs[name] for name in ours if name in theirs}


def _stripped(where: str, names: Iterable[str]) -> dict[str, str]:
    """The names as they are, by what they are without prefixes."""
    found: dict[str, str] = {}
    for name in names:
        bare = name
        while bare.startswith(_PREFIXES):
            bare = bare.split(".", 1)[1]
        if bare in found:
            raise WeightsError(
                f"{where} holds {listed('names for one tensor', [found[bare], name])}, which differ in the prefix "
                "alone, so one would get lost. Remove one, or give all names the same prefix."
            )
        found[bare] = name
    return found


def _check_kinds(
    path: Path,
    declared: Mapping[str, Tensor],
    model: nn.Module,
    own: Mapping[str, Tensor],
    theirs: Mapping[str, str],
) -> None:
    """Raises WeightsError unless each tensor has the shape of the model's, and a dtype that can be cast to its."""
    misfits = [
        f"{name} is {tuple(declared[there].shape)}, the model wants {tuple(own[name].shape)}"
        for name, there in theirs.items()
        if declared[there].shape != own[name].shape
    ]
    if misfits:
        raise WeightsError(
            f"{path} does not fit {type(model).__name__}: {listed('wrong shapes', misfits)}. Build the model with the "
            "number of classes and the width of the weights."
        )
    # Integers would be cast without a word: a quantised checkpoint would load as nonsense.
    kinds = [
        f"{name} is {declared[there].dtype}, the model wants {own[name].dtype}"
        for name, there in theirs.items()
        if _family(declared[there].dtype) != _family(own[name].dtype)
    ]
    if kinds:
        raise WeightsError(
            f"{path} does not fit {type(model).__name__}: {listed('wrong dtypes', kinds)}. Save the weights as "
            "floating-point numbers, unquantised."
        )


def _family(dtype: torch.dtype) -> tuple[bool, bool]:
    return dtype.is_floating_point, dtype.is_complex


def _values(
    path: Path, tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], theirs: Mapping[str, str]
) -> dict[str, Tensor]:
    """The values for each of the model's tensors, in its dtype and on its device."""
    values: dict[str, Tensor] = {}
    wrong: list[str] = []
    for name, there in theirs.items():
        ours, given = own[name], tensors[there].detach()
        try:
            value = given.to(ours.device, ours.dtype)
            if (
                not value.is_floating_point()
                and not value.is_complex()
                and not torch.equal(value.double(), given.double())
            ):
                wrong.append(f"{name} has numbers that are none in {ours.dtype}")
        except RuntimeError as error:  # a dtype that is stored but not computed with
            raise WeightsError(
                f"{path}: {name} cannot be cast from {given.dtype} to {ours.dtype} ({first_line(error)}). Save the "
                "weights in the model's dtype."
            ) from error
        # A mask may hold infinities of its own, and then the model has the same.
        bad = int((~value.isfinite() & (value != ours)).sum())
        if bad:
            wrong.append(f"{name} has {bad} of {value.numel()} values that are NaN or infinite in {ours.dtype}")
        elif name.endswith("running_var") and (value < 0).any():
            wrong.append(f"{name} has variances below zero, down to {value.min().item():g}")
        values[name] = value
    if wrong:
        raise WeightsError(
            f"{path}: {listed('tensors with unusable values', wrong)}. The training diverged, or the file was damaged: "
            "use an earlier checkpoint, or download it again."
        )
    return values


def _overwrite(model: nn.Module, own: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Writes the values into the model; whatever goes wrong puts back what was there."""
    before = {name: tensor.clone() for name, tensor in own.items()}
    try:
        model.load_state_dict(values, strict=False)
        after = model.state_dict()
        # Two names of the same memory, to which the file gives different values; or the model's own loading code.
        lost = [name for name, value in values.items() if not torch.equal(after[name], value)]
        if lost:
            raise WeightsError(
                f"{type(model).__name__} does not keep {listed('tensors of the file', lost)}: they share memory with "
                "others that the file gives other values, or the model changes them when it loads. It stays as it was."
            )
    except BaseException as error:
        with torch.no_grad():
            for name, tensor in own.items():
                if not torch.equal(tensor, before[name]):
                    tensor.copy_(before[name])
        if isinstance(error, RuntimeError):
            raise WeightsError(
                f"{type(model).__name__} cannot be overwritten ({first_line(error)}). It stays as it was."
            ) from error
        raise
