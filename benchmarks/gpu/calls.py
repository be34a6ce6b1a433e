"""The calls of this package's kernels that are timed, profiled and compiled beforehand, as the engines make them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import Tensor

from gaia_fast import ops

from gpu.graph_timing import Call

DEVICE = torch.device("cuda")
BACKENDS = ("triton", "cuda")
DTYPES = (torch.bfloat16, torch.float32, torch.float16)
FORMATS = {"channels_last": torch.channels_last, "nchw": torch.contiguous_format}
# (K, H, W) of ResNets' maps at 32x32 and at 224x224.
MAPS = ((64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (64, 112, 112), (256, 56, 56), (2048, 7, 7))
IMAGES = (1, 32, 128)
WIDTHS = [64] * 7 + [128] * 9 + [256] * 13 + [512] * 7  # ResNet34's 36 layers
AREAS = [1 / 1024] * 7 + [1 / 256] * 9 + [1 / 64] * 13 + [1 / 16] * 7


@dataclass(frozen=True)
class MapKind:
    """Maps of one shape (K, H, W), dtype and layout."""

    shape: tuple[int, int, int]
    dtype: torch.dtype
    layout: str

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape))} {str(self.dtype).removeprefix('torch.')} {self.layout}"

    def make(self, images: int) -> Tensor:
        made = torch.randn(images, *self.shape, device=DEVICE, dtype=self.dtype)
        return made.contiguous(memory_format=FORMATS[self.layout])

    def bytes(self, images: int) -> int:
        channels, height, width = self.shape
        return images * channels * height * width * self.dtype.itemsize


KINDS = tuple(MapKind(*each) for each in product(MAPS, DTYPES, FORMATS))


def _moments(g: Tensor) -> Tensor:
    """The place that hooks give for the moments of a map: columns of a wider buffer."""
    n, k = g.shape[:2]
    return torch.empty(3, n, 2 * k, device=g.device)[..., k:]


def _parameter(g: Tensor) -> Tensor:
    return torch.rand(g.shape[1], device=g.device)


def _channel_moments(g: Tensor, backend: str) -> Call:
    return partial(ops.channel_moments, g, out=_moments(g), backend=backend)


def _relu_backward_moments(g: Tensor, backend: str) -> Call:
    return partial(ops.relu_backward_moments, g, None, _parameter(g), out=_moments(g), backend=backend)


def _masked(g: Tensor, backend: str) -> Call:
    y = torch.randn_like(g).relu_()
    return partial(ops.relu_backward_moments, g, y, _parameter(g), out=_moments(g), backend=backend)


def _relu_forward_count(x: Tensor, backend: str) -> Call:
    return partial(ops.relu_forward_count, x, None, _parameter(x), backend=backend)


def _with_residual(x: Tensor, backend: str) -> Call:
    return partial(ops.relu_forward_count, x, None, _parameter(x), torch.randn_like(x), backend=backend)


@dataclass(frozen=True)
class Kernel:
    """A way to call an operation on maps.

    Attributes:
        make: returns a call on a map like the one given, with whatever else it reads and writes.
        maps: how many maps are read or written.
        sums: how many float32 are written for each channel of each image.
    """

    make: Callable[[Tensor, str], Call]
    maps: int
    sums: int

    def bytes(self, kind: MapKind, images: int) -> int:
        """What must move: each map, and each sum, once."""
        return self.maps * kind.bytes(images) + 4 * self.sums * images * kind.shape[0]

    def images(self, kind: MapKind, moved: int) -> int:
        """For how many images so many bytes move."""
        return max(1, round(moved / self.bytes(kind, 1)))


# As hooks call the first two (the gradient behind a norm, no mask), and compiled programs the others.
KERNELS = {
    "channel_moments": Kernel(_channel_moments, 1, 3),
    "relu_backward_moments": Kernel(_relu_backward_moments, 2, 3),
    "relu_backward_moments, mask": Kernel(_masked, 3, 3),
    "relu_forward_count": Kernel(_relu_forward_count, 2, 1),
    "relu_forward_count, residual": Kernel(_with_residual, 3, 1),
}


def frobenius(images: int, backend: str) -> tuple[Call, int]:
    """The norm over ResNet34's layers, and the bytes that it must move."""
    moments = torch.rand(images, sum(WIDTHS), device=DEVICE)
    output = torch.rand(images, device=DEVICE) + 1
    return partial(ops.frobenius, moments, WIDTHS, AREAS, output, backend=backend), moments.nbytes + 2 * output.nbytes


# ResNet34's 33 ReLUs: how many there are of each stage, and the shape of its maps.
RELUS = ((7, (64, 32, 32)), (8, (128, 16, 16)), (12, (256, 8, 8)), (6, (512, 4, 4)))


def resnet34_layers() -> tuple[list[tuple[int, int, int]], list[int], list[int]]:
    """The maps' shapes, the map that each of the 36 layers is counted on, and the windows that its programs ask for."""
    shapes, layers, windows = list[tuple[int, int, int]](), list[int](), list[int]()
    for stage, (relus, shape) in enumerate(RELUS):
        first = len(shapes)
        shapes += [shape] * relus
        layers += range(first, first + relus)
        if stage > 0:  # the norm of the projection shortcut, whose sum the stage's second ReLU takes
            layers.append(first + 1)
        # Behind the last map of a stage a 1x1 convolution reads every position, behind the last of all the head.
        steps = [3] * (relus - 1) + ([1] if stage < len(RELUS) - 1 else [])
        for index, step in enumerate(steps):
            windows += [first + index, 0, step]
    return shapes, layers, windows


def count_and_score(images: int, dtype: torch.dtype, backend: str) -> tuple[Call, int] | None:
    """The counts of ResNet34's maps and their norm in one call, and the bytes; None where there is no such kernel."""
    try:
        from gaia_fast.ops.count_and_score import count_and_score as run
        from gaia_fast.ops.count_and_score import scratch_size
    except ImportError:
        return None
    shapes, layers, windows = resnet34_layers()
    maps = [MapKind(shape, dtype, "channels_last").make(images).relu_() for shape in shapes]
    areas = [1 / (shapes[each][1] * shapes[each][2]) for each in layers]
    scratch = torch.zeros(images, scratch_size(shapes, windows), dtype=torch.int32, device=DEVICE)
    columns = sum(shapes[each][0] for each in layers)
    moved = sum(each.nbytes for each in maps) + 4 * images * (columns + len(windows) // 3 + 1)
    return partial(run, maps, [], layers, areas, (), windows, scratch=scratch, backend=backend), moved


def compiled_calls() -> Iterator[tuple[str, Callable[[], Call]]]:
    """Every call that Triton compiles a kernel for, by name: the number of images changes nothing."""
    for kind, (name, kernel) in product(KINDS, KERNELS.items()):
        yield f"{name}: {kind}", partial(_made, kernel, kind)
    yield "frobenius", lambda: frobenius(1, "triton")[0]
    for dtype in DTYPES:
        yield f"count_and_score: {dtype}", partial(_counted, dtype)


def _made(kernel: Kernel, kind: MapKind) -> Call:
    return kernel.make(kind.make(1), "triton")


def _counted(dtype: torch.dtype) -> Call:
    found = count_and_score(1, dtype, "triton")
    return found[0] if found else lambda: None
