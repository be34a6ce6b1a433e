"""What a model is like, to be compared with and put back: attributes and hooks of its modules, parameters, buffers."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.modules.module as torch_module
from torch import Tensor, nn

_MISSING = object()
_PLAIN = (bool, int, float, str, type(None))


class ModelState:
    """What a model is like now.

    Of its modules every attribute is compared, hooks and training flags among them, and so are the hooks of all
    modules; containers by what they hold, everything by identity. Parameters and buffers are copied, with their
    gradients, and compared bit for bit.

    Args:
        model: the model.
        passes: through it: what any of them writes is the model's own doing, which is put back, and then not compared
            until `restore`.
    """

    def __init__(self, model: nn.Module, *passes: Callable[[], object]) -> None:
        tables = {name or "the model": vars(module) for name, module in model.named_modules()}
        self._tables = [(name, table, _held(table)) for name, table in tables.items()]
        everywhere = {key: value for key, value in vars(torch_module).items() if key.startswith("_global_")}
        self._tables.append(("every module", vars(torch_module), _held(everywhere)))
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self._tensors = [_SavedTensor(name, tensor) for name, tensor in tensors.items()]
        self._own, own = set[str](), set[str]()
        try:
            for run in passes:
                with torch.no_grad():
                    run()
                own.update(self.changes())
        finally:
            self.put_back()
        self._own = own

    def __len__(self) -> int:
        """How many modules, parameters and buffers there are."""
        return len(self._tables) - 1 + len(self._tensors)

    def changes(self) -> list[str]:
        """Returns the names of what is no longer the same."""
        entries = [each.name for each in self._changed_entries()]
        return entries + [name for each in self._tensors for name in each.changes() if name not in self._own]

    def put_back(self) -> None:
        """Makes everything what it was, but for what the model's own passes write."""
        for entry in list(self._changed_entries()):
            entry.put_back()
        for each in self._tensors:
            if set(each.changes()) - self._own:
                each.put_back()

    def restore(self) -> None:
        """Makes everything what it was before the first pass; from then on, everything is compared."""
        self._own = set()
        self.put_back()

    def _changed_entries(self) -> Iterator["_Entry"]:
        for owner, table, before in self._tables:
            added = {} if table is vars(torch_module) else dict.fromkeys(table.keys() - before.keys(), (_MISSING, None))
            for key, (value, content) in {**before, **added}.items():
                entry = _Entry(f"{owner}.{key}", table, key, value, content)
                if entry.changed() and entry.name not in self._own:
                    yield entry


class _Entry(NamedTuple):
    """An entry of a table of attributes: what it was, and what that held if it is a container."""

    name: str
    table: dict[str, Any]
    key: str
    value: Any
    content: Any

    def changed(self) -> bool:
        now = self.table.get(self.key, _MISSING)
        same = now is self.value or (type(now) in _PLAIN and type(now) is type(self.value) and now == self.value)
        return not (same and _alike(_content(now), self.content))

    def put_back(self) -> None:
        if self.value is _MISSING:
            self.table.pop(self.key, None)
            return
        self.table[self.key] = self.value
        if isinstance(self.value, list):
            self.value[:] = self.content
        elif self.content is not None:
            self.value.clear()
            self.value.update(self.content)


class _SavedTensor:
    """A parameter or buffer, with a copy of what it holds and of its gradient."""

    def __init__(self, name: str, tensor: Tensor) -> None:
        self._name, self._tensor = name, tensor
        self._values, self._requires_grad = tensor.detach().clone(), tensor.requires_grad
        self._grad = tensor.grad if tensor.is_leaf else None
        self._grad_values = None if self._grad is None else self._grad.detach().clone()

    def changes(self) -> Iterator[str]:
        if not equal_bits(self._tensor, self._values):
            yield f"the values of {self._name}"
        if self._tensor.requires_grad != self._requires_grad:
            yield f"{self._name}.requires_grad"
        grad = self._tensor.grad if self._tensor.is_leaf else None
        written = grad is not None and self._grad_values is not None and not equal_bits(grad, self._grad_values)
        if grad is not self._grad or written:
            yield f"{self._name}.grad"

    def put_back(self) -> None:
        if not equal_bits(self._tensor, self._values):
            self._tensor.data.copy_(self._values)
        if self._tensor.is_leaf:
            self._tensor.requires_grad_(self._requires_grad)
            self._tensor.grad = self._grad
            if self._grad is not None and self._grad_values is not None:
                self._grad.data.copy_(self._grad_values)


def _held(table: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {key: (value, _content(value)) for key, value in table.items()}


def _content(value: Any) -> Any:
    """What a container holds, in a copy; None for what is none."""
    if isinstance(value, dict):
        return dict(value)
    return set(value) if isinstance(value, set) else list(value) if isinstance(value, list) else None


def _alike(now: Any, then: Any) -> bool:
    if isinstance(now, dict) and isinstance(then, dict):
        return list(now) == list(then) and all(each is then[key] for key, each in now.items())
    if isinstance(now, list) and isinstance(then, list):
        return len(now) == len(then) and all(a is b for a, b in zip(now, then, strict=True))
    return bool(type(now) is type(then) and now == then)


def equal_bits(found: Tensor, expected: Tensor) -> bool:
    """Returns whether two tensors are of one shape, dtype and device, and hold the same bits, NaN or not."""
    if found.shape != expected.shape or found.dtype != expected.dtype or found.device != expected.device:
        return False
    if found.is_quantized or expected.is_quantized:  # there are no bytes to look at
        return torch.equal(found, expected)
    if found.layout != torch.strided or expected.layout != torch.strided:
        found, expected = found.to_dense(), expected.to_dense()
    return torch.equal(*(each.detach().contiguous().reshape(-1).view(torch.uint8) for each in (found, expected)))
