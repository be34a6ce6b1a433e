"""Whether a model is still what it was when it was last looked at: cheap enough to ask at every call."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn


def structure(modules: Iterable[nn.Module]) -> list[Any]:
    """Returns what changes when a module is put in, taken out, set to training, compiled, or loses its statistics."""
    found: list[Any] = []
    for module in modules:
        found += (
            module.training,
            getattr(module, "_compiled_call_impl", None),
            module._buffers.get("running_var") is None,
        )
        found += module._modules.values()
    return found


def weights(modules: Iterable[nn.Module]) -> list[int]:
    """Returns what changes when a parameter or buffer is replaced, moved, or written to in place."""
    found: list[int] = []
    for module in modules:
        for group in (module._parameters, module._buffers):
            for tensor in group.values():
                if isinstance(tensor, Tensor):
                    found += (tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version)
    return found
