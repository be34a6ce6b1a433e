"""What was asked of a run that scores many images: one that goes on must have been asked the same."""

import contextlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from gaia_fast._version import __version__
from gaia_fast.errors import ModelError
from gaia_fast.inspection.fingerprint import Fingerprint, code_digest


@dataclass(frozen=True)
class Request:
    """All that rows hang on: parts of one request are never put together with those of another.

    Attributes:
        options: by name, as plain data.
        images: of each image source, by what it is for, its `digest`.
        model: which model it is; None where that cannot be told.
        code: `code_digest` of the model.
        count: how many images there are.
        chunk: how many of them a part is of.
        versions: of the packages that compute scores.
    """

    options: Mapping[str, Any]
    images: Mapping[str, str]
    model: Fingerprint | None
    code: str
    count: int
    chunk: int
    versions: Mapping[str, str] = field(default_factory=lambda: _versions())

    @classmethod
    def read(cls, data: Any) -> "Request":
        """Returns what `asdict` made plain data of; ValueError, TypeError or KeyError where they are none."""
        model = data["model"]
        return cls(**{**data, "model": None if model is None else Fingerprint.read(model)})

    def difference(self, other: "Request") -> str:
        """Returns in words what `other` has otherwise, the first of it; empty where they are the same."""
        before, now = {**self.versions, **self.options}, {**other.versions, **other.options}
        for what in {**before, **now}:
            if json.dumps(before.get(what)) != json.dumps(now.get(what)):
                return f"{what} is {_said(now.get(what))}, and was {_said(before.get(what))}"
        if self.count != other.count:
            return f"there are {other.count:,} images, and were {self.count:,}"
        if self.chunk != other.chunk:
            return f"a part is of {other.chunk} images, and was of {self.chunk}"
        for what, digest in self.images.items():
            if other.images.get(what) != digest:
                return f"{what} changed: other names, bytes, sizes or times of the last change"
        if self.model is None or other.model is None:
            return "the model has tensors whose bytes cannot be read, so that it cannot be told from another"
        if difference := self.model.difference(other.model):
            return f"the model is another one: {difference}"
        return "" if self.code == other.code else "the code of the model's modules is another"


def _said(value: Any) -> str:
    return "not given" if value in (None, [], {}) else json.dumps(value)


def model_identity(model: nn.Module) -> tuple[Fingerprint | None, str]:
    """`Request.model` and `Request.code` of a model, before it has scored anything."""
    try:
        return Fingerprint.of(model), code_digest(model)
    except ModelError:
        return None, ""


def _versions() -> dict[str, str]:
    found = {"gaia_fast": __version__}
    for name in ("torch", "numpy", "pillow", "onnxruntime", "openvino"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
