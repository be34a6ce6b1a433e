"""Whether a model is still what it was when it was last looked at: cheap enough to ask at every call."""

from collections.abc import Iterable
from typing import Any

from torch import nn


def structure(modules: Iterable[nn.Module]) -> list[Any]:
    """Returns what changes when a module is put in, taken out, set to training, compiled, or loses its statistics."""
    return _look(modules, tensors=False)


def everything(modules: Iterable[nn.Module]) -> list[Any]:
    """Returns what changes with `structure`, and when a parameter or buffer is replaced, moved or written in place."""
    return _look(modules, tensors=True)


def _look(modules: Iterable[nn.Module], tensors: bool) -> list[Any]:
    # One pass for all: modules and tensors lie all over memory, and fetching them is what takes the time.
    found: list[Any] = []
    for module in modules:
        own = module.__dict__  # `nn.Module` looks here as well, after asking more
        buffers = own["_buffers"]
        found += (own["training"], own.get("_compiled_call_impl"), buffers.get("running_var") is None)
        if children := own["_modules"]:
            found += children.values()
        for group in (own["_parameters"], buffers) if tensors else ():
            for tensor in group.values() if group else ():
                if tensor is None:
                    continue
                try:
                    version = tensor._version
                except RuntimeError:  # an inference tensor has none
                    version = 0
                found += (tensor.data_ptr(), version)
    return found
