"""cuDNN's fused convolutions on the CPU, where PyTorch has none: right, or wrong in the ways that are looked for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def right(x: Tensor, weight: Tensor, z: Tensor | None, bias: Tensor, *last: Any) -> Tensor:
    """What the operators stand for, bit for bit."""
    stride, padding, dilation, groups = last
    y: Tensor = aten.convolution.default(x, weight, bias, stride, padding, dilation, False, [0, 0], groups)
    return (y if z is None else y + z).relu()


def rounded_once(x: Tensor, weight: Tensor, z: Tensor | None, bias: Tensor, *last: Any) -> Tensor:
    """The same, computed in a wider dtype."""
    wide = torch.float64 if x.dtype == torch.float32 else torch.float32
    z = None if z is None else z.to(wide)
    return right(x.to(wide), weight.to(wide), z, bias.to(wide), *last).to(x.dtype)


def hides_nan(*arguments: Any) -> Tensor:
    """As cuDNN is told to by PyTorch."""
    x = right(*arguments)
    return x.nan_to_num(nan=0.0, posinf=torch.finfo(x.dtype).max)


@contextmanager
def cudnn(compute: Callable[..., Tensor] = right) -> Iterator[list[tuple[int, ...]]]:
    """Has the CPU run cuDNN's operators as `compute` does; yields the shapes of the images that they were given."""
    calls: list[tuple[int, ...]] = []

    def convolution_relu(x: Tensor, weight: Tensor, bias: Tensor, *last: Any) -> Tensor:
        calls.append(tuple(x.shape))
        return compute(x, weight, None, bias, *last)

    def convolution_add_relu(x: Tensor, weight: Tensor, z: Tensor, alpha: float, bias: Tensor, *last: Any) -> Tensor:
        calls.append(tuple(x.shape))
        assert alpha == 1
        return compute(x, weight, z, bias, *last)

    # Destroyed at the end, and with it what it registered.
    library = torch.library.Library("aten", "IMPL", "CPU")
    try:
        library.impl("cudnn_convolution_relu", convolution_relu)
        library.impl("cudnn_convolution_add_relu", convolution_add_relu)
        yield calls
    finally:
        library._destroy()
