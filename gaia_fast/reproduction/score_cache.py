"""Scores that were computed before: arrays in files, under a hash of all that decides them."""

import hashlib
import importlib.metadata
import io
import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

import gaia_fast
from gaia_fast.files import replacing

Arrays = dict[str, np.ndarray]

_LIBRARIES = (
    "torch",
    "numpy",
    "pytorch-ood",
    "scikit-learn",
    "pillow",
    "onnxruntime",
    "openvino",
    "torchvision",
    "efficientnet-lite-pytorch",
)


class ScoreCache:
    """Arrays under keys.

    Args:
        folder: where they are kept; None for nowhere.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def get(self, key: Mapping[str, Any], compute: Callable[[], Arrays], code: Sequence[str] = ()) -> Arrays:
        """What is kept under a key; computes and keeps it where there is nothing that can be read.

        Args:
            key: all that decides the result but the code and libraries, which are added.
            compute: the result.
            code: the parts of this package that it is computed by; none for all.
        """
        if self._folder is None:
            return compute()
        text = json.dumps(
            {**key, "code": code_digest(tuple(code)), "libraries": _versions()}, sort_keys=True, default=str
        )
        path = self._folder / f"{hashlib.sha256(text.encode()).hexdigest()[:40]}.npz"
        try:
            with np.load(path, allow_pickle=False) as kept:
                return {name: kept[name] for name in kept.files}
        except Exception:  # missing, or damaged: zipfile and numpy each raise in their own way
            pass
        found = compute()
        self._folder.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.savez(buffer, **found)  # type: ignore[arg-type]
        with replacing(path) as written:
            written.write_bytes(buffer.getvalue())
        return found


@lru_cache
def code_digest(parts: tuple[str, ...] = ()) -> str:
    """A hash of this package's code, of some of its folders or all, but for what only arranges and shows scores."""
    root = Path(str(gaia_fast.__file__)).parent
    of = hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.suffix in (".py", ".so")):
        name = path.relative_to(root).as_posix()
        part = name.partition("/")[0]
        wanted = part not in ("cli", "integrations", "reproduction") and (not parts or part in parts)
        if wanted or name == "reproduction/scoring.py":
            of.update(name.encode() + b"\0" + path.read_bytes())
    return of.hexdigest()[:32]


def model_digest(model: nn.Module) -> str:
    """A hash of a network's class, parameters and buffers."""
    of = hashlib.sha256(f"{type(model).__module__}.{type(model).__qualname__}".encode())
    for name, tensor in model.state_dict().items():
        of.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        of.update(tensor.detach().cpu().contiguous().flatten().numpy().tobytes())
    return of.hexdigest()[:32]


@lru_cache
def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
