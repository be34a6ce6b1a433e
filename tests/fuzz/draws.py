"""A draw: a network, images to prepare on, others to score, and what is asked for; all from one seed."""

from dataclasses import dataclass, field
from random import Random

import torch
from torch import Tensor, nn

from fuzz.networks import PLAIN_NORMS, differentiate, logits_of, network, summary
from fuzz.oracle import Question

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SIZES = ((8, 8), (9, 9), (12, 12), (11, 8), (7, 13), (16, 16), (10, 15))


@dataclass(frozen=True)
class Draw:
    """What `draw` made of a seed.

    Attributes:
        model: in eval mode, in its own dtype.
        question: the method with its options.
        example: images to prepare on.
        batches: images to score, by the words that describe them.
    """

    seed: int
    model: nn.Module = field(repr=False)
    question: Question
    example: Tensor = field(repr=False)
    batches: dict[str, Tensor] = field(repr=False)

    def __str__(self) -> str:
        dtype = str(self.example.dtype).removeprefix("torch.")
        return f"seed {self.seed}, {dtype}, {self.question}: {summary(self.model)}"


def draw(seed: int, dtypes: tuple[torch.dtype, ...] = DTYPES) -> Draw:
    """Draws a network with images and options; the same for the same seed, but for its dtype, one of `dtypes`."""
    rng = Random(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        size, channels = rng.choice(SIZES), rng.choice([1, 3, 3])
        noise = torch.randn(48, channels, *size, dtype=torch.float64)
        model = network(rng, noise)
        kinds = ["noise", *rng.sample(IMAGES, 4)]
        if rng.random() < 0.3:  # prepared on what others score
            kinds.insert(0, kinds.pop())
        dtype = dtypes[seed % len(dtypes)]
        model, noise = _in_dtype(model, noise, dtype)
        example, *others = [_images(kind, noise, rng) for kind in kinds]
        if rng.random() < 0.4:
            example = _of_one_class(model, example, noise)
        batches = {kind: _laid_out(each, rng) for kind, each in zip(kinds[1:], others, strict=True)}
        if rng.random() < 0.1:
            batches["no images"] = noise[:0]
        batches["noise, many"] = noise[24:48]
        return Draw(seed, model, _question(model, rng), example, batches)


IMAGES = (
    "constant",
    "zero",
    "half dead",
    "sparse",
    "striped",
    "one pixel",
    "faint",
    "saturating",
    "positive",
    "negative",
    "one channel",
    "alike",
)


def _in_dtype(model: nn.Module, noise: Tensor, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    """Both in a dtype; in float32 where some operator has no kernel for it."""
    try:
        differentiate(model.to(dtype), noise.to(dtype))
    except NotImplementedError:
        dtype = torch.float32
    return model.to(dtype), noise.to(dtype)


def _images(kind: str, noise: Tensor, rng: Random) -> Tensor:
    count = rng.randint(1, 5)
    begin = rng.randrange(24 - count)
    x = noise[begin : begin + count].clone()
    if kind == "constant":
        x = x[:, :, :1, :1].expand_as(x).contiguous()
    elif kind == "zero":
        x = torch.zeros_like(x)
    elif kind == "half dead":
        x[..., : x.shape[3] // 2] = 0
    elif kind == "sparse":
        x = x * (torch.rand(x.shape) < 0.1)
    elif kind == "striped":
        x = torch.sign(x[:, :, :1]).expand_as(x).contiguous()
    elif kind == "one pixel":
        x = torch.zeros_like(x)
        x[..., x.shape[2] // 2, x.shape[3] // 3] = 3
    elif kind == "faint":
        x = x * 1e-3
    elif kind == "saturating":
        x = x * 30
    elif kind == "positive":
        x = x.abs()
    elif kind == "negative":
        x = -x.abs() * 2
    elif kind == "one channel":
        x[:, 1:] = 0
    elif kind == "alike":
        x = x[:1].expand_as(x).contiguous()
    return x


def _laid_out(x: Tensor, rng: Random) -> Tensor:
    """The same images, or the first alone several times, in another memory layout."""
    kind = rng.choice(["contiguous", "contiguous", "channels last", "expanded", "strided", "transposed"])
    if kind == "channels last":
        return x.contiguous(memory_format=torch.channels_last)
    if kind == "expanded":
        return x[:1].expand_as(x)
    if kind == "strided":
        wide = x.new_full((*x.shape[:3], 2 * x.shape[3]), torch.nan)
        wide[..., ::2] = x
        return wide[..., ::2]
    if kind == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    return x


@torch.no_grad()
def _of_one_class(model: nn.Module, example: Tensor, noise: Tensor) -> Tensor:
    """Noise of the class that most of it is taken for."""
    classes = logits_of(model(noise.clone())).argmax(1)
    return noise[classes == classes.mode().values][: example.shape[0]].clone()


def _question(model: nn.Module, rng: Random) -> Question:
    p = rng.choice([2.0, 2.0, 2.0, 1.0, 3.0, torch.inf])
    layers = _some_layers(model, rng) if rng.random() < 0.25 else None
    if rng.random() < 0.6:
        return Question("gaia-z", "division", "abs_mean", p, layers, None)
    fusion = rng.choice(["division", "division", "inner", "output", "top1"])
    heads = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    head = heads[-1] if heads[-1].startswith("head") and fusion != "top1" and rng.random() < 0.6 else None
    return Question("gaia-a", fusion, rng.choice(["abs_mean", "mean_abs"]), p, layers, head)


def _some_layers(model: nn.Module, rng: Random) -> list[str]:
    """Some norms, or also other modules of the trunk."""
    names = [name for name, module in model.named_modules() if isinstance(module, PLAIN_NORMS)]
    if rng.random() < 0.3:
        names += [
            f"trunk.{name}"
            for name, module in model.get_submodule("trunk").named_children()
            if not list(module.children())
        ]
    names = list(dict.fromkeys(names))
    return rng.sample(names, rng.randint(1, len(names)))
