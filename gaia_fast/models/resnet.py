"""Residual networks for 32x32 images (He et al., 2016): conv - norm - ReLU, with the ReLU after the residual add.

State-dict names: `conv1, bn1, layer{1..}.{i}.{conv1,bn1,conv2,bn2,shortcut.0,shortcut.1}, linear`.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """`relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))`, two 3x3 convolutions.

    The shortcut is the identity (an empty Sequential) where shapes allow it, else a strided 1x1 convolution and norm.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """Logits of a residual network that starts at full resolution: a 3x3 convolution, no max-pooling.

    Stage s has `blocks[s]` blocks of `width * 2**s` channels, and halves the resolution unless it is the first. The
    pooling is a function, so the last stage is the last module that returns a 4-D tensor.

    Args:
        blocks: number of blocks of each stage.
        num_classes: number of logits.
        width: channels of the first stage.
    """

    def __init__(self, blocks: Sequence[int], num_classes: int, width: int = 64) -> None:
        super().__init__()
        self.num_stages = len(blocks)
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        in_channels = width
        for stage, count in enumerate(blocks):
            channels = width * 2**stage
            strides = [1 if stage == 0 else 2] + [1] * (count - 1)
            layers = []
            for stride in strides:
                layers.append(BasicBlock(in_channels, channels, stride))
                in_channels = channels
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.linear = nn.Linear(in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, 3, H, W)."""
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in range(1, self.num_stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def resnet18(num_classes: int = 10) -> ResNet:
    """ResNet-18 for 32x32 images, randomly initialised; stages of 64, 128, 256 and 512 channels."""
    return ResNet((2, 2, 2, 2), num_classes)


def resnet34(num_classes: int = 10) -> ResNet:
    """ResNet-34 for 32x32 images, randomly initialised; stages of 64, 128, 256 and 512 channels."""
    return ResNet((3, 4, 6, 3), num_classes)
