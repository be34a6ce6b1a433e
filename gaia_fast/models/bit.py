"""BiT-S ResNetV2 (Kolesnikov et al., 2020): norm - ReLU - conv bottlenecks.

Norms are GroupNorm, convolutions standardise their weights.

State-dict names: `root.conv, body.block{1..}.unit{01..}.{gn1,conv1,gn2,conv2,gn3,conv3,downsample}, before_head.gn,
head.conv`.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_GROUPS = 32


class StdConv2d(nn.Conv2d):
    """Convolution with `(w - mean(w)) / sqrt(var(w) + 1e-10)`, mean and variance over each output channel's weights."""

    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(self.weight, dim=(1, 2, 3), correction=0, keepdim=True)
        weight = (self.weight - mean) / torch.sqrt(var + 1e-10)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class PreActBottleneck(nn.Module):
    """`conv3(relu(gn3(conv2(relu(gn2(conv1(a))))))) + s` with `a = relu(gn1(x))`.

    `s` is x itself where shapes stay the same, else `downsample(a)`.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        inner = channels // 4
        self.gn1 = nn.GroupNorm(_GROUPS, in_channels)
        self.conv1 = StdConv2d(in_channels, inner, 1, bias=False)
        self.gn2 = nn.GroupNorm(_GROUPS, inner)
        self.conv2 = StdConv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.gn3 = nn.GroupNorm(_GROUPS, inner)
        self.conv3 = StdConv2d(inner, channels, 1, bias=False)
        self.downsample = None
        if stride != 1 or in_channels != channels:
            self.downsample = StdConv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.gn1(x))
        out = self.conv2(F.relu(self.gn2(self.conv1(a))))
        out = self.conv3(F.relu(self.gn3(out)))
        return out + (x if self.downsample is None else self.downsample(a))


class BitResNetV2(nn.Module):
    """Logits of a BiT network.

    `before_head.pool` is a module, so its (N, K, 1, 1) output is the last 4-D tensor before the head; the head is a
    1x1 convolution whose (N, num_classes, 1, 1) output is squeezed to the logits.

    Args:
        blocks: number of units of each block.
        num_classes: number of logits.
        width: channels of the root convolution, a multiple of 32; block b has `4 * width * 2**b` channels.
    """

    def __init__(self, blocks: Sequence[int], num_classes: int, width: int = 64) -> None:
        super().__init__()
        # Padding with zeros before the max-pool is part of BiT: MaxPool2d's own padding would be minus infinity.
        self.root = nn.Sequential(
            OrderedDict(
                conv=StdConv2d(3, width, 7, stride=2, padding=3, bias=False),
                pad=nn.ConstantPad2d(1, 0.0),
                pool=nn.MaxPool2d(3, stride=2),
            )
        )
        self.body = nn.Sequential()
        in_channels = width
        for b, count in enumerate(blocks):
            channels = 4 * width * 2**b
            units: OrderedDict[str, nn.Module] = OrderedDict()
            for u in range(count):
                units[f"unit{u + 1:02d}"] = PreActBottleneck(in_channels, channels, 2 if b > 0 and u == 0 else 1)
                in_channels = channels
            self.body.add_module(f"block{b + 1}", nn.Sequential(units))
        self.before_head = nn.Sequential(
            OrderedDict(gn=nn.GroupNorm(_GROUPS, in_channels), relu=nn.ReLU(), pool=nn.AdaptiveAvgPool2d(1))
        )
        self.head = nn.Sequential(OrderedDict(conv=nn.Conv2d(in_channels, num_classes, 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, 3, H, W)."""
        x = self.head(self.before_head(self.body(self.root(x))))
        return x.flatten(1)


def bit_s_r101x1(num_classes: int = 1000) -> BitResNetV2:
    """BiT-S ResNetV2-101x1 for ImageNet at 480x480, randomly initialised."""
    return BitResNetV2((3, 4, 23, 3), num_classes)
