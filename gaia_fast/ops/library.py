"""The operations in PyTorch's registry, as torch.ops.gaia_fast.*, for torch.compile, make_fx and torch.export.

Eager calls do not go through it: the dispatcher costs more than a kernel on a small map.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("gaia_fast", "DEF")


def register(name: str, schema: str, eager: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Adds torch.ops.gaia_fast.<name>.

    Args:
        name, schema: as PyTorch writes them: "(Tensor g, ...) -> Tensor".
        eager: what it does; any device, never differentiable.
        fake: what it returns in shape, strides, dtype and device.
    """
    # Any strides will do: without the tag the compiler copies maps to those that it saw when it traced.
    _LIBRARY.define(name + schema, tags=(torch.Tag.flexible_layout,))
    _LIBRARY.impl(name, eager, "CompositeExplicitAutograd")
    _LIBRARY.impl(name, torch.library.fallthrough_kernel, "Autograd")
    torch.library.register_fake(f"gaia_fast::{name}", fake, lib=_LIBRARY)


def is_traced(tensor: Tensor) -> bool:
    """Whether a call is being recorded, by a compiler or a mode, rather than run."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return True
    return type(tensor) is not Tensor and isinstance(tensor, Tensor)
