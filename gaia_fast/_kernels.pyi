"""The extension (csrc/bindings): pointers, sizes and strides; use gaia_fast.ops instead."""

from collections.abc import Callable, Sequence
from typing import Any

# A pointer: (-1, an address; 0 for none), or (i, so many floats into the i-th buffer that `Executable.run` is given);
# and of a map, how many floats lie between two positions.
_Pointer = tuple[int, int, int]
_Pair = tuple[int, int]
_Sizes = Sequence[int]  # four of them

DTYPES: dict[str, int]
STATISTICS: dict[str, int]
ACTIVATIONS: dict[str, int]
POOLINGS: dict[str, int]
TESTS: dict[str, int]
ALGORITHMS: dict[str, int]
CUDA_LAYOUTS: dict[str, int]  # where CUDA kernels were built
CUDA_COUNT_AND_SCORE_LIMITS: dict[str, int]  # likewise
PACKED_NR: int
PACKED_PANELS: int
PACKED_KC: int

def cpu_levels() -> list[str]: ...
def built_cpu_levels() -> list[str]: ...
def cpu_level() -> str: ...
def set_cpu_level(name: str, /) -> None: ...
def channel_moments(
    g: int, dtype: int, shape: _Sizes, strides: _Sizes, out: int, stride_moment: int, stride_n: int, threads: int, /
) -> None: ...
def relu_backward_moments(
    g: int,
    y: int,
    scale: int,
    grad_in: int,
    dtype: int,
    shape: _Sizes,
    g_strides: _Sizes,
    y_strides: _Sizes,
    grad_in_strides: _Sizes,
    out: int,
    stride_moment: int,
    stride_n: int,
    threads: int,
    /,
) -> None: ...
def relu_forward_count(
    x: int,
    residual: int,
    scale: int,
    shift: int,
    y: int,
    dtype: int,
    shape: _Sizes,
    x_strides: _Sizes,
    residual_strides: _Sizes,
    y_strides: _Sizes,
    nonzero: int,
    threads: int,
    /,
) -> None: ...
def frobenius(
    moments: int,
    n: int,
    stride_n: int,
    begins: Sequence[int],
    widths: Sequence[int],
    inverse_area: Sequence[float],
    output_component: int,
    p: float,
    score: int,
    /,
) -> None: ...
def active_everywhere(y: int, shape: _Sizes, grid: _Pair, channels: _Pair, out: int, /) -> None: ...
def all_positive(x: int, count: int, /) -> bool: ...
def all_finite(x: int, count: int, /) -> bool: ...
def results_hold(
    logits: int,
    n: int,
    classes: int,
    score: int,
    preconditions: int,
    precondition_count: int,
    component: int,
    rounding: float,
    /,
) -> bool: ...
def cuda_build() -> str: ...
def cuda_obstacle(device: int) -> str: ...
def cuda_channel_moments(*args: Any) -> None: ...
def cuda_relu_backward_moments(*args: Any) -> None: ...
def cuda_relu_forward_count(*args: Any) -> None: ...
def cuda_copy_and_check(*args: Any) -> None: ...
def cuda_check_results(*args: Any) -> None: ...
def cuda_frobenius(*args: Any) -> None: ...
def cuda_count_and_score(*args: Any) -> None: ...

class Epilogue:
    """What a step does with its outputs; ValueError without y, or of an unknown activation or statistic."""

    def __init__(
        self,
        *,
        y: _Pointer,
        bias: _Pointer = ...,
        residual: _Pointer = ...,
        relu_mask: _Pointer = ...,
        scale: _Pointer = ...,
        skip: _Pointer = ...,
        sums: _Pointer = ...,
        bits: _Pointer = ...,
        sums_stride: int = ...,
        channels: int,
        activation: int = ...,
        upper: float = ...,
        statistic: int = ...,
    ) -> None: ...

class ConvolutionStep:
    """A convolution of (N, C, H, W); ValueError where it would read or write beyond what its sizes say."""

    def __init__(
        self,
        *,
        wave: int,
        algorithm: int,
        x: _Pointer,
        shape: Sequence[int],
        packed: _Pointer,
        packed_size: int,
        out: _Pair,
        outputs: int,
        group: int = ...,
        kernel: _Pair,
        stride: _Pair,
        padding: _Pair,
        dilation: _Pair,
        y_size: _Pair,
        begin: _Pair,
        step: _Pair,
        epilogue: Epilogue,
    ) -> None: ...

class PointwiseStep:
    """An epilogue of (N, C, H, W) times a factor a channel."""

    def __init__(
        self,
        *,
        wave: int,
        x: _Pointer,
        shape: Sequence[int],
        factor: _Pointer,
        factor_stride: int = ...,
        epilogue: Epilogue,
    ) -> None: ...

class ChannelsLastStep:
    """A copy of (N, C, H, W), whose channels lie one after the other, in the order of maps."""

    def __init__(self, *, wave: int, x: _Pointer, shape: Sequence[int], y: _Pointer) -> None: ...

class CheckStep:
    """Whether the channels of (N, C, H, W) pass one of TESTS at each position of a grid; `bound` is of two of them."""

    def __init__(
        self,
        *,
        wave: int,
        y: _Pointer,
        shape: Sequence[int],
        begin: int,
        step: int,
        first: int,
        last: int,
        out: _Pointer,
        out_stride: int,
        bound: float = ...,
        test: int = ...,
    ) -> None: ...

class Windows:
    """Windows over (N, C, H, W), C whole panels; ValueError where one lies outside."""

    def __init__(
        self,
        *,
        shape: Sequence[int],
        out: _Pair,
        kernel: _Pair,
        stride: _Pair,
        padding: _Pair,
        dilation: _Pair,
    ) -> None: ...

class PoolStep:
    """The maximum or the mean of each window, and the counts of first maxima."""

    def __init__(
        self,
        *,
        wave: int,
        x: _Pointer,
        y: _Pointer,
        windows: Windows,
        kind: int,
        pad_zeros: bool = ...,
        divisor: int = ...,
        alive: _Pointer = ...,
        counts: _Pointer = ...,
        counts_stride: int = ...,
        channels: int,
    ) -> None: ...

class GroupNormStep:
    """A group norm of (N, C, H, W), and the ReLU behind it."""

    def __init__(
        self,
        *,
        wave: int,
        x: _Pointer,
        y: _Pointer,
        shape: Sequence[int],
        groups: int,
        scale: _Pointer,
        shift: _Pointer,
        epsilon: float,
        relu: bool = ...,
        sums: _Pointer = ...,
        sums_stride: int = ...,
    ) -> None: ...

class MaskStep:
    """A mask made of two, and its counts."""

    def __init__(
        self,
        *,
        wave: int,
        windows: Windows,
        inner: _Pointer = ...,
        outer: _Pointer = ...,
        out: _Pointer = ...,
        counts: _Pointer = ...,
        group: int = ...,
        either: bool = ...,
        counts_stride: int = ...,
        channels: int,
    ) -> None: ...

class MaskCheckStep:
    """Whether each position of a grid has a channel in a mask."""

    def __init__(
        self,
        *,
        wave: int,
        mask: _Pointer,
        shape: Sequence[int],
        begin: int,
        step: int,
        out: _Pointer,
        out_stride: int,
    ) -> None: ...

class GateGradientStep:
    """The gradient of what a gate is the sigmoid of, of (N, C, H, W) and (N, C, 1, 1), C whole panels."""

    def __init__(
        self, *, wave: int, g: _Pointer, y: _Pointer, shape: Sequence[int], gate: _Pointer, out: _Pointer
    ) -> None: ...

class MeanGradientStep:
    """A gradient of (N, C, H, W) and that of its mean over space, (N, C, 1, 1), added; C whole panels."""

    def __init__(self, *, wave: int, x: _Pointer, shape: Sequence[int], mean: _Pointer, y: _Pointer) -> None: ...

class CopyColumnsStep:
    """Columns of rows, or with `x_stride` 0 one row, copied to (images, width)."""

    def __init__(
        self, *, wave: int, x: _Pointer, x_stride: int, images: int, width: int, y: _Pointer, y_stride: int
    ) -> None: ...

class LogitSlopesStep:
    """1 - C softmax(S) of logits S (images, classes), as maps of one position."""

    def __init__(
        self, *, wave: int, logits: _Pointer, stride: int, images: int, classes: int, out: _Pointer
    ) -> None: ...

class MeanRootStep:
    """sqrt(factor * mean) of each row of (images, columns)."""

    def __init__(
        self,
        *,
        wave: int,
        x: _Pointer,
        x_stride: int,
        images: int,
        columns: int,
        factor: float,
        out: _Pointer,
        out_stride: int,
    ) -> None: ...

class ScoreStep:
    """The Frobenius norm of sums side by side, by layers of `widths`, over the output component where there is one."""

    def __init__(
        self,
        *,
        wave: int,
        packed: _Pointer,
        stride: int,
        images: int,
        widths: Sequence[int],
        inverse_area: Sequence[float],
        component: _Pointer,
        component_stride: int,
        out: _Pointer,
        out_stride: int,
    ) -> None: ...

class ResultCheckStep:
    """Whether results of images hold; `strides` are those of the six pointers, in their order."""

    def __init__(
        self,
        *,
        wave: int,
        images: int,
        classes: int,
        precondition_count: int,
        logits: _Pointer,
        score: _Pointer,
        preconditions: _Pointer,
        component: _Pointer,
        finite: _Pointer,
        out: _Pointer,
        strides: Sequence[int],
        rounding: float,
    ) -> None: ...

_Step = (
    ChannelsLastStep
    | ConvolutionStep
    | PointwiseStep
    | CheckStep
    | PoolStep
    | GroupNormStep
    | MaskStep
    | MaskCheckStep
    | GateGradientStep
    | MeanGradientStep
    | CopyColumnsStep
    | LogitSlopesStep
    | MeanRootStep
    | ScoreStep
    | ResultCheckStep
)

class Executable:
    """Steps in order of their waves; ValueError where these are not numbered from 0 without gaps."""

    def __init__(self, steps: Sequence[_Step]) -> None: ...
    def run(self, buffers: Sequence[int], threads: int, callback: Callable[[], None] | None = ...) -> bool:
        """Runs the steps; False where memory is short. `callback` is called once, while other threads wake up."""

    def run_images(
        self,
        buffers: Sequence[int],
        strides: Sequence[int],
        images: int,
        threads: int,
        callback: Callable[[], None] | None = ...,
    ) -> bool:
        """Runs steps for one image on each of several, each thread on images of its own.

        `strides` are the bytes from image to image in each buffer, but for the first: from thread to thread.
        """

class Watch:
    """What `gaia_fast` knows of a model's objects and tensors, compared without Python's own time."""

    def __init__(
        self,
        objects: list[tuple[Any, ...]],
        tables: list[tuple[Any, ...]],
        items: list[tuple[Any, ...]],
        values: list[tuple[Any, ...]],
        expected: int,
        getters: tuple[Any, ...],
        functions: tuple[int, ...],
        anything: object,
        left_out: tuple[str, ...],
        /,
    ) -> None: ...
    def unchanged(self) -> bool: ...
    def asked(self) -> int:
        """How often `holds` of a node was asked, since something is there that is not the same object."""
