"""Classifiers as they are deployed: without norms, with norms that turn axes around, and of tokens."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo import Pooled


class PlainVgg(nn.Module):
    """Convolutions with biases, units in place, max-pools, and hidden linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 12, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(12, 10, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(nn.Linear(10 * 16, 16), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(16, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


class Fire(nn.Module):
    """One narrow convolution, read by two wide ones."""

    def __init__(self, channels_in: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze, self.squeeze_activation = nn.Conv2d(channels_in, squeezed, 1), nn.ReLU(inplace=True)
        self.expand1x1, self.expand1x1_activation = nn.Conv2d(squeezed, expanded, 1), nn.ReLU(inplace=True)
        self.expand3x3, self.expand3x3_activation = nn.Conv2d(squeezed, expanded, 3, padding=1), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze_activation(self.squeeze(x))
        wide = self.expand1x1_activation(self.expand1x1(x)), self.expand3x3_activation(self.expand3x3(x))
        return torch.cat(wide, 1)


class SqueezeLike(nn.Module):
    """The head is a convolution, and what follows it is no view: a ReLU, and a pool."""

    def __init__(self) -> None:
        super().__init__()
        stem = [nn.Conv2d(3, 8, 3, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, ceil_mode=True)]
        self.features = nn.Sequential(*stem, Fire(8, 6, 9), Fire(18, 5, 8))
        self.classifier = nn.Sequential(
            nn.Dropout(), nn.Conv2d(16, 5, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x)).flatten(1)


class StandardisedConv(nn.Conv2d):
    """Its weights are standardised at each call."""

    def forward(self, x: Tensor) -> Tensor:
        mean, std = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / (std + 1e-6), self.bias, self.stride, self.padding)


class Weighing(nn.Module):
    """Squeeze and excitation: convolutions of maps with one position."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce, self.act = nn.Conv2d(channels, 4, 1), nn.ReLU()
        self.expand, self.gate = nn.Conv2d(4, channels, 1), nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.expand(self.act(self.reduce(x.mean((2, 3), keepdim=True)))))


class NormFreeBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.act1, self.conv1 = nn.ReLU(), StandardisedConv(channels, channels, 3, padding=1)
        self.act2, self.conv2 = nn.ReLU(inplace=True), StandardisedConv(channels, channels, 3, padding=1)
        self.attn = Weighing(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.2 * self.attn(self.conv2(self.act2(self.conv1(self.act1(x)))))


class Fused(nn.Module):
    """A block whose branches were fused into one convolution, which is kept behind its activation."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.nonlinearity = nn.ReLU(inplace=True)
        self.reparam_conv = nn.Conv2d(channels_in, channels_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.nonlinearity(self.reparam_conv(x))


class LayerNorm2d(nn.LayerNorm):
    """As torchvision and timm write it."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class Turned(nn.Module):
    """A norm of the axes turned around it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


WrappedLayerNorm2d = type("LayerNorm2d", (Turned,), {})


class Permute(nn.Module):
    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.order)


def _in_sequence(channels: int, *more: nn.Module, name: str = "LayerNorm2d") -> nn.Module:
    """Modules turn the axes, and the class counts as a norm by its name."""
    made: nn.Module = type(name, (nn.Sequential,), {})(
        Permute(0, 2, 3, 1), nn.LayerNorm(channels), Permute(0, 3, 1, 2), *more
    )
    return made


class AroundGroupNorm(nn.Module):
    """A norm by the name of its class, around one of PyTorch's."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gn = nn.GroupNorm(1, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.gn(x)


GroupNormAsLayerNorm2d = type("LayerNorm2d", (AroundGroupNorm,), {})


class LastOrFirst(nn.LayerNorm):
    """A norm that is told the order of the axes at each call, as mmpretrain writes it."""

    def forward(self, x: Tensor, data_format: str = "channel_first") -> Tensor:
        if data_format == "channel_last":
            return super().forward(x)
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


LastOrFirstLayerNorm2d = type("LayerNorm2d", (LastOrFirst,), {})


class EitherLayerNorm(nn.LayerNorm):
    """As ConvNeXt's own code and Hugging Face's write it: for both orders of axes."""

    def __init__(self, channels: int, data_format: str = "channels_first") -> None:
        super().__init__(channels)
        self.data_format = data_format

    def forward(self, x: Tensor) -> Tensor:
        if self.data_format == "channels_last":
            return super().forward(x)
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class LayerNormAct2d(LayerNorm2d):
    """Norm and activation in one module: the map lies between the two."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


class OwnLayerNorm(nn.Module):
    """As ConvNeXt's own code writes it, which derives from no norm of PyTorch's."""

    def __init__(self, channels: int, data_format: str = "channels_first") -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.normalized_shape, self.data_format = (channels,), data_format

    def forward(self, x: Tensor) -> Tensor:
        if self.data_format == "channels_last":
            return F.layer_norm(x, self.normalized_shape, self.weight, self.bias)
        mean, var = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
        x = (x - mean) / torch.sqrt(var + 1e-5)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


OwnLayerNorm.__name__ = "LayerNorm"


class ConvNextLike(nn.Module):
    """LayerNorm2d between stages, and in the blocks norms whose channels come last."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 10, 2, 2), norm(10))
        self.depthwise = nn.Conv2d(10, 10, 3, padding=1, groups=10)
        self.block = nn.Sequential(nn.LayerNorm(10), nn.Linear(10, 16), nn.ReLU(inplace=True), nn.Linear(16, 10))
        second = norm(10)
        # After a ReLU in place inside the norm, another would undo what the backward pass of the first needs.
        act = nn.ReLU(inplace=type(second).__name__ != "LayerNormAct2d")
        self.downsample = nn.Sequential(second, act, nn.Conv2d(10, 12, 2, 2))
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.block(self.depthwise(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.fc(self.downsample(x).mean((2, 3)))


class Attention(nn.Module):
    """Two heads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        images, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(images, tokens, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(images, tokens, width))


class VitBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), Attention(width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 20), nn.ReLU(inplace=True), nn.Linear(20, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VitLike(nn.Module):
    """A class token beside the patches, which the head reads alone."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, 12, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 12))
        self.blocks = nn.Sequential(VitBlock(12), VitBlock(12))
        self.norm = nn.LayerNorm(12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.proj(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1)
        return self.head(self.norm(self.blocks(tokens))[:, 0])


class SwinLike(nn.Module):
    """Maps (N, H, W, C), with units in place right behind a norm, and a norm of vectors before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, 10, 4, 4)
        self.stage = nn.Sequential(nn.LayerNorm(10), nn.ReLU(inplace=True), nn.Linear(10, 14))
        self.norm, self.last, self.vectors = nn.LayerNorm(14), nn.Linear(14, 6), nn.LayerNorm(6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stage(self.proj(x).permute(0, 2, 3, 1)))
        return self.head(self.vectors(F.relu(self.last(F.relu(x, inplace=True))).mean((1, 2))))


def pooled(*blocks: nn.Module) -> nn.Module:
    return Pooled(nn.Sequential(*blocks), 8)


# Of each network the convolutions before an activation.
WITHOUT_NORMS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "vgg": (PlainVgg, ["features.0", "features.3", "features.5"]),
    "squeezenet": (
        SqueezeLike,
        ["features.0", *(f"features.{at}.{name}" for at in (3, 4) for name in ("squeeze", "expand1x1", "expand3x3"))],
    ),
    "nfnet": (
        lambda: pooled(nn.Conv2d(3, 8, 3, padding=1), NormFreeBlock(8), NormFreeBlock(8), nn.ReLU()),
        ["trunk.0", "trunk.1.conv1", "trunk.2.conv1"],
    ),
    "repvgg": (lambda: pooled(Fused(3, 8), Fused(8, 8)), ["trunk.0.reparam_conv", "trunk.1.reparam_conv"]),
}
NORMS_2D: dict[str, Callable[[int], nn.Module]] = {
    "subclass": LayerNorm2d,
    "wrapper": WrappedLayerNorm2d,
    "either": EitherLayerNorm,
    "own": OwnLayerNorm,
    "act": LayerNormAct2d,
    "sequence": _in_sequence,
    "sequence with act": lambda channels: _in_sequence(channels, nn.ReLU(), name="LayerNormAct2d"),
}
# Of each network its norms with maps of tokens.
OF_TOKENS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "vit": (VitLike, [*(f"blocks.{at}.norm{which}" for at in (0, 1) for which in (1, 2)), "norm"]),
    "swin": (SwinLike, ["stage.0", "norm"]),
}


def built(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A network in eval mode; its norms have parameters as after training."""
    torch.manual_seed(seed)
    model = make()
    for module in model.modules():
        if isinstance(module, (nn.LayerNorm, OwnLayerNorm)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return model.eval()
