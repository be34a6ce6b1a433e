"""What random networks are made of: convolutions, norms, activations, pools, and modules that combine others."""

from collections import UserDict
from collections.abc import Callable
from contextvars import ContextVar
from random import Random
from types import SimpleNamespace
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Size: TypeAlias = int | tuple[int, int]


# How far below the largest value, relative to it, another is as large to `amax`; the oracle answers with more than 0.
equal_within: ContextVar[float] = ContextVar("equal_within", default=0.0)


def amax(x: Tensor, over: int | tuple[int, ...], keepdim: bool = False) -> Tensor:
    """`torch.amax`, which shares its gradient among all that are as large: in half precision rounding makes many so."""
    within = equal_within.get()
    if not within:
        return x.amax(over, keepdim)
    y = x.amax(over, keepdim=True)
    equal = x >= y - within * y.abs()
    # Of differences, which are small: a sum of values may overflow.
    y = y + torch.where(equal, x - y, 0).sum(over, keepdim=True) / equal.sum(over, keepdim=True)
    return y if keepdim else y.squeeze(over)


class Do(nn.Module):
    """A function of a map as a module, with the words that describe it."""

    def __init__(self, words: str, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.words, self.function = words, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def extra_repr(self) -> str:
        return self.words


class Residual(nn.Module):
    """x + branch(x), with a projection where shapes differ; added in place or not, an activation behind it or none."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module, in_place: bool, relu: bool) -> None:
        super().__init__()
        self.branch, self.shortcut, self.in_place, self.relu = branch, shortcut, in_place, relu

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        if self.in_place:
            y += self.shortcut(x)
        else:
            y = y + self.shortcut(x)
        return F.relu(y, inplace=self.in_place) if self.relu else y

    def extra_repr(self) -> str:
        return f"in_place={self.in_place}, relu={self.relu}"


class Parallel(nn.Module):
    """Branches over the same map, or over chunks of its channels, merged by concatenation, sum, product or maximum."""

    def __init__(self, branches: list[nn.Module], chunked: bool, merge: str) -> None:
        super().__init__()
        self.branches, self.chunked, self.merge = nn.ModuleList(branches), chunked, merge

    def forward(self, x: Tensor) -> Tensor:
        parts = x.chunk(len(self.branches), 1) if self.chunked else [x] * len(self.branches)
        first, *others = [branch(part) for branch, part in zip(self.branches, parts, strict=True)]
        if self.merge == "cat":
            return torch.cat([first, *others], 1)
        for other in others:
            if self.merge == "max":
                first = torch.maximum(first, other)
            elif self.merge == "where":
                first = torch.where(first > 0, first, other)
            else:
                first = first + other if self.merge == "add" else first * other
        return first

    def extra_repr(self) -> str:
        return f"chunked={self.chunked}, merge={self.merge}"


class Dense(nn.Module):
    """The map beside what is made of it."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.branch(x)], 1)


class Gated(nn.Module):
    """x * gate(x): a gate for each channel or for each position."""

    def __init__(self, gate: nn.Module, residual: bool) -> None:
        super().__init__()
        self.gate, self.residual = gate, residual

    def forward(self, x: Tensor) -> Tensor:
        y = x * self.gate(x)
        return x + y if self.residual else y


class Again(nn.Module):
    """A module that is called twice."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.inner(x))


class Dangling(nn.Module):
    """A norm that is called, and read by nothing."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.unused = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        self.unused(x)
        return x


class ChannelNorm(nn.Module):
    """LayerNorm over the channels: a view that is no longer contiguous."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class LastNorm(nn.BatchNorm2d):
    """A norm that computes with its channels last, and returns a view."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.running_mean is not None
        assert self.running_var is not None
        y = (x.permute(0, 2, 3, 1) - self.running_mean) * (self.running_var + self.eps).rsqrt()
        return (y * self.weight + self.bias).permute(0, 3, 1, 2)


class Cosine(nn.Linear):
    """Logits that are cosines."""

    def forward(self, x: Tensor) -> Tensor:
        return 8 * F.linear(F.normalize(x, dim=1), F.normalize(self.weight, dim=1))


class Heads(nn.Module):
    """Two linear heads, one beside the other or their mean."""

    def __init__(self, first: nn.Linear, second: nn.Linear, merge: str) -> None:
        super().__init__()
        self.first, self.second, self.merge = first, second, merge

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.first(x), self.second(x)
        return torch.cat([first, second], 1) if self.merge == "cat" else (first + second) / 2

    def extra_repr(self) -> str:
        return self.merge


class Scale(nn.Module):
    """A learned temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.3))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Classifier(nn.Module):
    """Trunk, what makes vectors or a small map of it, head, and what is done to the logits."""

    def __init__(self, trunk: nn.Module, neck: nn.Module, head: nn.Module, behind: nn.Module, container: str) -> None:
        super().__init__()
        self.trunk, self.neck, self.head, self.behind, self.container = trunk, neck, head, behind, container

    def forward(self, x: Tensor) -> Any:
        logits = self.behind(self.head(self.neck(self.trunk(x))))
        if self.container == "tensor":
            return logits
        kinds = {"dict": dict, "mapping": UserDict, "object": SimpleNamespace}
        return kinds[self.container](logits=logits, hidden=None)

    def extra_repr(self) -> str:
        return f"returns a {self.container}"


def convolution(
    rng: Random, inputs: int, outputs: int | None = None, *, same_size: bool = False, plain: bool = False
) -> nn.Conv2d | nn.ConvTranspose2d:
    """A convolution with anything that one can have; zeros around the map, where it is to be plain."""
    groups = rng.choice([1, 1, 1, inputs, 2 if inputs % 2 == 0 else 1])
    if outputs is None:
        outputs = groups * rng.randint(max(1, 2 // groups), max(1, 12 // groups))
    elif outputs % groups:
        groups = 1
    kernels: list[Size] = [1, 2, 3, 3, 3, 4, 5, (1, 3), (5, 1), (3, 2)]
    if same_size:
        kernels = [1, 3, 3, 3, 5, (1, 3), (3, 1)]
    kernel = rng.choice(kernels)
    options: dict[str, Any] = {"groups": groups, "bias": rng.random() < 0.5}
    if same_size:
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        dilation = rng.choice([1, 1, 2]) if kernel == 3 else 1
        padding: Any = (dilation * (height // 2), dilation * (width // 2))
        if not plain:
            options["padding_mode"] = rng.choice(["zeros"] * 8 + ["circular"])
            padding = rng.choice([padding] * 8 + ["same"])
        return nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, **options)
    if not plain and rng.random() < 0.15:
        return nn.ConvTranspose2d(inputs, outputs, kernel, stride=rng.choice([1, 2, 3]), **options)
    strides: list[Size] = [1, 1, 1, 2, 2, 3, (2, 1)]
    paddings: list[Size] = [0, 1, 1, 1, 2, (0, 1)]
    last: Literal["zeros", "reflect"] = "zeros" if plain else "reflect"
    modes: list[Literal["zeros", "reflect"]] = ["zeros", "zeros", "zeros", "zeros", "zeros", "zeros", last]
    return nn.Conv2d(
        inputs,
        outputs,
        kernel,
        stride=rng.choice(strides),
        padding=rng.choice(paddings),
        dilation=rng.choice([1, 1, 1, 1, 2]),
        padding_mode=rng.choice(modes),
        **options,
    )


def norm(rng: Random, channels: int, plain: bool = False) -> nn.Module:
    if plain and rng.random() < 0.9:
        return nn.BatchNorm2d(channels)
    groups = rng.choice([each for each in (1, 2, 3, 4, channels) if channels % each == 0])
    return rng.choice(
        [
            *[lambda: nn.BatchNorm2d(channels)] * 8,
            lambda: nn.BatchNorm2d(channels, affine=False),
            *[lambda: nn.GroupNorm(groups, channels, affine=rng.random() < 0.8)] * 2,
            lambda: nn.InstanceNorm2d(channels, affine=rng.random() < 0.7, track_running_stats=rng.random() < 0.4),
            lambda: ChannelNorm(channels),
            lambda: LastNorm(channels),
        ]
    )()


def activation(rng: Random, plain: bool = False) -> nn.Module:
    """An activation; one of those that most networks have, where it is to be plain."""
    in_place = rng.random() < 0.5
    if rng.random() < (0.7 if plain else 0.4):
        return nn.ReLU(in_place)
    if plain:
        known = [nn.ReLU6(in_place), nn.LeakyReLU(rng.choice([0.1, 0.0]), in_place), nn.Sigmoid(), nn.Identity()]
        return rng.choice([*known, nn.Hardtanh(-0.5, 1.0, in_place), Do("clamp(min=0)", lambda x: x.clamp(min=0))])
    return rng.choice(
        [
            lambda: nn.ReLU6(in_place),
            lambda: nn.LeakyReLU(0.0, in_place),
            lambda: nn.LeakyReLU(0.1, in_place),
            lambda: nn.PReLU(init=rng.choice([0.0, 0.25, -0.5])),
            lambda: nn.ELU(inplace=in_place),
            lambda: nn.SELU(in_place),
            lambda: nn.CELU(inplace=in_place),
            lambda: nn.Hardtanh(inplace=in_place),
            lambda: nn.Hardtanh(0.0, 2.0, inplace=in_place),
            lambda: nn.Hardswish(in_place),
            lambda: nn.Hardsigmoid(in_place),
            nn.Sigmoid,
            nn.Tanh,
            nn.Softplus,
            nn.Mish,
            lambda: nn.SiLU(in_place),
            lambda: nn.GELU(rng.choice(["none", "tanh"])),
            lambda: nn.Threshold(0.1, rng.choice([0.0, -1.0]), in_place),
            lambda: nn.RReLU(inplace=in_place),
            nn.Softshrink,
            nn.Hardshrink,
            nn.Softsign,
            nn.Identity,
            lambda: nn.Dropout(0.5),
            lambda: Do("clamp(min=0)", lambda x: x.clamp(min=0)),
            lambda: Do("clamp(-0.5, 1)", lambda x: x.clamp(-0.5, 1)),
            lambda: Do("abs", torch.abs),
            lambda: Do("square", torch.square),
            lambda: Do("x * sigmoid(x)", lambda x: x * x.sigmoid()),
            lambda: Do("where(x > 0, x, 0)", lambda x: torch.where(x > 0, x, torch.zeros_like(x))),
            lambda: Do("where(x > 0, x, 0.2 x)", lambda x: torch.where(x > 0, x, 0.2 * x)),
            lambda: Do("maximum(x, 0)", lambda x: torch.maximum(x, torch.zeros_like(x))),
            lambda: Do("relu(x) * 2 - 1", lambda x: F.relu(x) * 2 - 1),
            lambda: Do("mask", lambda x: x * (x > 0)),
            lambda: Do("masked_fill", lambda x: x.masked_fill(x < 0, 0.0)),
            lambda: Do("relu - relu of -x", lambda x: F.relu(x) - 0.5 * F.relu(-x)),
            lambda: Do("softmax over channels", lambda x: x.softmax(1)),
        ]
    )()


def pool(rng: Random, plain: bool = False) -> nn.Module:
    size = rng.choice([2, 3])
    stride = rng.choice([1, 2, size])
    padding = rng.choice([0, 0, size // 2])
    ceil = rng.random() < 0.3
    sizes: list[Size] = [1, 2, 3, (3, 2)]
    if plain:
        return rng.choice([nn.MaxPool2d(size, stride, padding), nn.AvgPool2d(size, stride), nn.AdaptiveAvgPool2d(2)])
    return rng.choice(
        [
            *[lambda: nn.MaxPool2d(size, stride, padding, ceil_mode=ceil)] * 3,
            lambda: nn.MaxPool2d(size, stride, 0, dilation=2),
            *[lambda: nn.AvgPool2d(size, stride, padding, ceil_mode=ceil, count_include_pad=rng.random() < 0.5)] * 2,
            lambda: nn.AdaptiveAvgPool2d(rng.choice(sizes)),
            lambda: nn.AdaptiveMaxPool2d(rng.choice(sizes)),
            lambda: nn.LPPool2d(2, size, stride),
            lambda: Do("maximum over space", lambda x: amax(x, (2, 3), keepdim=True)),
        ]
    )()


def movement(rng: Random, channels: int) -> nn.Module:
    """Something that moves entries, and computes nothing."""
    each = [
        nn.ZeroPad2d((1, 0, 2, 1)),
        nn.ReflectionPad2d(1),
        nn.Upsample(scale_factor=2, mode="nearest"),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        Do("crop", lambda x: x[:, :, 1:, :-1]),
        Do("every other row", lambda x: x[:, :, ::2]),
        Do("transposed", lambda x: x.transpose(2, 3)),
        Do("flipped", lambda x: x.flip(3)),
        Do("rolled", lambda x: x.roll(1, 2)),
        Do("channels rolled", lambda x: torch.cat([x[:, 1:], x[:, :1]], 1)),
        Do("channels last", lambda x: x.contiguous(memory_format=torch.channels_last)),
        # Half the mean: a mean behind the whole would give logits that are zero but for rounding.
        Do("half centred", lambda x: x - 0.5 * x.mean((2, 3), keepdim=True)),
        Do("normalised over channels", lambda x: F.normalize(x, dim=1)),
    ]
    if channels % 2 == 0:
        each += [nn.ChannelShuffle(2), Do("gated linear unit", lambda x: F.glu(x, 1))]
    if channels % 4 == 0:
        each.append(nn.PixelShuffle(2))
    return rng.choice(each)
