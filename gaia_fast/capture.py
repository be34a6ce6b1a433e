"""Hooks on modules for the length of one forward pass, and not a moment longer."""

import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch.nn.modules.module as torch_module
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class ForwardHooks:
    """A context in which modules can be watched; every hook is gone when it is left, also by an exception.

    The hooks answer only to the thread that entered the context: a model that serves several threads at once keeps
    each thread's pass apart.
    """

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []
        self._thread = 0

    def __enter__(self) -> "ForwardHooks":
        self._thread = threading.get_ident()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def before(self, module: nn.Module, callback: Callable[[nn.Module, Any], Any]) -> None:
        """Calls `callback(module, first input)` before the module runs; a tensor returned replaces that input."""

        # Another thread may call the hook before torch has noted that it takes keywords: it has no say in it anyway.
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
            if threading.get_ident() != self._thread:
                return None
            if args:
                replaced = callback(module, args[0])
                return None if replaced is None else ((replaced, *args[1:]), kwargs)
            name = next(iter(kwargs or {}), None)
            replaced = callback(module, None if not kwargs or name is None else kwargs[name])
            return None if replaced is None else (args, {**(kwargs or {}), str(name): replaced})

        hook.of_gaia_fast = True  # type: ignore[attr-defined]
        self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def after(self, module: nn.Module, callback: Callable[[nn.Module, Any], Any], *, also_failed: bool = False) -> None:
        """Calls `callback(module, output)` after the module ran; a tensor returned replaces the output.

        With `also_failed` it is called with None where the module raised, as the model may catch the exception.
        """

        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if threading.get_ident() != self._thread or (output is None and not also_failed):
                return None
            return callback(module, output)

        hook.of_gaia_fast = True  # type: ignore[attr-defined]
        self._handles.append(module.register_forward_hook(hook, always_call=also_failed))

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


def has_other_hooks(module: nn.Module) -> bool:
    """Returns whether anyone else's hook may change what `module` returns, or wants to see its gradients."""
    # Copied in one step each: another thread may be hooking the same module.
    after = (*tuple(module._forward_hooks.values()), *tuple(torch_module._global_forward_hooks.values()))
    return (
        any(not hasattr(hook, "of_gaia_fast") for hook in after)
        or bool(module._backward_hooks or module._backward_pre_hooks)
        or bool(torch_module._global_backward_hooks or torch_module._global_backward_pre_hooks)
    )
