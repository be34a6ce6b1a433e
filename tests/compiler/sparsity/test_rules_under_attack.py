"""What the analysis of zeros must not promise: each network is prepared on noise, and scores images that noise hides.

Dead and constant channels, exact zeros, saturated and slope-zero activations, factors of zero, gradients that cancel.
In float64, where every count is exact.
"""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gaia_fast import GaiaZ, reference

import zoo

K = 8


class Inside(nn.Module):
    """conv, norm, ReLU, then any function of the map and parts of its own, then conv, norm, ReLU, mean, linear."""

    def __init__(self, inside: Callable[..., Tensor], *parts: nn.Module, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = nn.Sequential(*zoo.conv_norm(3, K), activation or nn.ReLU())
        self.inside, self.parts = inside, nn.ModuleList(parts)
        self.last = nn.Sequential(*zoo.conv_norm(K, K), nn.ReLU())
        self.fc = nn.Linear(K, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.last(self.inside(self.stem(x), *self.parts)).mean((2, 3)))


def pooled(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, 1)


def conv_norm(*sizes: int) -> nn.Module:
    return nn.Sequential(*zoo.conv_norm(*sizes))


def gate(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(K, 4, 1), *middle, nn.Conv2d(4, K, 1), nn.Sigmoid())


def attended(x: Tensor, inner: nn.Module) -> Tensor:
    return x * inner(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()


def fixed(kernel: list[list[float]], padding: int = 1) -> nn.Module:
    """A hand-made filter of each channel by itself."""
    weight = torch.tensor(kernel, dtype=torch.float64).expand(K, 1, -1, -1).contiguous()
    conv = nn.Conv2d(K, K, len(kernel), padding=padding, groups=K, bias=False, padding_mode="zeros")
    conv.weight = nn.Parameter(weight)
    return conv


def twice(block: nn.Module) -> tuple[nn.Module, nn.Module]:
    return block, copy.deepcopy(block)


BLUR = [[1 / 16, 2 / 16, 1 / 16], [2 / 16, 4 / 16, 2 / 16], [1 / 16, 2 / 16, 1 / 16]]
LAPLACE: list[list[float]] = [[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "slope of zero": lambda: Inside(lambda x: x, activation=nn.LeakyReLU(0.0)),
    "learned slopes, some zero": lambda: Inside(lambda x: x, activation=nn.PReLU(K)),
    "gate": lambda: Inside(lambda x, g: x * g(x), gate(nn.ReLU())),
    "gate with a norm in it": lambda: Inside(lambda x, g: x * g(x), gate(nn.BatchNorm2d(4), nn.ReLU())),
    "gate that is a norm": lambda: Inside(lambda x, c: x * c(pooled(x)).sigmoid(), conv_norm(K, K, 1, 1)),
    "gate behind a norm": lambda: Inside(lambda x, c, g: (y := c(x)) * g(y), conv_norm(K, K), gate(nn.ReLU())),
    "gate, residual": lambda: Inside(lambda x, c, g: F.relu(x + (y := c(x)) * g(y)), conv_norm(K, K), gate(nn.ReLU())),
    "attention over positions": lambda: Inside(attended, conv_norm(2, 1)),
    "attention by the mean": lambda: Inside(
        lambda x, c: x * c(x.mean(1, keepdim=True)).sigmoid(), conv_norm(1, 1, 1, 1)
    ),
    "context added to all": lambda: Inside(lambda x, c: x + c(pooled(x)), nn.Conv2d(K, K, 1)),
    "context with a norm": lambda: Inside(lambda x, c: x + c(pooled(x)).relu(), conv_norm(K, K, 1, 1)),
    "less its positive part": lambda: Inside(lambda x, c: (y := c(x)) - y.relu(), conv_norm(K, K)),
    "clipped twice": lambda: Inside(lambda x, c: (y := c(x)).relu() - y.clamp(0, 3), conv_norm(K, K)),
    "less itself": lambda: Inside(lambda x, c: x - c(x) + c(x), conv_norm(K, K)),
    "less its mean": lambda: Inside(lambda x, c: (y := c(x)) - y.mean((2, 3), keepdim=True), conv_norm(K, K)),
    "two copies of a block": lambda: Inside(
        lambda x, a, b: x + F.relu(a(x)) - F.relu(b(x)), *twice(nn.Sequential(nn.Conv2d(K, K, 1), nn.BatchNorm2d(K)))
    ),
    "Laplacian": lambda: Inside(lambda x, c, e: e(c(x).relu()), conv_norm(K, K), fixed(LAPLACE)),
    "clamp": lambda: Inside(lambda x, c: c(x).clamp(0, 1), conv_norm(K, K)),
    "clamp from below": lambda: Inside(lambda x, c: c(x).clamp(min=0), conv_norm(K, K)),
    "hardtanh": lambda: Inside(lambda x, c: F.hardtanh(c(x)), conv_norm(K, K)),
    "sigmoid": lambda: Inside(lambda x, c: c(x).sigmoid(), conv_norm(K, K)),
    "softmax of channels": lambda: Inside(lambda x, c: c(x).softmax(1) * 8, conv_norm(K, K)),
    "swish by hand": lambda: Inside(lambda x, c: (y := c(x)) * y.sigmoid(), conv_norm(K, K)),
    "softshrink": lambda: Inside(lambda x, c: F.softshrink(c(x)), conv_norm(K, K)),
    "both signs": lambda: Inside(
        lambda x, c, d: d(torch.cat([(y := c(x)).relu(), (-y).relu()], 1)), conv_norm(K, K), conv_norm(2 * K, K)
    ),
    "less its positive part, by a mean of channels": lambda: Inside(
        lambda x, c, d: d(torch.cat([y := c(x), -y.relu()], 1).mean(1, keepdim=True)), conv_norm(K, K), conv_norm(1, K)
    ),
    "magnitude": lambda: Inside(lambda x, c: c(x).abs(), conv_norm(K, K)),
    "group norm": lambda: Inside(lambda x, c, n: n(c(x)).relu(), nn.Conv2d(K, K, 3), nn.GroupNorm(2, K)),
    "group norm, not affine": lambda: Inside(
        lambda x, c, n: n(c(x)).relu(), nn.Conv2d(K, K, 3), nn.GroupNorm(4, K, affine=False)
    ),
    "max-pooling": lambda: Inside(lambda x, c: F.max_pool2d(c(x), 3, 2, 1), conv_norm(K, K)),
    "max-pooling, apart": lambda: Inside(lambda x, c: F.max_pool2d(c(x).relu(), 2, 3), conv_norm(K, K)),
    "average pooling, apart": lambda: Inside(lambda x, c: F.avg_pool2d(c(x).relu(), 2, 3), conv_norm(K, K)),
    "a product of two maps": lambda: Inside(
        lambda x, a, b: a(x).relu() * b(x).relu(), conv_norm(K, K), conv_norm(K, K)
    ),
    "channels split": lambda: Inside(lambda x, c: torch.cat([c(x[:, :4]).relu(), x[:, 4:]], 1), conv_norm(4, 4)),
    "images as channels": lambda: Inside(
        lambda x, c: c(x.reshape(-1, K, x.shape[2] // 2, x.shape[3])).relu().reshape(x.shape), conv_norm(K, K)
    ),
    "detached": lambda: Inside(lambda x, c: c(x).relu() + x.detach(), conv_norm(K, K)),
}


def built(name: str, open_on_noise: bool) -> nn.Module:
    """A model with channels that are zero, constant and dead; or with units that noise opens, all of them."""
    torch.manual_seed(5)
    model = NETWORKS[name]().double().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)) and module.weight is not None:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.3)
            if open_on_noise and isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.bias, 3)
            elif isinstance(module, nn.BatchNorm2d) and module.num_features == K:
                module.weight[1], module.bias[1] = 0, 0  # the channel is exactly zero
                module.weight[2], module.bias[2] = 0, 1  # constant
                module.bias[3] = -50  # dead
            if isinstance(module, nn.PReLU):
                module.weight[4] = 0
    return model


def others() -> Tensor:
    """Images that noise says nothing of."""
    noise = zoo.images(4, 12, torch.float64, seed=7)
    half = noise[:1].clone()
    half[..., :6] = 0
    return torch.cat(
        [
            noise[:1] * 0,
            torch.ones_like(noise[:1]),
            noise[:1, :, :1, :1].expand(1, 3, 12, 12),
            half,
            noise[:2] * 100,
            -noise[1:2].abs() * 1000,
            noise[2:3].abs() * 1000,
            noise[3:] * 1e-3,
        ]
    )


@pytest.mark.parametrize("open_on_noise", [False, True], ids=["", "open on noise"])
@pytest.mark.parametrize("name", NETWORKS)
def test_images_that_noise_hides(name: str, open_on_noise: bool) -> None:
    model, x = built(name, open_on_noise), others()
    compiled = GaiaZ(model, engine="compiled", runtime="eager").prepare(zoo.images(4, 12, torch.float64))
    found, truth = compiled.score(x, return_matrix=True), reference.gaia_z(model, x)
    assert found.matrix is not None
    for index, (expected, each) in enumerate(zip(truth.abnormality, compiled.plan(x).maps, strict=True)):
        off = (found.matrix[:, index, : each.channels] - expected).abs().amax(1)
        assert bool((off < 1e-6).all()), f"{each.name} of {name}: off by {off.tolist()}"
    torch.testing.assert_close(found.score.double(), truth.score, rtol=1e-6, atol=0)


def test_hand_made_filters_are_not_taken_for_weights() -> None:
    """What is left of a map less its blur is rounding where it is even: no pattern holds, the gradient is computed."""
    torch.manual_seed(5)
    model = Inside(lambda x, c, b: (y := c(x)) - b(y), conv_norm(K, K), fixed(BLUR)).double().eval()
    derivations = (
        GaiaZ(model, engine="compiled", runtime="eager")
        .prepare(zoo.images(4, 12, torch.float64))
        .plan(others())
        .derivations
    )
    assert [each.partition(",")[0] for each in derivations] == ["adjoint", "adjoint", "active units"]


def test_slices_of_weights_are_weights_of_their_own_unless_channels_mix() -> None:
    derivations = {}
    for name in ("both signs", "less its positive part, by a mean of channels"):
        compiled = GaiaZ(built(name, False), engine="compiled", runtime="eager").prepare(
            zoo.images(4, 12, torch.float64)
        )
        derivations[name] = compiled.plan(others()).derivations[1]
    assert derivations["both signs"] == "union"
    assert "gradients may cancel" in derivations["less its positive part, by a mean of channels"]
