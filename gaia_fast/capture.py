"""Hooks on modules for the length of one forward pass, and not a moment longer."""

import threading
from collections.abc import Callable
from itertools import chain
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

        def hook(module: nn.Module, args: tuple[Any, ...]) -> Any:
            if threading.get_ident() != self._thread:
                return None
            replaced = callback(module, args[0] if args else None)
            return replaced if replaced is None else (replaced, *args[1:])

        self._handles.append(module.register_forward_pre_hook(hook))

    def after(self, module: nn.Module, callback: Callable[[nn.Module, Any], Any]) -> None:
        """Calls `callback(module, output)` after the module ran; a tensor returned replaces the output."""

        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            return callback(module, output) if threading.get_ident() == self._thread else None

        hook.of_gaia_fast = True  # type: ignore[attr-defined]
        self._handles.append(module.register_forward_hook(hook))

    def on_map(self, module: nn.Module, at_input: bool, callback: Callable[[nn.Module, Tensor], Tensor | None]) -> None:
        """Calls `callback(module, map)` with the module's input or output; a tensor returned replaces it."""
        (self.before if at_input else self.after)(module, callback)


def has_other_hooks(module: nn.Module) -> bool:
    """Returns whether anyone else's hook may change what `module` returns, or wants to see its gradients."""
    after = chain(module._forward_hooks.values(), torch_module._global_forward_hooks.values())
    return (
        any(not hasattr(hook, "of_gaia_fast") for hook in after)
        or bool(module._backward_hooks or module._backward_pre_hooks)
        or bool(torch_module._global_backward_hooks or torch_module._global_backward_pre_hooks)
    )
