"""Small and full-size classifiers that hurt: each one is a case that hooks or gradients have been seen to get wrong."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gaia_fast.models import resnet34, wrn_40_2
from gaia_fast.models.bit import BitResNetV2


def conv_norm(channels_in: int, channels_out: int, stride: int = 1, size: int = 3) -> list[nn.Module]:
    conv = nn.Conv2d(channels_in, channels_out, size, stride, size // 2, bias=False)
    return [conv, nn.BatchNorm2d(channels_out)]


class Pooled(nn.Module):
    """Any trunk, pooled by a function, with a linear head."""

    def __init__(self, trunk: nn.Module, channels: int, classes: int = 5) -> None:
        super().__init__()
        self.trunk = trunk
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.trunk(x).mean((2, 3)))


class VggLike(nn.Module):
    """Max-pools, a flattened feature map and two hidden linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *conv_norm(3, 8), nn.ReLU(inplace=True), nn.MaxPool2d(2), *conv_norm(8, 12), nn.ReLU(inplace=True)
        )
        self.pool = nn.MaxPool2d(4)
        self.classifier = nn.Sequential(nn.Linear(12 * 4, 16), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(16, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.pool(self.features(x)), 1))


class DenseLike(nn.Module):
    """Pre-activation layers whose outputs are concatenated, the earlier ones read again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6 + 4 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(6 + 4 * i, 4, 3, padding=1) for i in range(3))
        self.final = nn.BatchNorm2d(18)
        self.fc = nn.Linear(18, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            features = torch.cat([features, conv(F.relu(norm(features)))], 1)
        return self.fc(F.adaptive_avg_pool2d(F.relu(self.final(features), inplace=True), 1).flatten(1))


class Parallel(nn.Module):
    """Branches that share nothing but the image, so that no inspected map is downstream of the other's."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(*conv_norm(3, 6), nn.ReLU(inplace=True))
        self.right = nn.Sequential(*conv_norm(3, 7, size=1), nn.ReLU())
        self.fc = nn.Linear(13, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.cat([self.left(x), self.right(x)], 1).mean((2, 3)))


class StridedShortcut(nn.Module):
    """A residual block with a strided projection, added in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_norm(3, 8), nn.ReLU(inplace=True))
        self.residual = nn.Sequential(*conv_norm(8, 12, stride=2), nn.ReLU(inplace=True), *conv_norm(12, 12))
        self.shortcut = nn.Sequential(*conv_norm(8, 12, stride=2, size=1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.residual(x)
        y += self.shortcut(x)
        return self.fc(self.pool(F.relu_(y)).flatten(1))


class SharedNorm(nn.Module):
    """One norm, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.first(x)))
        return self.fc(self.relu(self.norm(self.second(x))).mean((2, 3)))


class ConvolutionHead(nn.Module):
    """The logits are a view of a 1x1 convolution's output."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(*conv_norm(3, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x))[..., 0, 0]


class NormAct(nn.BatchNorm2d):
    """Norm and activation in one module, as timm writes them: the map lies between the two."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop = nn.Identity()
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


class Dangling(nn.Module):
    """A norm whose output nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.unused(x)
        return self.fc(self.used(x).mean((2, 3)))


def group_norm() -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(inplace=True)]
    return Pooled(nn.Sequential(*layers, nn.Conv2d(8, 12, 3, 2, 1), nn.GroupNorm(4, 12), nn.ReLU(inplace=True)), 12)


def norm_act() -> nn.Module:
    return Pooled(nn.Sequential(nn.Conv2d(3, 8, 3), NormAct(8), nn.Conv2d(8, 12, 3, 2), NormAct(12)), 12)


def smooth() -> nn.Module:
    """No ReLU at all: dense gradients."""
    return Pooled(nn.Sequential(*conv_norm(3, 8), nn.SiLU(inplace=True), *conv_norm(8, 8), nn.GELU()), 8)


def plain_norm() -> nn.Module:
    """Norms without affine parameters, and with leaky units behind them."""
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False), nn.LeakyReLU(0.1, inplace=True)]
    return Pooled(nn.Sequential(*layers, nn.Conv2d(8, 8, 3, groups=4), nn.BatchNorm2d(8), nn.ReLU6()), 8)


class FixedBatch(nn.Module):
    """Has its number of images written into it."""

    def __init__(self, images: int) -> None:
        super().__init__()
        self.images = images
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.fc(y.view(self.images, 4))


ZOO: dict[str, Callable[[], nn.Module]] = {
    "resnet34": lambda: resnet34(num_classes=10),
    "wrn_40_2": lambda: wrn_40_2(num_classes=10),
    "small_bit": lambda: BitResNetV2((1, 1, 1, 1), num_classes=7, width=32),
    "vgg_like": VggLike,
    "dense_like": DenseLike,
    "parallel": Parallel,
    "strided_shortcut": StridedShortcut,
    "shared_norm": SharedNorm,
    "group_norm": group_norm,
    "convolution_head": ConvolutionHead,
    "norm_act": norm_act,
    "smooth": smooth,
    "plain_norm": plain_norm,
}


def build(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A network of the zoo; see `with_statistics`."""
    torch.manual_seed(sum(map(ord, name)))
    return with_statistics(ZOO[name]()).to(dtype)


def with_statistics(model: nn.Module) -> nn.Module:
    """A network in eval mode, its norms given the statistics and parameters of no fresh network."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
        if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)) and module.weight is not None:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return model.eval()


def images(count: int, size: int = 16, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, size, size, generator=generator, dtype=torch.float64).to(dtype)


def image_size(name: str) -> int:
    return 32 if name in ("resnet34", "wrn_40_2", "small_bit") else 16


def sometimes_closed() -> tuple[nn.Module, Tensor, Tensor]:
    """A model; images for which each window has an open channel; and images for which some have none."""
    torch.manual_seed(2)
    first, second, norm = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16)
    layers = [first, nn.BatchNorm2d(16), nn.ReLU(), second, norm, nn.ReLU()]
    model = Pooled(nn.Sequential(*layers), 16).eval()
    assert first.bias is not None
    assert second.bias is not None
    nn.init.zeros_(first.bias)
    nn.init.constant_(norm.bias, -0.02)
    nn.init.zeros_(second.bias)
    good = images(4, 8).sign() * 2
    bad = good[:2].clone()
    bad[:, :, 2:5, 3] = 0  # the first map is zero there, and so the second below zero in every channel
    return model, good, bad
