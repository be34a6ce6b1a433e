"""The operations in PyTorch's registry, as torch.ops.gaia_fast.*, for torch.compile, make_fx and torch.export.

Eager calls do not go through it: the dispatcher costs more than a kernel on a small map.
"""

from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from gaia_fast.ops.transforms import BatchingRule, under_transforms

_LIBRARY = torch.library.Library("gaia_fast", "DEF")


def define_op(
    name: str,
    eager: Callable[..., Any],
    fake: Callable[..., Any],
    batched: BatchingRule | None = None,
    writes: Iterable[str] = (),
) -> None:
    """Adds torch.ops.gaia_fast.<name>, with the schema that PyTorch reads off the signature of `fake`.

    Args:
        name: of the operation.
        eager: what it does; any device, never differentiable.
        fake: what it returns in shape, strides, dtype and device.
        batched: what it is under torch.vmap; None where no user calls it.
        writes: the arguments that it writes to.
    """
    # Any strides will do: without the tag the compiler copies maps to those that it saw when it traced.
    schema = torch.library.infer_schema(fake, mutates_args=tuple(writes))
    _LIBRARY.define(name + schema, tags=(torch.Tag.flexible_layout,))
    _LIBRARY.impl(name, eager, "CompositeExplicitAutograd")
    _LIBRARY.impl(name, torch.library.fallthrough_kernel, "Autograd")
    torch.library.register_fake(f"gaia_fast::{name}", fake, lib=_LIBRARY)
    if batched is not None:
        op = getattr(torch.ops.gaia_fast, name).default
        # Asked before any transform of torch.func does its own, which would be a gradient of zero for torch.func.grad.
        _LIBRARY.impl(name, under_transforms(op, signature(fake), batched), "FuncTorchDynamicLayerFrontMode")


@cache
def implementation(name: str, backend: str) -> Callable[..., Any]:
    """Returns `gaia_fast.ops.<name>.<backend>.<name>_<backend>`; the backend "torch" is called reference there.

    Imported when it is first asked for: Triton takes long to import and may not be installed.
    """
    module = "reference" if backend == "torch" else backend
    found: Callable[..., Any] = getattr(import_module(f"gaia_fast.ops.{name}.{module}"), f"{name}_{module}")
    return found


def is_traced(tensor: Tensor) -> bool:
    """Whether a call is being recorded, by a compiler or a mode, or transformed by torch.func, rather than run."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return True
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    return type(tensor) is not Tensor and isinstance(tensor, Tensor)
