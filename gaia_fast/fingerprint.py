"""Whether a model is still what it was when it was last looked at: cheap enough to ask at every call."""

from collections.abc import Iterable
from typing import Any

from torch import nn


def structure(modules: Iterable[nn.Module]) -> list[Any]:
    """Returns what changes when a module is put in, taken out, set to training, compiled, or loses its statistics."""
    found: list[Any] = []
    for module in modules:
        own = module.__dict__  # `nn.Module` looks here as well, after asking more
        found += (own["training"], own.get("_compiled_call_impl"), own["_buffers"].get("running_var") is None)
        if children := own["_modules"]:
            found += children.values()
    return found


def weights(modules: Iterable[nn.Module]) -> list[int]:
    """Returns what changes when a parameter or buffer is replaced, moved, or written to in place."""
    found: list[int] = []
    for module in modules:
        own = module.__dict__
        for group in (own["_parameters"], own["_buffers"]):
            for tensor in group.values() if group else ():
                if tensor is None:
                    continue
                try:
                    version = tensor._version
                except RuntimeError:  # an inference tensor has none
                    version = 0
                found += (tensor.data_ptr(), version)
    return found
