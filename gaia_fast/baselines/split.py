"""A classifier split where other methods look: the features that its head reads, and the maps they are the mean of."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gaia_fast.errors import LayerError
from gaia_fast.inspection import checks
from gaia_fast.inspection.head import find_head


class Representation(NamedTuple):
    """What the end of a network says of images.

    Attributes:
        logits: (N, C) float32, on the CPU.
        features: (N, D) float32, on the CPU: what the head reads.
    """

    logits: Tensor
    features: Tensor


@dataclass(frozen=True)
class _Place:
    """Where a tensor can be had in a forward pass."""

    module: nn.Module
    is_input: bool


class SplitNetwork:
    """A classifier with its head, the linear or 1x1-convolution module that makes the logits.

    Args:
        model: in eval mode; never changed.
        example: (N, C, H, W) images, on which the head is found.
        head: the head, or its name; None finds it.

    Attributes:
        model: as given.
        classifier: the same, where it returns the logits alone; else a module that does.
        head: a linear module of the head's weights (C, D) and bias (C,), zeros where it has none; on the CPU.

    Raises:
        LayerError: no head is found, or it reads no single vector an image.

    Example:
        >>> import torch
        >>> from gaia_fast.models import digits_resnet
        >>> network = SplitNetwork(digits_resnet(pretrained=True), torch.zeros(1, 3, 32, 32))
        >>> found = network.represent(torch.rand(2, 3, 32, 32))
        >>> torch.allclose(network.head(found.features), found.logits, atol=1e-5)
        True
    """

    def __init__(self, model: nn.Module, example: Tensor, head: str | nn.Module | None = None) -> None:
        checks.check_model(model)
        checks.check_images(example, model)
        self.model = model
        with torch.no_grad():
            found = find_head(model, example, head)
        self._head_module, self._name = found.module, found.name
        weight = found.module.weight.detach().flatten(1).float().cpu()  # type: ignore[operator]
        bias = getattr(found.module, "bias", None)
        self.head = nn.Linear(weight.shape[1], weight.shape[0]).requires_grad_(False)
        self.head.weight.copy_(weight)
        self.head.bias.copy_(torch.zeros_like(self.head.bias) if bias is None else bias.detach())
        with torch.no_grad():
            self.classifier = model if isinstance(model(example[:1]), Tensor) else _Logits(model)
        self._check(example)
        self._maps = self._find_maps(example)

    @torch.no_grad()
    def represent(self, images: Tensor) -> Representation:
        """Logits and features of (N, C, H, W) images, from one forward pass."""
        seen: list[Tensor] = []
        with self._head_module.register_forward_pre_hook(lambda _, args: seen.append(args[0])):
            logits = checks.logits_of(self.model(images), images.shape[0])
        return Representation(logits.float().cpu(), seen[-1].flatten(1).float().cpu())

    @torch.no_grad()
    def feature_maps(self, images: Tensor) -> Tensor:
        """The maps (N, D, H, W) whose means over space are the features.

        Raises:
            LayerError: the features are no such means.
        """
        if self._maps is None:
            raise LayerError(
                f"what the head {self._name!r} of {type(self.model).__name__} reads is not the mean over space of a "
                "feature map that a module takes or returns; methods that change those maps cannot be applied"
            )
        seen: list[Tensor] = []
        with _watched(self._maps, seen.append):
            self.model(images)
        return seen[-1]

    def logits_of_maps(self, maps: Tensor) -> Tensor:
        """The logits (N, C) that follow from maps like those of `feature_maps`."""
        return self.head(maps.float().mean((2, 3)).cpu())

    def _check(self, example: Tensor) -> None:
        found = self.represent(example)
        if found.features.shape != (example.shape[0], self.head.in_features):
            raise LayerError(
                f"the head {self._name!r} reads {tuple(found.features.shape[1:])} numbers an image, and its weights "
                f"take {self.head.in_features}: give the module that makes the logits as head=..."
            )

    @torch.no_grad()
    def _find_maps(self, example: Tensor) -> _Place | None:
        seen: list[tuple[_Place, Tensor]] = []

        def note(place: _Place) -> Callable[[Tensor], None]:
            return lambda tensor: seen.append((place, tensor.clone()))  # what follows may write in place

        with ExitStack() as hooks:
            for module in self.model.modules():
                for is_input in (True, False):
                    place = _Place(module, is_input)
                    hooks.enter_context(_watched(place, note(place), self.head.in_features))
            features = self.represent(example).features
        for place, maps in reversed(seen):
            if maps.shape[:2] != features.shape or maps.shape[2:].numel() == 1:
                continue
            means = maps.float().mean((2, 3)).cpu()
            if torch.allclose(means, features, rtol=1e-4, atol=1e-5 * float(features.abs().max())):
                return place
        return None


class _Logits(nn.Module):
    """The logits of a model that returns an object of them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return checks.logits_of(self.model(x), x.shape[0])


def _watched(place: _Place, see: Callable[[Tensor], Any], channels: int | None = None) -> Any:
    """A hook that is shown the 4-D tensors at a place; of so many channels, where that is said."""

    def show(value: object) -> None:
        if isinstance(value, Tensor) and value.ndim == 4 and channels in (None, value.shape[1]):
            see(value)

    if place.is_input:
        return place.module.register_forward_pre_hook(lambda _, args: show(args[0] if args else None))
    return place.module.register_forward_hook(lambda _, __, output: show(output))
