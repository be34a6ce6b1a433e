"""Hooks on modules for the length of one forward pass, and not a moment longer."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial, wraps
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

import torch
import torch.nn.modules.module as torch_module
from torch import Tensor, nn

from gaia_fast.inspection import checks

P = ParamSpec("P")
T = TypeVar("T")


def in_grad_mode(enabled: bool) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Runs a function with gradients on or off and outside of inference mode; then puts both modes back.

    The way back is one C function. Python may raise KeyboardInterrupt wherever a function of its own begins, and so in
    the middle of leaving torch.no_grad.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            with torch._C._InferenceMode(False):  # keeps the gradient mode, too
                torch._C._set_grad_enabled(enabled)
                return function(*args, **kwargs)

        return call

    return decorate


class OutputReplacedError(BaseException):  # no Exception: those are for the model to catch
    """A hook of the user's has a say in what the model computes, so gradients must pass it."""


class ForwardHooks:
    """Watches modules, until `remove` is called in a `finally` clause:

        hooks = ForwardHooks()
        try:
            ...
        finally:
            hooks.remove()

    The hooks answer only to the thread that made them: a model that serves several threads at once keeps each thread's
    pass apart.

    Attributes:
        remove: takes every hook away. Made of C functions alone, so that KeyboardInterrupt finds no moment in it; a
            context manager written in Python has one where its __exit__ begins.
        guarded: ids of the modules that are refused if they are in training mode when they begin.
        called: ids of the modules that a hook answered for after they ran.
        elsewhere: ids of the modules that another thread called meanwhile, and not for a pass of this kind.
    """

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._undo: list[partial[Any]] = []
        self.remove: Callable[[], object] = partial(deque, map(partial.__call__, self._undo), 0)
        self.guarded: set[int] = set()
        self.called: set[int] = set()
        self.elsewhere: set[int] = set()

    def __enter__(self) -> "ForwardHooks":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def before(self, module: nn.Module, callback: Callable[[nn.Module, Any], Any]) -> None:
        """Calls `callback(module, first input)` before the module runs; a tensor returned replaces that input.

        The module is refused there if it is in training mode by then.
        """

        # Another thread may call the hook after the note is gone that it takes keywords: it has no say in it anyway.
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
            if not self._answers(module):
                return None
            name = next(iter(kwargs or {}), None)
            given = args[0] if args else None if not kwargs or name is None else kwargs[name]
            replaced = callback(module, given)
            checks.check_mode(module)  # last: what runs before lets other threads in
            if replaced is None:
                return None
            return ((replaced, *args[1:]), kwargs) if args else (args, {**(kwargs or {}), str(name): replaced})

        self.guarded.add(id(module))
        self._place(hook, module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs)

    def after(
        self,
        module: nn.Module,
        callback: Callable[[nn.Module, Any], Any],
        *,
        also_failed: bool = False,
        first: bool = False,
    ) -> None:
        """Calls `callback(module, output)` after the module ran; a tensor returned replaces the output.

        With `also_failed` it is called with None where the module raised, as the model may catch the exception; with
        `first` before the hooks that are there already.
        """

        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if not self._answers(module) or (output is None and not also_failed):
                return None
            self.called.add(id(module))
            return callback(module, output)

        self._place(hook, module._forward_hooks, *([module._forward_hooks_always_called] if also_failed else []))
        if first:
            module._forward_hooks.move_to_end(id(hook), last=False)  # type: ignore[attr-defined]

    def apart(self, module: nn.Module) -> None:
        """Has hooks of others see an alias of the module's output that hangs on no graph: they may keep it.

        To be called before any other method for the module.

        Raises:
            OutputReplacedError: in the forward pass, where one of those hooks returns or writes something else.
        """
        shown: list[tuple[Tensor, Tensor, int]] = []  # the output, its alias, and how often it was written

        def show(_: nn.Module, output: Any) -> Any:
            shown.clear()
            if not isinstance(output, Tensor) or not output.requires_grad:
                return None
            shown.append((output, output.detach(), output._version))
            return shown[-1][1]

        def take_back(_: nn.Module, seen: Any) -> Any:
            if not shown:
                return None
            output, alias, version = shown.pop()
            if seen is not alias or alias._version != version:
                raise OutputReplacedError
            return output

        self.after(module, show, first=True)
        self.after(module, take_back)

    def between(self, module: nn.Module, inner: Sequence[nn.Module], callback: Callable[[nn.Module, Any], Any]) -> None:
        """Calls `callback(module, tensor)` with what the first of `inner` that `module` calls reads.

        Where it calls none of them with a 4-D tensor, with its own output. A tensor returned replaces that one.
        """
        running: list[bool] = []  # for each call of the module under way: was an inner module seen?

        def enter(_: nn.Module, __: Any) -> None:
            running.append(False)

        def inside(_: nn.Module, x: Any) -> Any:
            if not running or running[-1] or not (isinstance(x, Tensor) and x.ndim == 4):
                return None
            running[-1] = True
            return callback(module, x)

        def leave(_: nn.Module, output: Any) -> Any:
            seen = running.pop() if running else True
            return None if seen or output is None else callback(module, output)

        self.before(module, enter)
        for each in inner:
            self.before(each, inside)
        self.after(module, leave, also_failed=True)

    def _place(self, hook: Callable[..., Any], hooks: dict[int, Callable[..., Any]], *notes: dict[int, bool]) -> None:
        """Puts a hook where `register_forward_hook` does, with the notes on how to call it.

        Its removal is arranged for first: an interruption after `register_forward_hook`'s own work would lose the
        handle. The key is unique without a counter, which two threads might read at once.
        """
        hook.of_gaia_fast = self._thread  # type: ignore[attr-defined]
        key = id(hook)
        for note in notes:
            self._undo.append(partial(note.pop, key, None))
            note[key] = True
        self._undo.append(partial(hooks.pop, key, None))
        hooks[key] = hook

    def _answers(self, module: nn.Module) -> bool:
        thread = threading.get_ident()
        if thread == self._thread:
            return True
        if id(module) not in self.elsewhere and all(
            getattr(hook, "of_gaia_fast", None) != thread for hook in tuple(module._forward_hooks.values())
        ):
            self.elsewhere.add(id(module))
        return False


def has_other_hooks(module: nn.Module) -> bool:
    """Returns whether anyone else's hook may change what `module` returns, or wants to see its gradients."""
    return (
        has_own_hooks(module)
        or bool(torch_module._global_forward_hooks)
        or bool(module._backward_hooks or module._backward_pre_hooks)
        or bool(torch_module._global_backward_hooks or torch_module._global_backward_pre_hooks)
    )


def has_own_hooks(module: nn.Module) -> bool:
    """Returns whether anyone else put a forward hook on this very module."""
    # Copied in one step: another thread may be hooking it, too.
    hooks = module._forward_hooks
    return bool(hooks) and any(not hasattr(hook, "of_gaia_fast") for hook in tuple(hooks.values()))
