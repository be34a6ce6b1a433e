"""Wide residual networks for 32x32 images (Zagoruyko and Komodakis, 2016): norm - ReLU - conv.

State-dict names: `conv1, block{1..3}.layer.{i}.{bn1,conv1,bn2,conv2,convShortcut}, bn1, fc`.
"""

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F

from gaia_fast.errors import ArgumentError


class PreActBlock(nn.Module):
    """`conv2(relu(bn2(conv1(a)))) + s` with `a = relu(bn1(x))`.

    `s` is x itself where the channels stay the same, else `convShortcut(a)`: a widening block takes its shortcut
    behind the first norm and ReLU.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.convShortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False) if in_channels != channels else None

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(a))))
        return out + (x if self.convShortcut is None else self.convShortcut(a))


def _stage(blocks: int, in_channels: int, channels: int, stride: int) -> nn.Sequential:
    first = PreActBlock(in_channels, channels, stride)
    rest = [PreActBlock(channels, channels, 1) for _ in range(blocks - 1)]
    return nn.Sequential(OrderedDict(layer=nn.Sequential(first, *rest)))


class WideResNet(nn.Module):
    """Logits of a wide residual network of three stages.

    The pooling is a module, so its (N, K, 1, 1) output is the last 4-D tensor that a module returns.

    Args:
        depth: 6n + 4 for n blocks a stage.
        widen_factor: stages have 16, 32 and 64 channels times this.
        num_classes: number of logits.

    Raises:
        ArgumentError: depth is not 6n + 4.
    """

    def __init__(self, depth: int, widen_factor: int, num_classes: int) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ArgumentError(f"WideResNet: depth is {depth}; it must be 6n + 4, such as 10, 16, 28 or 40.")
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        width = 16 * widen_factor
        self.block1 = _stage(blocks, 16, width, stride=1)
        self.block2 = _stage(blocks, width, 2 * width, stride=2)
        self.block3 = _stage(blocks, 2 * width, 4 * width, stride=2)
        self.bn1 = nn.BatchNorm2d(4 * width)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, 3, H, W)."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(self.pool(F.relu(self.bn1(x))).flatten(1))


def wrn_40_2(num_classes: int = 10) -> WideResNet:
    """WideResNet-40-2 for 32x32 images, randomly initialised; stages of 32, 64 and 128 channels."""
    return WideResNet(40, 2, num_classes)
