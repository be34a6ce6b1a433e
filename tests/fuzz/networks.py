"""Random networks: parts put together while a probe shows what fits, then weights that no fresh network has."""

import re
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from fuzz import parts
from fuzz.parts import Do

CHANNELS = 12
PIXELS = 24 * 24
PLAIN_NORMS = (nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d)


def network(rng: Random, images: Tensor) -> nn.Module:
    """A classifier in float64 and eval mode, for images like these; weights come from torch's own generator."""
    while True:
        try:
            model = _network(rng, images)
            for count in (1, 2):  # some norms refuse a single value
                differentiate(model, images[:count])
            return model
        except (RuntimeError, ValueError):  # too small a map, or a value that is changed in place and needed backwards
            continue


def differentiate(model: nn.Module, images: Tensor) -> None:
    """Raises what the model itself does, forwards and backwards."""
    logits = logits_of(model(images.clone().requires_grad_().clone()))
    logits.sum().backward()
    model.zero_grad()


def logits_of(output: Any) -> Tensor:
    """The logits in what a classifier returns."""
    if isinstance(output, Tensor):
        return output
    found: Tensor = output.logits if hasattr(output, "logits") else output["logits"]
    return found


def summary(module: nn.Module) -> str:
    """The network in a line."""
    children = ", ".join(summary(each) for each in module.children())
    if isinstance(module, (nn.Sequential, nn.ModuleList)):
        return f"[{children}]"
    words = re.sub(r"(, )?(eps|momentum|dilation|ceil_mode)=(1e-05|1.0|0.1|1|False)\b", "", module.extra_repr())
    words = re.sub(
        r", (affine|bias|track_running_stats|elementwise_affine)=True|\w+_(size|features|channels)=", "", words
    )
    words = re.sub(r"\((\d), \1\)", r"\1", words)
    return f"{type(module).__name__}({'; '.join(each for each in (words, children) if each)})"


def _network(rng: Random, images: Tensor) -> nn.Module:
    builder = _Builder(rng, images)
    for _ in range(rng.randint(1, 4)):
        builder.grow()
    model = builder.finish()
    _disturb(model, rng)
    _settle(model, rng, images)
    return model.eval()


class _Builder:
    """A trunk that grows; `probe` is its output so far."""

    def __init__(self, rng: Random, images: Tensor) -> None:
        self.rng, self.probe = rng, images
        self.trunk: list[nn.Module] = []
        self.plain = rng.random() < 0.6  # of parts alone that most networks have
        channels = rng.randint(2, 8)
        self._append(nn.Conv2d(images.shape[1], channels, 3, rng.choice([1, 1, 2]), 1, bias=rng.random() < 0.5))
        self._append(nn.BatchNorm2d(channels))
        self._append(parts.activation(rng, self.plain))

    @property
    def channels(self) -> int:
        return int(self.probe.shape[1])

    def grow(self) -> None:
        """Adds a block; none where what was drawn does not fit."""
        kinds = {
            self._plain: 5.0,
            self._residual: 4,
            self._parallel: 3,
            self._dense: 2,
            self._excited: 3,
            self._attended: 2,
            self._again: 1,
            self._pool: 3,
            self._movement: 0 if self.plain else 3,
            self._oddity: 0.2,
        }
        self._append(self.rng.choices(list(kinds), list(kinds.values()))[0]())

    def finish(self) -> nn.Module:
        neck = self._neck()
        with torch.no_grad():
            self.probe = neck.double().eval()(self.probe)
        head, behind = self._head()
        container = self.rng.choice(["tensor"] * 12 + ["dict", "object", "mapping"])
        return parts.Classifier(nn.Sequential(*self.trunk), neck, head, behind, container).double()

    def _append(self, block: nn.Module) -> None:
        try:
            with torch.no_grad():
                made = block.double().eval()(self.probe)
        except (RuntimeError, ValueError):  # too small a map, or shapes that do not go together
            return
        if made.shape[1] <= 2 * CHANNELS and 0 < made.shape[2] * made.shape[3] <= PIXELS:
            self.trunk.append(block)
            self.probe = made

    def _block(self, inputs: int, outputs: int | None = None, *, same_size: bool = True) -> nn.Sequential:
        """Convolution, norm and activation, in one of the orders that are in use."""
        rng = self.rng
        conv = parts.convolution(rng, inputs, outputs, same_size=same_size, plain=self.plain)
        made = conv.out_channels
        order = rng.choice(["cna"] * 6 + ["nac"] * 2 + ["cn", "can", "ca"])
        channels = inputs if order == "nac" else made
        each = {"c": conv, "n": parts.norm(rng, channels, self.plain), "a": parts.activation(rng, self.plain)}
        return nn.Sequential(*(each[letter] for letter in order))

    def _plain(self) -> nn.Module:
        return self._block(self.channels, same_size=False)

    def _residual(self) -> nn.Module:
        rng, inputs = self.rng, self.channels
        outputs, inner = rng.choice([inputs, inputs, rng.randint(2, CHANNELS)]), rng.randint(2, CHANNELS)
        shortcut: nn.Module = nn.Identity()
        if outputs != inputs:
            shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), parts.norm(rng, outputs, self.plain))
        branch = nn.Sequential(self._block(inputs, inner), self._block(inner, outputs))
        return parts.Residual(branch, shortcut, rng.random() < 0.4, rng.random() < 0.6)

    def _parallel(self) -> nn.Module:
        rng = self.rng
        count = rng.choice([2, 2, 3])
        chunked = self.channels % count == 0 and rng.random() < 0.5
        inputs = self.channels // count if chunked else self.channels
        merge = rng.choice(["cat", "cat", "add"] if self.plain else ["cat", "cat", "add", "mul", "max", "where"])
        outputs = rng.randint(1, 6)
        branches: list[nn.Module] = [
            self._block(inputs, rng.randint(1, 6) if merge == "cat" else outputs)
            if index == 0 or rng.random() < 0.7
            else nn.Identity()
            for index in range(count)
        ]
        return parts.Parallel(branches, chunked, merge)

    def _dense(self) -> nn.Module:
        return parts.Dense(self._block(self.channels, self.rng.randint(1, 5)))

    def _excited(self) -> nn.Module:
        """Squeeze and excitation, with a norm in it or none."""
        rng, channels, hidden = self.rng, self.channels, self.rng.randint(1, 4)
        layers: list[nn.Module] = [
            rng.choice([nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1)])
        ]
        layers.append(nn.Conv2d(channels, hidden, 1))
        if rng.random() < 0.4:
            layers.append(nn.BatchNorm2d(hidden))
        layers += [rng.choice([nn.ReLU(), nn.ReLU(inplace=True), nn.SiLU()]), nn.Conv2d(hidden, channels, 1)]
        if rng.random() < 0.3:
            layers.append(nn.BatchNorm2d(channels))
        layers.append(self._gate())
        return parts.Gated(nn.Sequential(*layers), rng.random() < 0.2)

    def _attended(self) -> nn.Module:
        """Attention to positions: what is pooled over channels, convolved, perhaps normalised."""
        rng = self.rng
        statistics = Do(
            "mean and maximum of channels", lambda x: torch.cat([x.mean(1, True), parts.amax(x, 1, True)], 1)
        )
        layers: list[nn.Module] = [statistics, nn.Conv2d(2, 1, 3, padding=1, bias=False)]
        if rng.random() < (0.9 if self.plain else 0.4):  # all channels, instead of their statistics
            layers = [nn.Conv2d(self.channels, 1, 1)]
        if rng.random() < 0.7:
            layers.append(nn.BatchNorm2d(1))
        return parts.Gated(nn.Sequential(*layers, self._gate()), rng.random() < 0.3)

    def _gate(self) -> nn.Module:
        if self.plain:
            return nn.Sigmoid()
        return self.rng.choice([nn.Sigmoid(), nn.Hardsigmoid(), nn.ReLU6(), nn.Tanh(), nn.ReLU()])

    def _again(self) -> nn.Module:
        """A block that is called twice, or blocks that share a norm."""
        block = self._block(self.channels, self.channels)
        if self.rng.random() < 0.5:
            return parts.Again(block)
        other = self._block(self.channels, self.channels)
        shared = parts.norm(self.rng, self.channels, self.plain)
        return nn.Sequential(block, shared, other, shared)

    def _pool(self) -> nn.Module:
        return parts.pool(self.rng, self.plain)

    def _movement(self) -> nn.Module:
        return parts.movement(self.rng, self.channels)

    def _oddity(self) -> nn.Module:
        """Models that have to be refused, or made for a number of images."""
        halved = Do("halved for one image", lambda x: x * 0.5 if x.shape[0] == 1 else x)
        return self.rng.choice([parts.Dangling(self.channels), halved])

    def _neck(self) -> nn.Module:
        """From the map to vectors (N, K), or a map (N, K, H, W) for a convolution head."""
        rng = self.rng
        if self.plain:
            pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
            return rng.choice([pooled, Do("mean", lambda x: x.mean((2, 3))), nn.AdaptiveAvgPool2d(1), nn.Identity()])
        return rng.choice(
            [
                *[nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())] * 2,
                nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten()),
                nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()),
                *[Do("mean", lambda x: x.mean((2, 3)))] * 3,
                Do("maximum", lambda x: parts.amax(x, (2, 3))),
                Do("mean and maximum", lambda x: torch.cat([x.mean((2, 3)), x.flatten(2).max(2).values], 1)),
                Do("squeezed", lambda x: nn.functional.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1)),
                Do("flattened", lambda x: torch.flatten(x, 1)),
                Do("reshaped", lambda x: x.reshape(x.shape[0], -1)),
                *[nn.AdaptiveAvgPool2d(1)] * 2,
                *[nn.Identity()] * 2,
            ]
        )

    def _head(self) -> tuple[nn.Module, nn.Module]:
        """The head, and what is done to its result until that is the logits (N, C)."""
        rng, inputs, classes = self.rng, self.channels, self.rng.randint(2, 6)
        if self.probe.ndim == 4:
            layers: list[nn.Module] = [nn.Conv2d(inputs, classes, 1, bias=rng.random() < 0.7)]
            if rng.random() < 0.25:
                layers = [*self._block(inputs, 4), nn.Conv2d(4, classes, 1)]
            if rng.random() < 0.1:
                layers.append(parts.activation(rng, self.plain))
            head = layers[0] if len(layers) == 1 else nn.Sequential(*layers)
            behind: list[nn.Module] = [
                Do("mean", lambda x: x.mean((2, 3))),
                nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            ]
            behind.append(Do("maximum", lambda x: parts.amax(x, (2, 3))))
            if tuple(self.probe.shape[2:]) == (1, 1):
                behind = [
                    nn.Flatten(),
                    Do("[..., 0, 0]", lambda x: x[..., 0, 0]),
                    Do("squeeze(3).squeeze(2)", lambda x: x.squeeze(3).squeeze(2)),
                    Do("view", lambda x: x.view(x.shape[0], -1)),
                ]
            return head, rng.choice(behind)
        hidden = rng.randint(2, 8)
        mlp = [nn.Linear(inputs, hidden), rng.choice([nn.ReLU(inplace=True), nn.ReLU(), nn.GELU()])]
        if rng.random() < 0.3:
            mlp.insert(1, rng.choice([nn.BatchNorm1d(hidden), nn.LayerNorm(hidden)]))
        head = rng.choice(
            [
                *[nn.Linear(inputs, classes, bias=rng.random() < 0.8)] * 6,
                nn.Sequential(nn.Dropout(), nn.Linear(inputs, classes)),
                *[nn.Sequential(*mlp, nn.Linear(hidden, classes))] * 2,
                parts.Cosine(inputs, classes, bias=False),
                parts.Heads(nn.Linear(inputs, 2), nn.Linear(inputs, 3), "cat"),
                parts.Heads(nn.Linear(inputs, 3), nn.Linear(inputs, 3), "mean"),
            ]
        )
        behind = [
            *[nn.Identity()] * 4,
            Do("* 0.7", lambda x: x * 0.7),
            Do("/ 1.5", lambda x: x / 1.5),
            Do("scaled in place", lambda x: x.mul_(2)),
            parts.Scale(),
            Do("view", lambda x: x.view(-1, x.shape[1])),
            Do("reshape twice", lambda x: x.reshape(x.shape[0], 1, -1).reshape(x.shape[0], -1)),
        ]
        if not self.plain:
            behind += [
                *[nn.Identity()] * 4,
                Do("transposed twice", lambda x: x.t().contiguous().t()),
                Do("without the first", lambda x: x[:, 1:]),
                Do("turned round", lambda x: x[:, list(range(x.shape[1] - 1, -1, -1))]),
                Do("flipped", lambda x: x.flip(1)),
                Do("minus the mean", lambda x: x - x.mean(1, keepdim=True)),
                Do("tanh", lambda x: 5 * torch.tanh(x / 5)),
                Do("clamped", lambda x: x.clamp(-1, 1)),
                Do("log_softmax", lambda x: x.log_softmax(1)),
            ]
        return head, rng.choice(behind)


@torch.no_grad()
def _disturb(model: nn.Module, rng: Random) -> None:
    """Parameters that trained, pruned and dead networks have: exact zeros, both signs, channels that are never open."""
    pruned = rng.choice([0.0] * 6 + [0.2, 1.0])
    for name, module in model.named_modules():
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if not isinstance(weight, Tensor):
            continue
        which = rng.randrange(weight.shape[0])
        if isinstance(module, PLAIN_NORMS):
            assert isinstance(bias, Tensor)
            weight.uniform_(0.5, 1.5)
            bias.normal_(0, 0.3)
            if rng.random() < 0.3:
                weight.mul_(torch.randn_like(weight).sign())
            if rng.random() < 0.15:
                weight[which] = 0
            if rng.random() < 0.15:
                bias[which] = rng.choice([-8.0, 0.0])
        elif weight.ndim > 1:
            if rng.random() < pruned:
                weight.mul_(torch.rand_like(weight) > rng.choice([0.2, 0.6]))
            if rng.random() < 0.4 and name.startswith("head"):  # of one class, or a hidden unit
                weight[which].mul_(torch.rand_like(weight[which]) > 0.5)
            if rng.random() < 0.08:
                weight[which] = 0
            if rng.random() < 0.05:
                weight[:, rng.randrange(weight.shape[1])] = 0
            if rng.random() < 0.1:
                weight.mul_(6)
            if bias is not None and rng.random() < 0.15:
                bias[which % len(bias)] = rng.choice([-8.0, 0.0])  # a transposed convolution has fewer


@torch.no_grad()
def _settle(model: nn.Module, rng: Random, images: Tensor) -> None:
    """Running statistics that fit the images, somewhat off; logits of which none always wins, where that can be."""
    tracked: list[Any] = [module for module in model.modules() if getattr(module, "running_mean", None) is not None]
    if rng.random() < 0.8:
        for module in tracked:
            module.train().momentum = 1.0
        model(images)
        for module in tracked:
            module.eval().running_var.clamp_(min=0.01)
    for module in tracked:
        module.running_mean.add_(0.1 * torch.randn_like(module.running_mean))
        module.running_var.mul_(torch.empty_like(module.running_var).uniform_(0.7, 1.4))
    head = model.get_submodule("head")
    last: list[Any] = [module for module in head.modules() if getattr(module, "bias", None) is not None][-1:]
    if last and rng.random() < 0.6:
        outputs: list[Tensor] = []
        with last[0].register_forward_hook(lambda *call: outputs.append(call[2])):
            model.eval()(images)
        axes = [axis for axis in range(outputs[0].ndim) if axis != 1]
        last[0].bias.sub_(outputs[0].mean(axes))
