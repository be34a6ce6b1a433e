"""Which model this is, told in another process: what its modules say of themselves, and what its tensors hold."""

import contextlib
import enum
import functools
import hashlib
import json
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.modules.module as torch_module
from torch import Tensor, nn

from gaia_fast.errors import ModelError, first_line
from gaia_fast.inspection.guards import Place

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_PLAIN = (bool, int, float, complex, str, bytes, type(None), enum.Enum, torch.dtype, torch.device, torch.layout)
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_OF_COMPILERS = ("_is_torch", "_torch", "_dynamo")  # what PyTorch leaves in modules that it has compiled
_DEPTH = 5
_LONGEST = 200  # of what is said; more is hashed
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")


@dataclass(frozen=True)
class Fingerprint:
    """What two models are told apart by.

    Attributes:
        modules: by name, the class, what it says of itself (sizes, strides, constants), and attributes of its own.
        tensors: by name, dtype, shape and a hash of the bytes, of parameters and buffers.
        left_out: the names of attributes and buffers that a forward pass writes.
    """

    modules: dict[str, str]
    tensors: dict[str, str]
    left_out: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, model: nn.Module, written: Iterable[Place] = frozenset(), left_out: Iterable[str] = ()
    ) -> "Fingerprint":
        """Returns a model's.

        Args:
            model: the model.
            written: what a forward pass writes, as `ModelGuard.but_for` has it.
            left_out: the same, by names.

        Raises:
            ModelError: a tensor's bytes cannot be read; it is named.
        """
        own = _Own(model, written, left_out)
        modules = {name: own.described(name, module) for name, module in model.named_modules()}
        tensors = {name: _hashed(name, tensor) for name, tensor in own.tensors()}
        return cls(modules, tensors, tuple(sorted(own.left_out)))

    @classmethod
    def read(cls, data: Any) -> "Fingerprint":
        """Returns what `asdict` made plain data of; ValueError where they are none."""
        if not isinstance(data, Mapping) or data.keys() != {"modules", "tensors", "left_out"}:
            raise ValueError("there is no fingerprint")
        for part in (data["modules"], data["tensors"]):
            if not isinstance(part, Mapping) or not all(isinstance(each, str) for each in (*part, *part.values())):
                raise ValueError("the fingerprint has other parts than names and strings")
        return cls(dict(data["modules"]), dict(data["tensors"]), tuple(map(str, data["left_out"])))

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
        return hashlib.sha256(json.dumps([self.modules, self.tensors], sort_keys=True).encode()).hexdigest()


class _Own:
    """What a model has that no forward pass writes; `left_out` fills with the names of what one does."""

    def __init__(self, model: nn.Module, written: Iterable[Place], left_out: Iterable[str]) -> None:
        self.model, self.left_out = model, set(left_out)
        self._places = frozenset(written)
        self._owners = {owner for owner, _ in self._places}

    def described(self, name: str, module: nn.Module) -> str:
        said = ""
        with contextlib.suppress(Exception):  # a user's own, for printing alone
            said = _ADDRESS.sub("", module.extra_repr())
        parts = [f"{type(module).__qualname__}({said})"]
        for key in _HOOKS:
            parts += [f"{key}={_said(hook)}" for hook in vars(module)[key].values() if not _is_own(hook)]
        for key, value in vars(module).items():
            if self._matters(type(module), key) and not self._is_written(f"{name}.{key}", vars(module), key, value):
                parts.append(f"{key}={_said(value)}")
        return " ".join([parts[0], *sorted(parts[1:])])

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.model.named_parameters()
        for name, module in self.model.named_modules():
            for key, buffer in module.named_buffers(recurse=False):
                if not self._is_written(f"{name}.{key}", vars(module)["_buffers"], key, buffer):
                    yield f"{name}.{key}".lstrip("."), buffer

    def _is_written(self, name: str, holder: Any, key: str, value: Any) -> bool:
        if (id(holder), key) in self._places or id(value) in self._owners:
            self.left_out.add(name)
        return name in self.left_out

    def _matters(self, kind: type, key: str) -> bool:
        """Whether an attribute is the user's: PyTorch's own modules say themselves what they are."""
        if key == "forward":
            return True
        of_torch = kind.__module__.partition(".")[0] == "torch"
        return not of_torch and key not in _OF_EVERY_MODULE and not key.startswith(_OF_COMPILERS)


def code_digest(model: nn.Module) -> str:
    """Returns a hash of the code of the modules' classes, hooks and functions, as this Python compiled it.

    With what these read: their classes' attributes, defaults, closures, and functions and constants of the same
    package. Another release of Python may hash the same code otherwise.
    """
    code = _Code()
    for module in model.modules():
        code.add_class(type(module))
        code.add_attributes(module)
    for name in ("_global_forward_pre_hooks", "_global_forward_hooks"):
        for hook in getattr(torch_module, name).values():
            code.add(hook)
    return hashlib.sha256("\n".join(code.parts).encode()).hexdigest()


class _Code:
    def __init__(self) -> None:
        self.parts: list[str] = []
        self._seen: set[int] = set()
        self._alive: list[Any] = []  # so that no identity is handed out twice

    def add_class(self, kind: type) -> None:
        for base in kind.__mro__:
            if base.__module__.partition(".")[0] in ("torch", "builtins") or not self._is_new(base):
                continue
            self.parts.append(base.__qualname__)
            for key, value in sorted(vars(base).items()):
                if not key.startswith("__") or isinstance(value, types.FunctionType):
                    self.parts.append(key)
                    self.add(value)

    def add_attributes(self, module: nn.Module) -> None:
        for key in _HOOKS:
            for hook in vars(module)[key].values():
                if not _is_own(hook):
                    self.add(hook)
        for key, value in vars(module).items():
            if key not in _OF_EVERY_MODULE or key == "forward":
                self.add_functions(value)

    def add_functions(self, value: Any, depth: int = _DEPTH) -> None:
        """Adds the functions among an attribute's parts; what else it is, a fingerprint says."""
        if isinstance(value, (types.FunctionType, types.MethodType, functools.partial)):
            self.add(value)
        elif isinstance(value, (list, tuple)) and depth:
            for each in value:
                self.add_functions(each, depth - 1)
        elif isinstance(value, dict) and depth:
            for each in value.values():
                self.add_functions(each, depth - 1)

    def add(self, value: Any) -> None:
        if isinstance(value, property):
            for each in (value.fget, value.fset):
                self.add(each)
        elif isinstance(value, functools.partial):
            self.parts.append(_said([list(value.args), dict(value.keywords)]))
            self.add(value.func)
        elif isinstance(plain := getattr(value, "__func__", value), types.FunctionType):
            self._add_function(plain)
        else:
            self.parts.append(_said(value))

    def _add_function(self, function: types.FunctionType) -> None:
        if not self._is_new(function):
            return
        self.parts.append(function.__qualname__)
        self._add_code(function.__code__)
        self.parts.append(_said([function.__defaults__, function.__kwdefaults__]))
        for cell in function.__closure__ or ():
            with contextlib.suppress(ValueError):  # not yet filled
                self.add(cell.cell_contents)
        package = function.__module__.partition(".")[0] if function.__module__ else ""
        for name in _names(function.__code__):
            found = function.__globals__.get(name)
            if isinstance(found, types.FunctionType):
                if found.__module__ and found.__module__.partition(".")[0] == package != "torch":
                    self.add(found)
            elif isinstance(found, _PLAIN) and found is not None:
                self.parts.append(f"{name}={_said(found)}")

    def _add_code(self, code: types.CodeType) -> None:
        self.parts.append(code.co_code.hex())
        self.parts.append(repr((code.co_names, code.co_varnames, code.co_freevars)))
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._add_code(constant)
            else:
                self.parts.append(_said(constant))

    def _is_new(self, thing: Any) -> bool:
        if id(thing) in self._seen:
            return False
        self._seen.add(id(thing))
        self._alive.append(thing)
        return True


def _names(code: types.CodeType) -> list[str]:
    """The globals and attributes that a function names, and those inside it."""
    inner = [name for each in code.co_consts if isinstance(each, types.CodeType) for name in _names(each)]
    return [*code.co_names, *inner]


def _said(value: Any, depth: int = _DEPTH) -> str:
    """What a value is, in words that another process has, too."""
    text = _written_out(value, depth)
    if len(text) <= _LONGEST:
        return text
    return f"{type(value).__name__} {hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"


def _written_out(value: Any, depth: int) -> str:
    if isinstance(value, _PLAIN):
        return _ADDRESS.sub("", repr(value))
    kind = type(value)
    if isinstance(value, Tensor):
        return _hashed("an attribute", value)
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape} {hashlib.blake2b(value.tobytes(), digest_size=16).hexdigest()}"
    if isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType, types.MethodType)):
        return value.__qualname__
    if isinstance(value, nn.Module) or depth == 0:
        return kind.__qualname__
    if isinstance(value, functools.partial):
        return f"partial({_said([value.func, list(value.args), dict(value.keywords)], depth - 1)})"
    if isinstance(value, (set, frozenset)):
        return f"{kind.__name__}{sorted(_said(each, depth - 1) for each in value)}"
    if isinstance(value, (list, tuple)):
        return f"{kind.__name__}{[_said(each, depth - 1) for each in value]}"
    if isinstance(value, Mapping):
        return f"{kind.__name__}{[(_said(key, depth - 1), _said(each, depth - 1)) for key, each in value.items()]}"
    attributes = getattr(value, "__dict__", None)
    if isinstance(attributes, dict):
        # Private ones tell where a configuration was read from, and the like.
        public = [(key, _said(each, depth - 1)) for key, each in attributes.items() if not key.startswith("_")]
        return f"{kind.__qualname__}{public}"
    return kind.__qualname__


def _is_own(hook: Any) -> bool:
    return hasattr(hook, "of_gaia_fast")


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
