"""What a model keeps of a pass: features in attributes, lists and dicts, statistics in buffers.

Two passes through such a model must not overlap, or one may read what the other wrote; and nothing kept may hang on the
graph that was recorded, as for the model it was a plain inference.
"""

import operator
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial
from types import BuiltinFunctionType, FunctionType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gaia_fast.inspection.forward_hooks import has_other_hooks

T = TypeVar("T")

# nn.Module's own tables. Hooks come and go in them, and of what they hold the buffers alone are written by a pass.
_OWN = frozenset(vars(nn.Module()))
# What keeps nothing that is not seen: containers are walked through, tensors compared.
_HARMLESS = (
    *(bool, int, float, complex, str, bytes, type(None), type, Enum, partial, list, tuple, dict, deque),
    *(FunctionType, BuiltinFunctionType, Tensor, nn.Module, torch.dtype, torch.device, torch.memory_format),
)
_PLAIN = frozenset((bool, int, float, str, type(None)))


class _Turn:
    """Whose turn it is to run a model; `shared` once a pass was seen to keep nothing, `clean` if it wrote nothing."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.shared = self.clean = False


_turns: "weakref.WeakKeyDictionary[nn.Module, _Turn]" = weakref.WeakKeyDictionary()
_turns_lock = threading.Lock()


def leaves_nothing(model: nn.Module) -> bool:
    """Whether the last pass of `undisturbed` left the model's attributes and tensors as they were.

    No where that cannot be seen: somebody else's hooks may keep anything, as may objects of unknown types. What a model
    keeps of some images alone is not seen either.
    """
    with _turns_lock:
        turn = _turns.get(model)
    if turn is None or not (turn.shared and turn.clean):
        return False
    modules = list(model.modules())
    # Of what is no number, an embedding would make an index that ends everything on a device.
    if any(has_other_hooks(module) or isinstance(module, (nn.Embedding, nn.EmbeddingBag)) for module in modules):
        return False
    return all(issubclass(kind, _HARMLESS) for kind in set(map(type, _held(modules))))


def undisturbed(model: nn.Module, run: Callable[[], T]) -> T:
    """Returns `run()`, a pass through the model that may record a graph, with no other pass in between that matters.

    Passes of several threads overlap unless the model keeps something. What this one leaves in the model's attributes
    is replaced by aliases that hang on no graph; a buffer that it wrote in place stays the tensor that it was.
    """
    with _turns_lock:
        turn = _turns.get(model) or _turns.setdefault(model, _Turn())
    if turn.shared:
        before = _Kept(model)
        try:
            result = run()
        finally:
            turn.shared, turn.clean = not before.changed(), not before.written()
            if not turn.shared:
                with turn.lock:
                    before.cut_loose()
        if turn.shared:
            return result
    with turn.lock:
        before = _Kept(model)
        try:
            return run()
        finally:
            turn.shared, turn.clean = not before.changed(), not before.written()
            before.cut_loose()


class _Kept:
    """What the modules of a model hold, in attributes and buffers and in lists, dicts and tuples in those."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = list(model.modules())
        self._values = self._all()
        parameters = [each for module in self._modules for each in module._parameters.values()]
        tensors = (each for each in (*self._values, *parameters) if isinstance(each, Tensor))
        self._tensors = [each for each in tensors if not is_lazy(each)]  # of layers that never ran
        self._versions = list(map(_version, self._tensors))
        self._recorded = {id(each) for each in self._tensors if each.grad_fn is not None}

    def changed(self) -> bool:
        """Whether something was kept since: a value put elsewhere, or a tensor written that hangs on a graph now."""
        now = self._all()
        return (
            len(now) != len(self._values)
            or not all(map(operator.is_, now, self._values))
            or any(map(self._is_loose, self._tensors))
        )

    def written(self) -> bool:
        """Whether a tensor was written in place since, as far as PyTorch counts it."""
        return list(map(_version, self._tensors)) != self._versions

    def cut_loose(self) -> None:
        """Has nothing that was kept since hang on a graph."""
        before, seen = {id(each) for each in self._values}, set[int]()
        for module in self._modules:
            for table, entries in ((vars(module), _attributes(module)), (module._buffers, [*module._buffers.items()])):
                for name, value in entries:
                    if (new := self._cut(value, before, seen)) is not value:
                        table[name] = new

    def _all(self) -> list[Any]:
        return _held(self._modules) + [each for module in self._modules for each in module._buffers.values()]

    def _is_loose(self, tensor: Tensor) -> bool:
        return tensor.grad_fn is not None and id(tensor) not in self._recorded

    def _cut(self, value: Any, before: set[int], seen: set[int]) -> Any:
        """Returns what stands for `value` now: itself, but for a tensor that is new and a tuple that holds one."""
        if isinstance(value, Tensor):
            if not self._is_loose(value):
                return value
            return value.detach_() if id(value) in before and not value._is_view() else value.detach()
        if isinstance(value, tuple):
            parts = [self._cut(each, before, seen) for each in value]
            if all(map(operator.is_, parts, value)):
                return value
            return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
        if isinstance(value, (dict, list, deque)) and id(value) not in seen:
            seen.add(id(value))
            for key, each in tuple(value.items() if isinstance(value, dict) else enumerate(value)):
                if (new := self._cut(each, before, seen)) is not each:
                    value[key] = new
        return value


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _attributes(module: nn.Module) -> list[tuple[str, Any]]:
    return [item for item in tuple(vars(module).items()) if item[0] not in _OWN]


def _held(modules: Sequence[nn.Module]) -> list[Any]:
    """Returns what modules hold in attributes, and in lists, tuples and dicts in those."""
    found: list[Any] = []
    seen: set[int] = set()
    for module in modules:
        _collect([value for _, value in _attributes(module)], found, seen)
    return found


def _collect(values: Sequence[Any], found: list[Any], seen: set[int]) -> None:
    """Adds the values, and what is in lists, tuples and dicts among them, to `found`."""
    found += values
    for value in values:
        if isinstance(value, (list, tuple, deque, dict)):
            inner = tuple(value.values() if isinstance(value, dict) else value)
            # Sizes and strides of a convolution, mostly; and a container may hold itself.
            if not _PLAIN.issuperset(map(type, inner)) and id(value) not in seen:
                seen.add(id(value))
                _collect(inner, found, seen)
