"""What the kernels are tested on: backends, dtypes, shapes and memory layouts, each listed once.

Needs torch and gaia_fast alone, no pytest.
"""

import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

# `make test` also runs the kernels' tests in two processes of their own, each with targets that this one has not:
# Triton's kernels in its interpreter, and an extension built with sanitizers whose CUDA kernels run on the CPU.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
INSTRUMENTED = os.environ.get("GAIA_FAST_TEST_KERNELS", "")
if INSTRUMENTED:
    spec = importlib.util.spec_from_file_location("gaia_fast._kernels", INSTRUMENTED)
    assert spec is not None
    assert spec.loader is not None
    sys.modules["gaia_fast._kernels"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["gaia_fast._kernels"])

if INTERPRETED:
    import triton_interpreter  # noqa: F401

from gaia_fast import backends  # noqa: E402

T = TypeVar("T")

NAN = float("nan")
INF = float("inf")
HALVES_AND_FLOAT = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Target:
    """One implementation under test: a backend on a device, for `cpu` at one instruction-set level."""

    backend: str
    device: str = "cpu"
    level: str | None = None

    @property
    def is_emulated(self) -> bool:
        """Whether these are kernels for a GPU, run on the CPU: right, but slow."""
        return self.backend in ("triton", "cuda") and self.device == "cpu"

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        return (*HALVES_AND_FLOAT, torch.float64) if self.backend == "torch" else HALVES_AND_FLOAT

    def some(self, options: Sequence[T], index: int) -> Sequence[T]:
        """Returns all of some options; of kernels that run slowly two, others for each index, all of them in turn."""
        count = len(options)
        return [options[3 * index % count], options[(3 * index + 1) % count]] if self.is_emulated else options

    def __str__(self) -> str:
        return "-".join(part for part in (self.backend, self.device, self.level) if part)

    @contextmanager
    def active(self) -> Iterator["Target"]:
        """The instruction-set level is in force inside, and the former one again outside."""
        if self.level is None:
            yield self
            return
        assert backends.kernels is not None
        before = backends.kernels.cpu_level()
        backends.kernels.set_cpu_level(self.level)
        try:
            yield self
        finally:
            backends.kernels.set_cpu_level(before)


def runnable_targets() -> tuple[Target, ...]:
    """Returns every implementation that runs here. test_backends.py reports those that do not, with the reason."""
    here = backends.available()
    if INTERPRETED:
        return (Target("triton"),)
    targets = [] if INSTRUMENTED else [Target("torch")]
    if here["cpu"]:
        assert backends.kernels is not None
        targets += [Target("cpu", level=level) for level in backends.kernels.cpu_levels()]
    if INSTRUMENTED:
        targets.append(Target("cuda"))
    elif torch.cuda.is_available():
        targets += [Target(name, "cuda") for name in ("torch", "triton", "cuda") if here[name]]
    return tuple(targets)


TARGETS = runnable_targets()
TARGET_DTYPES = tuple((target, dtype) for target in TARGETS for dtype in target.dtypes)

# (N, K, H, W). The kernels go by vectors of 4, 8 or 16 floats, by steps of 4 vectors along a row, by 2 or 4 vectors of
# channels, and add sums up in blocks of 32 and 32 * 32: each boundary is crossed, with and without a remainder.
SHAPES: tuple[tuple[int, int, int, int], ...] = (
    (1, 1, 1, 1),
    (3, 37, 1, 1),
    (2, 3, 2, 2),
    (2, 17, 3, 3),
    (2, 16, 4, 4),
    (1, 33, 7, 5),
    (2, 64, 8, 8),
    (1, 129, 2, 3),
    (2, 5, 32, 32),
    (1, 2, 112, 112),
    (1, 1, 300, 301),
    (2, 3, 1, 67),  # one row
    (2, 3, 67, 1),  # one column
    (2, 1, 5, 5),  # one channel
    (2, 168, 7, 7),  # no whole vectors in a channel, but in several: 80 or 160 of them are read as one row
    (1, 8, 35, 35),  # the largest such channels
    (0, 3, 4, 4),
    (2, 0, 3, 3),
    (2, 3, 0, 4),
)
if INTERPRETED or INSTRUMENTED:
    SHAPES = tuple(shape for shape in SHAPES if shape[2] * shape[3] <= (100 if INTERPRETED else 20000))


@dataclass(frozen=True)
class Layout:
    """How an (N, K, H, W) tensor lies in memory: inside a larger buffer, never touching what is around it.

    Attributes:
        order: the dimensions, outermost in memory first.
        pad: elements of the buffer before and after the tensor, per dimension N, K, H, W.
        step: the tensor takes every step-th element, per dimension.
        expand: dimensions with stride 0.
        offset: elements before the buffer's first row; 1 makes every address unaligned.
    """

    name: str
    order: tuple[int, int, int, int] = (0, 1, 2, 3)
    pad: tuple[tuple[int, int], ...] = ((0, 0),) * 4
    step: tuple[int, int, int, int] = (1, 1, 1, 1)
    expand: tuple[int, ...] = ()
    offset: int = 0

    def __str__(self) -> str:
        return self.name


NCHW = Layout("nchw")
CHANNELS_LAST = Layout("channels_last", (0, 2, 3, 1))
NONE = (0, 0)
LAYOUTS = (
    NCHW,
    CHANNELS_LAST,
    Layout("unaligned", offset=1),
    Layout("images_of_a_buffer", pad=((1, 1), NONE, NONE, NONE)),
    Layout("channels_of_a_buffer", pad=(NONE, (1, 2), NONE, NONE)),
    Layout("crop", pad=(NONE, NONE, (1, 2), (2, 1))),
    Layout("channels_last_of_a_buffer", (0, 2, 3, 1), pad=(NONE, (3, 2), NONE, NONE)),
    Layout("channels_last_crop", (0, 2, 3, 1), pad=(NONE, NONE, (1, 0), (1, 2))),
    Layout("every_other_column", step=(1, 1, 1, 2)),
    Layout("every_other_channel", (0, 2, 3, 1), step=(1, 2, 1, 1)),
    Layout("transposed", (0, 1, 3, 2)),
    Layout("reversed", (3, 2, 1, 0)),
    Layout("expanded_images", expand=(0,)),
    Layout("expanded_channels", expand=(1,)),
    Layout("expanded_positions", expand=(2, 3)),  # what the gradient of a mean over positions looks like
)
LAYOUT = {layout.name: layout for layout in LAYOUTS}
# One for each way through the C++ kernels, whatever the shape: along rows, over channels, value by value.
PATHS = (NCHW, CHANNELS_LAST, LAYOUT["crop"])


@dataclass(frozen=True)
class Placed:
    """A tensor in a buffer, and what the buffer held when it was put there."""

    tensor: Tensor
    buffer: Tensor
    before: Tensor = field(repr=False)

    def assert_untouched(self, name: str) -> None:
        assert torch.equal(bits(self.buffer), bits(self.before)), f"{name} or the memory around it was written to"


def bits(tensor: Tensor) -> Tensor:
    """Returns the tensor's bits as integers, so that NaN equals NaN and -0.0 differs from 0.0."""
    return tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def place(values: Tensor, layout: Layout) -> Placed:
    """Copies `values` into a buffer of NaN; along expanded dimensions the first values stand for all."""
    for dim in layout.expand:
        values = values.narrow(dim, 0, min(1, values.shape[dim]))
    sizes = [
        before + size * step + after
        for size, step, (before, after) in zip(values.shape, layout.step, layout.pad, strict=True)
    ]
    spare = 32  # before and after everything: a read one vector too far finds NaN, not another tensor's zeros
    numel = sizes[0] * sizes[1] * sizes[2] * sizes[3]
    buffer = torch.full((numel + 2 * spare + layout.offset,), NAN, dtype=values.dtype, device=values.device)
    view = buffer[spare + layout.offset :][:numel].view([sizes[dim] for dim in layout.order])
    view = view.permute([layout.order.index(dim) for dim in range(4)])
    for dim, (before, _) in enumerate(layout.pad):
        step, size = layout.step[dim], values.shape[dim]
        view = view[(slice(None),) * dim + (slice(before, before + size * step, step),)]
    view.copy_(values)
    return Placed(view, buffer, buffer.clone())


def on_device(values: Tensor, device: str) -> Tensor:
    """Returns `values` on a device with the strides that they have; `Tensor.to` would close the gaps."""
    memory = values.as_strided((values.untyped_storage().nbytes() // values.element_size(),), (1,), 0)
    return memory.to(device).as_strided(values.shape, values.stride(), values.storage_offset())


def expanded(placed: Placed, layout: Layout, shape: tuple[int, ...]) -> Placed:
    """Returns `placed` with the expanded dimensions at their full size."""
    sizes = [size if dim in layout.expand else -1 for dim, size in enumerate(shape)]
    return Placed(placed.tensor.expand(sizes), placed.buffer, placed.before) if layout.expand else placed


def gradient(
    shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu", layout: Layout = NCHW, seed: int = 0
) -> Placed:
    """Returns a map like a gradient: normal, a third of it zeros of both signs."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) > 1 / 3)
    return expanded(place(values.to(dtype).to(device), layout), layout, shape)


def activation(
    shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu", layout: Layout = NCHW, seed: int = 1
) -> Placed:
    """Returns a map like a ReLU's output: half zeros, the others positive."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).relu()
    return expanded(place(values.to(dtype).to(device), layout), layout, shape)


def norm_scale(channels: int, dtype: torch.dtype, device: str = "cpu", seed: int = 2) -> Tensor:
    """Returns (K,) factors of both signs, as gamma / sqrt(var + eps) has them."""
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(channels, generator=generator, dtype=accumulator).to(device)
