"""Whether a model is still what it was when it was last looked at: cheap enough to ask at every call.

Two questions. `structure` asks what decides which modules there are to inspect. `ModelGuard` asks all that can be
seen: what the modules hold, by identity, and what lies in memory. It holds what it compares, so that no address can be
used again meanwhile. The C++ extension asks the same as the Python here, faster.

What cannot be seen: globals that the model's code reads, PyTorch's settings and functions among them; what objects of
C or of the standard library hide; what lies deeper than `_DEPTH` objects, or in a container of more than `_MOST`; what
the model's own forward pass writes; and a write that goes round PyTorch (`.data`, numpy, a fused optimiser) and leaves
the sample of `gaia_fast.inspection.memory` as it was.
"""

import functools
import sys
import types
from collections import OrderedDict, UserDict, defaultdict, deque
from collections.abc import Callable, Iterable
from operator import is_
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.modules.module as torch_module
from torch import Tensor, nn

from gaia_fast.backends import kernels
from gaia_fast.inspection.memory import Memory, tensor_functions

_DEPTH = 3
_MOST = 4096
_PATIENCE = 32  # objects that are no longer the same, and equal

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = tuple(f"_global{name}" for name in _HOOKS)
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_HELD = (*_HOOKS, "_parameters", "_buffers", "_modules")
# A forward pass that writes these has changed the model.
_NEVER_EXCEPTED = _OF_EVERY_MODULE | {"forward"}
# Python writes these into classes when it copies, pickles or documents.
_UNIMPORTANT = (
    # torch.compile replaces these in nn.Module when it is first used; a module that exists has no use for them.
    "__init__",
    "__setstate__",
    "___needs_generation_tag_patch",
    "__slotnames__",
    "__doc__",
    "__annotations__",
    "__annotations_cache__",
    "__annotate__",
    "__annotate_func__",
)
_STANDARD = frozenset(sys.stdlib_module_names)
_HOLDERS = (types.SimpleNamespace, UserDict)  # of the standard library, for what a user puts in
_PLAIN = frozenset({bool, int, float, complex, str, bytes, type(None)})
_CONTAINERS = frozenset({list, dict, OrderedDict, defaultdict, set, frozenset, deque, tuple, torch.Size})

# What may change: an object's id, and the name of what it holds; None for all of it.
Place: TypeAlias = tuple[int, Any]


def structure(modules: Iterable[nn.Module]) -> list[Any]:
    """Returns what changes when a module is put in, taken out, renamed, set to training, compiled, given another class
    or forward pass, or loses its statistics."""
    found: list[Any] = []
    for module in modules:
        own = module.__dict__  # `nn.Module` looks here as well, after asking more
        found += (type(module), own["training"], own.get("_compiled_call_impl"), own.get("forward"))
        found.append(own["_buffers"].get("running_var") is None)
        if children := own["_modules"]:
            found += children
            found += children.values()
    return found


def settled(modules: list[nn.Module], run: Callable[[], Any], *, values: bool = True) -> "ModelGuard":
    """Runs the model's forward pass twice; returns what it is like then, but for what both passes wrote."""
    before = ModelGuard(modules, values=values)
    run()
    first = before.changes()
    between = ModelGuard(modules, values=values)
    run()
    return ModelGuard(modules, values=values, but_for=first & between.changes())


class _Anything:
    """Stands for a value that does not matter, and for none."""


_ANYTHING = _Anything()


class ModelGuard:
    """What a model is like now.

    Args:
        modules: all of the model's.
        values: whether to look at what tensors hold, too.
        but_for: places that do not matter.
    """

    def __init__(
        self, modules: Iterable[nn.Module], *, values: bool = True, but_for: frozenset[Place] = frozenset()
    ) -> None:
        self._modules, self._with_values = list(modules), values
        self._first = self._look = _Look(_Walk(self._modules, values, but_for))
        self._but_for = self._look.but_for
        self._patience = _PATIENCE

    @property
    def but_for(self) -> frozenset[Place]:
        """The places that do not matter."""
        return self._but_for

    def holds(self, but_for: torch.device | None = None) -> bool | Tensor:
        """Whether the model is the same: a bool, or where a device has to tell, a 0-d tensor.

        Args:
            but_for: a device whose memory is compared elsewhere; that tensors are in place is asked here.
        """
        look = self._look
        same = look.holds(but_for)
        if same is False and look is not self._first:  # another thread may have been writing when it was made
            self._look = look = self._first
            same = look.holds(but_for)
        if same is not False and look.watch is not None and look.watch.asked() >= self._patience:
            self._patience *= 8  # a model may put new ones there again and again
            self._look = self.renewed()._look
        return same

    def sample_on(self, device: torch.device) -> tuple[list[Tensor], Tensor]:
        """Returns what is compared of a device's memory, where all tensors are in place: views, and what they held.

        Both are uint8; the views are kept alive, so that a CUDA graph may read them again and again.
        """
        for views, expected in self._look.samples:
            if expected.device == device:
                return views, expected
        return [], torch.empty(0, dtype=torch.uint8, device=device)

    def renewed(self) -> "ModelGuard":
        """The same, of the objects that are there now: faster to ask where some are others, and no different.

        PyTorch's exporter, for one, puts equal ones in the place of others, and to compare what two of them hold takes
        ten times as long.
        """
        now = ModelGuard(self._modules, values=self._with_values, but_for=self._but_for)
        # Before and behind: what another thread writes for a moment is not what the model is like.
        return now if all(look.holds(None) for look in (now._look, self._first, now._look)) else self

    def changes(self) -> frozenset[Place]:
        """The places that have changed, of those that a forward pass may write."""
        return frozenset(place for node in self._look.nodes for place in node.changes())


class _Look:
    """What was found of a model at one time. It keeps alive what it is compared with."""

    def __init__(self, walk: "_Walk") -> None:
        self.nodes = [*walk.objects, *walk.tables, *walk.items, *walk.values]
        self._left_out = walk.left_out
        names = {(id(table.held), name) for table in walk.tables for name in table.but_for}
        self.but_for = frozenset(names | {(id(each), None) for each in walk.left_out})
        self._slow: list[_Node] = self.nodes
        self.watch = None
        by_views = walk.values
        if kernels is not None:
            self._slow = [node for node in self.nodes if not node.fast]
            by_views = [node for node in walk.values if not node.memory.read]
            self._bytes = _together([node.expected for node in walk.values if node.memory.read])
            self.watch = kernels.Watch(
                [(node.held, node.kind, node.attributes) for node in walk.objects],
                [(node.held, node.arguments(), node) for node in walk.tables if node.fast],
                [(node.held, node.expected, node) for node in walk.items if node.fast],
                [node.memory.arguments() for node in walk.values if node.fast],
                self._bytes.data_ptr(),
                _GETTERS,
                tensor_functions(),
                _ANYTHING,
                _UNIMPORTANT,
            )
        self.samples: list[tuple[list[Tensor], Tensor]] = []
        for device in dict.fromkeys(node.expected.device for node in by_views if node.views):
            here = [node for node in by_views if node.views and node.expected.device == device]
            views = [view for node in here for view in node.views]
            self.samples.append((views, _together([node.expected for node in here])))

    def holds(self, but_for: torch.device | None) -> bool | Tensor:
        """See `ModelGuard.holds`."""
        if self.watch is not None and not self.watch.unchanged():
            return False
        if not all(node.holds() for node in self._slow):
            return False
        same = [
            _same_bytes(_together(views), expected) for views, expected in self.samples if expected.device != but_for
        ]
        return same[0] if len(same) == 1 else all(bool(each) for each in same)


class _Node:
    """One thing to compare. `fast`: the extension asks it, in a way that must mean the same."""

    fast = True

    def holds(self) -> bool:
        raise NotImplementedError

    def changes(self) -> Iterable[Place]:
        """What has changed of what a forward pass may write."""
        raise NotImplementedError


class _Object(_Node):
    """An object of one class, and the dictionary of its attributes."""

    def __init__(self, held: Any) -> None:
        self.held, self.kind, self.attributes = held, type(held), held.__dict__

    def holds(self) -> bool:
        return type(self.held) is self.kind and self.held.__dict__ is self.attributes

    def changes(self) -> Iterable[Place]:
        return ()


class _Table(_Node):
    """A dictionary, or that of a class: names and what they stand for.

    Args:
        held: the dictionary or class.
        but_for: names that do not matter.
        of_names: whether it holds names in no order, one of which a forward pass may write; or it matters as a whole.
        never: names that a forward pass does not write; None for all.
    """

    def __init__(
        self, held: Any, but_for: frozenset[Any], *, of_names: bool, never: frozenset[Any] | None = frozenset()
    ) -> None:
        self.held, self.but_for, self.of_names, self.never = held, but_for, of_names, never
        self.expected = self._now()
        self.fast = not (isinstance(held, OrderedDict) and held)  # the order that it shows is not that of its memory

    def arguments(self) -> list[tuple[Any, Any]]:
        """For the extension: names, and what they stand for."""
        return list(self.expected.items())

    def _now(self) -> dict[Any, Any]:
        # Copied in one step: another thread may be writing it.
        now = dict(vars(self.held)) if isinstance(self.held, type) else dict.copy(self.held)
        left_out = [name for name, value in now.items() if _is_own_hook(value)]
        if isinstance(self.held, type):
            left_out += now.keys() & _UNIMPORTANT
        for name in left_out:
            del now[name]
        now.update((name, _ANYTHING) for name in self.but_for & now.keys())  # and is not kept alive
        return now

    def _is_untouched(self) -> bool:
        """Whether every name and value is the very object: cheaper to ask, and nearly always so."""
        expected, held = self.expected, self.held
        if isinstance(held, type):
            names, values = [*vars(held)], [*vars(held).values()]
        elif held or expected:
            names, values = [*dict.keys(held)], [*dict.values(held)]
        else:
            return True
        same = len(names) == len(values) == len(expected)
        return same and all(map(is_, names, expected)) and all(map(is_, values, expected.values()))

    def _different(self, now: dict[Any, Any]) -> list[Any]:
        names = {**self.expected, **now}.keys() - self.but_for
        missing = object()
        return [name for name in names if not _same(now.get(name, missing), self.expected.get(name, missing))]

    def holds(self) -> bool:
        if self.fast and self._is_untouched():
            return True
        now = self._now()
        return not self._different(now) and (self.of_names or list(now) == list(self.expected))

    def changes(self) -> Iterable[Place]:
        if self.never is None:
            return ()
        if not self.of_names:
            return () if self.holds() else [(id(self.held), None)]
        return [(id(self.held), name) for name in self._different(self._now()) if name not in self.never]


class _Items(_Node):
    """What a container without names holds, or a function is made of."""

    def __init__(self, held: Any) -> None:
        self.held = held
        self.expected = _items(held)
        self.fast = isinstance(held, (list, types.FunctionType))

    def holds(self) -> bool:
        now = _items(self.held)
        if isinstance(self.held, set):
            return _members(now) == _members(self.expected)
        return len(now) == len(self.expected) and all(map(_same, now, self.expected))

    def changes(self) -> Iterable[Place]:
        return () if self.holds() else [(id(self.held), None)]


class _Values(_Node):
    """What a tensor holds.

    Args:
        tensor: the tensor.
        owner: it, or the array whose memory it shares.
    """

    def __init__(self, tensor: Tensor, owner: Any) -> None:
        self.owner = owner
        self.memory = Memory(tensor, by_extension=kernels is not None)
        self.fast = self.memory.asked
        self.views = self.memory.views()
        self.expected = _together(self.views)
        if self.memory.read:
            self.views = []

    def holds(self) -> bool:
        """But for the bytes: those of a device are looked at together."""
        return self.memory.is_in_place()

    def changes(self) -> Iterable[Place]:
        if isinstance(self.owner, nn.Parameter):
            return ()
        same = self.holds() and bool(_same_bytes(_together(self.memory.views()), self.expected))
        return () if same else [(id(self.owner), None)]


class _Walk:
    """Finds what there is to compare, nearest things first."""

    def __init__(self, modules: Iterable[nn.Module], values: bool, but_for: frozenset[Place]) -> None:
        self.objects: list[_Object] = []
        self.tables: list[_Table] = []
        self.items: list[_Items] = []
        self.values: list[_Values] = []
        self.left_out: list[Any] = []  # kept alive as well
        self._with_values = values
        self._but_for: dict[int, set[Any]] = {}
        for owner, name in but_for:
            self._but_for.setdefault(owner, set()).add(name)
        self._seen: dict[int, Any] = {}  # kept alive, so that no id is used again
        self._classes: set[int] = set()
        self._ahead: deque[tuple[Any, int]] = deque((module, _DEPTH) for module in modules)
        for name in _GLOBAL_HOOKS:
            self._later(self._table(getattr(torch_module, name), never=None).values(), _DEPTH)
        while self._ahead:
            self._see(*self._ahead.popleft())

    def _see(self, thing: Any, depth: int) -> None:
        kind = type(thing)
        if kind in _PLAIN or id(thing) in self._seen:
            return
        if self._is_left_out(thing):
            self.left_out.append(thing)
            return
        self._seen[id(thing)] = thing
        if issubclass(kind, (Tensor, np.ndarray)):
            if self._with_values:
                self._memory(thing)
        elif issubclass(kind, nn.Module):
            self._module(thing)
        elif depth > 0:
            self._plain(thing, kind, depth - 1)

    def _is_left_out(self, thing: Any) -> bool:
        return None in self._but_for.get(id(thing), ())

    def _plain(self, thing: Any, kind: type, depth: int) -> None:
        if issubclass(kind, type):
            self._class(thing, depth)
        elif kind in (types.FunctionType, types.MethodType, functools.partial, property, staticmethod, classmethod):
            self._function(thing, depth)
        elif issubclass(kind, (dict, list, set, deque, tuple, frozenset)) and len(thing) <= _MOST:
            if issubclass(kind, dict):
                self._later(self._table(thing).values(), depth)
            else:
                if not issubclass(kind, (tuple, frozenset)):
                    self.items.append(_Items(thing))
                self._later(tuple(thing), depth)
        if (kind in _HOLDERS or _package(kind) not in _STANDARD | {"gaia_fast"}) and _has_attributes(thing):
            self.objects.append(_Object(thing))
            self._later(self._table(thing.__dict__, of_names=True).values(), depth)
            self._class(kind, depth)

    def _function(self, thing: Any, depth: int) -> None:
        if isinstance(thing, types.FunctionType):
            self.items.append(_Items(thing))
            self._later(_items(thing), depth)
        elif isinstance(thing, property):
            self._later((thing.fget,), depth)
        elif isinstance(thing, functools.partial):
            self._later((thing.func, thing.args, thing.keywords), depth)
        else:
            self._later((getattr(thing, "__self__", None), thing.__func__), depth)

    def _module(self, module: nn.Module) -> None:
        self.objects.append(_Object(module))
        own = self._table(module.__dict__, of_names=True, never=_NEVER_EXCEPTED)
        self._class(type(module), _DEPTH)
        for name in _HELD:
            if name == "_buffers":
                self._later(self._table(module.__dict__[name], of_names=True).values(), _DEPTH)
            else:
                self._later(self._table(module.__dict__[name], never=None).values(), _DEPTH)
        self._later([value for name, value in own.items() if name not in _OF_EVERY_MODULE], _DEPTH)

    def _class(self, kind: type, depth: int) -> None:
        for each in kind.__mro__:
            # Those of C cannot be written. PyTorch's methods are compared, but not what they are made of.
            if not each.__flags__ & 1 << 9 or id(each) in self._classes:
                continue
            self._classes.add(id(each))
            held = self._table(each, of_names=True)
            if depth > 0 and _package(each) not in _STANDARD | {"torch", "gaia_fast"}:
                self._later(held.values(), depth - 1)

    def _table(
        self, held: Any, *, of_names: bool = False, never: frozenset[Any] | None = frozenset()
    ) -> dict[Any, Any]:
        """Returns what the dictionary or class holds, without what does not matter."""
        but_for = set(self._but_for.get(id(held), ()))
        if of_names and not isinstance(held, type):
            # A container that the forward pass writes may be replaced by a copy: the name is what stays.
            now = dict.copy(held)
            but_for.update(
                name for name, value in now.items() if type(value) in _CONTAINERS and self._is_left_out(value)
            )
        self.tables.append(_Table(held, frozenset(but_for), of_names=of_names, never=never))
        return self.tables[-1].expected

    def _memory(self, owner: Any) -> None:
        tensor = owner
        if not isinstance(owner, Tensor):
            try:
                if not owner.flags.writeable:
                    return
                tensor = torch.from_numpy(owner)
            except (TypeError, ValueError):  # an array of what no tensor holds
                return
        self.values.append(_Values(tensor, owner))

    def _later(self, things: Iterable[Any], depth: int) -> None:
        self._ahead.extend((thing, depth) for thing in things)


def _items(held: Any) -> tuple[Any, ...]:
    if not isinstance(held, types.FunctionType):
        try:
            return tuple(held)
        except RuntimeError:  # another thread writes it just now
            return (object(),)
    cells = held.__closure__ or ()
    return (held.__code__, held.__defaults__, held.__kwdefaults__, *map(_content, cells))


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not yet filled
        return _ANYTHING


def _package(kind: type) -> str:
    return str(kind.__module__).partition(".")[0]


def _has_attributes(thing: Any) -> bool:
    """Whether the object has a plain dictionary of attributes, always the same one."""
    try:
        return type(thing.__dict__) is dict and thing.__dict__ is thing.__dict__
    except Exception:
        return False


def _is_own_hook(value: Any) -> bool:
    return isinstance(value, types.FunctionType) and hasattr(value, "of_gaia_fast")


def _same(a: Any, b: Any, depth: int = _DEPTH + 1) -> bool:
    """Whether two things are one, or equal for good: 1 is not True, 0.0 not -0.0, and NaN is NaN.

    A container may be another one that holds the same: PyTorch's exporter puts such into modules.
    """
    if a is b:
        return True
    kind = type(a)
    if kind is not type(b):
        return False
    if kind in (float, complex):
        return repr(a) == repr(b)
    if kind in _PLAIN:
        return bool(a == b)
    if depth == 0 or not (kind in _CONTAINERS or _is_named_tuple(kind)) or len(a) != len(b):
        return False
    if kind is defaultdict and a.default_factory is not b.default_factory:
        return False
    if kind in (set, frozenset):
        return _members(a) == _members(b)
    if issubclass(kind, dict):
        return all(
            _same(x, y, depth - 1)
            for pair in zip(a.items(), b.items(), strict=True)
            for x, y in zip(*pair, strict=True)
        )
    return all(_same(x, y, depth - 1) for x, y in zip(a, b, strict=True))


def _is_named_tuple(kind: type) -> bool:
    """Whether objects of the class are tuples with names, and have no attributes besides."""
    return issubclass(kind, tuple) and hasattr(kind, "_fields") and not kind.__dictoffset__


def _members(held: Iterable[Any]) -> set[Any]:
    """What a set holds, in no order."""
    return {(type(each), repr(each)) if type(each) in _PLAIN else id(each) for each in held}


def _together(views: list[Tensor]) -> Tensor:
    return torch.cat(views) if views else torch.empty(0, dtype=torch.uint8)


def _same_bytes(a: Tensor, b: Tensor) -> bool | Tensor:
    return torch.equal(a, b) if a.device.type == "cpu" else (a == b).all()


_GETTERS = (
    torch.Tensor._version,
    torch.Tensor.data_ptr,
    torch.Tensor.shape,
    torch.Tensor.stride,
    torch.Tensor.dtype,
    torch.UntypedStorage.nbytes,
    torch.Tensor._cdata,
)
