"""Which model this is, told in another process: what its modules say of themselves, and what its tensors hold."""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from gaia_fast.errors import ModelError, first_line

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Fingerprint:
    """What two models are told apart by.

    Attributes:
        modules: by name, the class, and what it says of itself: sizes, strides, constants.
        tensors: by name, dtype, shape and a hash of the bytes, of parameters and of buffers that are saved.
    """

    modules: dict[str, str]
    tensors: dict[str, str]

    @classmethod
    def of(cls, model: nn.Module) -> "Fingerprint":
        """Returns a model's.

        Raises:
            ModelError: a tensor's bytes cannot be read; it is named.
        """
        modules = {name: _described(module) for name, module in model.named_modules()}
        return cls(modules, {name: _hashed(name, tensor) for name, tensor in _tensors(model)})

    @classmethod
    def read(cls, data: Any) -> "Fingerprint":
        """Returns what `asdict` made plain data of; ValueError where they are none."""
        if not isinstance(data, Mapping) or data.keys() != {"modules", "tensors"}:
            raise ValueError("there is no fingerprint")
        for part in data.values():
            if not isinstance(part, Mapping) or not all(isinstance(each, str) for each in (*part, *part.values())):
                raise ValueError("the fingerprint has other parts than names and strings")
        return cls(dict(data["modules"]), dict(data["tensors"]))

    def difference(self, other: "Fingerprint") -> str:
        """Returns what `other` has otherwise, the first of it by name; empty where they are the same."""
        for kind, mine, theirs in (
            ("module", self.modules, other.modules),
            ("tensor", self.tensors, other.tensors),
        ):
            for name in [*mine, *(each for each in theirs if each not in mine)]:
                if mine.get(name) != theirs.get(name):
                    what = f"{kind} {name!r}" if name else "the model itself"
                    return f"{what} is {theirs.get(name, 'not there')}, and was {mine.get(name, 'not there')}"
        return ""

    def digest(self) -> str:
        """Returns a hash of it all."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def code_digest(model: nn.Module) -> str:
    """Returns a hash of the modules' plain attributes, and of the code of their classes as this Python compiled it.

    Another release of Python or PyTorch may hash the same code otherwise.
    """
    of = hashlib.sha256()
    classes: dict[type, None] = {}
    for name, module in model.named_modules():
        classes.setdefault(type(module))
        plain = {key: value for key, value in vars(module).items() if _is_plain(value)}
        of.update(repr((name, type(module).__qualname__, sorted(plain.items()))).encode())
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            _add_function(of, type(hook).__qualname__, hook)
    for each in classes:
        for base in each.__mro__:
            if base.__module__.partition(".")[0] in ("torch", "builtins"):
                continue
            for key, value in sorted(vars(base).items()):
                _add_function(of, key, value)
    return of.hexdigest()


def _add_function(of: Any, name: str, function: Any) -> None:
    plain = getattr(function, "__func__", function)  # of a bound, static or class method
    of.update(name.encode())
    if isinstance(plain, FunctionType):
        _add_code(of, plain.__code__)


def _add_code(of: Any, code: CodeType) -> None:
    of.update(code.co_code)
    of.update(repr((code.co_names, code.co_varnames, code.co_freevars)).encode())
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _add_code(of, constant)
        else:
            of.update(_ADDRESS.sub("", repr(constant)).encode())


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return len(value) <= 64 and all(_is_plain(each) for each in value)
    return isinstance(value, _PLAIN)


def _described(module: nn.Module) -> str:
    said = ""
    with contextlib.suppress(Exception):  # a user's own, for printing alone
        said = _ADDRESS.sub("", module.extra_repr())
    return f"{type(module).__qualname__}({said})"


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    for name, module in model.named_modules():
        for key, buffer in module.named_buffers(recurse=False):
            if key not in module._non_persistent_buffers_set:
                yield f"{name}.{key}".lstrip("."), buffer


@torch.no_grad()
def _hashed(name: str, tensor: Tensor) -> str:
    try:
        plain: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        hashed = hashlib.blake2b(plain.numpy(), digest_size=16).hexdigest()
    # Sparse, quantised and wrapping tensors each fail in their own way.
    except Exception as error:
        raise ModelError(
            f"the bytes of tensor {name!r} cannot be read ({first_line(error)}), so that the model cannot be told from "
            "others; give it plain tensors"
        ) from error
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)} {hashed}"
