"""Which feature maps are inspected."""

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from gaia_fast.errors import LayerError, ModelError
from gaia_fast.inspection.forward_hooks import ForwardHooks

# Normalisation layers that torchvision and timm derive from nn.Module itself.
_FROZEN_NORMS = ("FrozenBatchNorm2d", "FrozenBatchNormAct2d")


@dataclass(frozen=True)
class InspectedLayer:
    """A module whose feature map A^l is inspected.

    The map is the module's output; for a layer that normalises and activates in one module (timm's BatchNormAct2d),
    it is what the first module called inside it reads, so that the map lies before the activation as everywhere else.

    Attributes:
        name, module: of the model.
        explicit: whether the user named it, so that it has to give a map.
    """

    name: str
    module: nn.Module
    explicit: bool = False

    @property
    def inner(self) -> tuple[nn.Module, ...]:
        """The modules that may be called inside a norm."""
        return tuple(self.module.children()) if is_normalisation(self.module) else ()

    def watch(self, hooks: ForwardHooks, callback: Callable[[nn.Module, Any], Any]) -> None:
        """Calls `callback(module, map)` whenever the layer makes a map; a tensor returned replaces the map."""
        if self.inner:
            hooks.between(self.module, self.inner, callback)
        else:
            hooks.after(self.module, callback)


def is_normalisation(module: nn.Module) -> bool:
    """Returns whether `module` is a normalisation layer whose output can be a (N, K, H, W) feature map."""
    if isinstance(module, (_BatchNorm, nn.GroupNorm, _InstanceNorm)):
        return not isinstance(module, nn.BatchNorm1d)
    return any(base.__name__ in _FROZEN_NORMS for base in type(module).__mro__)


def inspected_layers(model: nn.Module, layers: Sequence[str] | None = None) -> list[InspectedLayer]:
    """Returns the modules to inspect, in the model's own order, each once.

    Args:
        model: the classifier.
        layers: None for every normalisation layer; or names of modules, where a name of a container stands for every
            normalisation layer below it.

    Raises:
        LayerError: a name that matches nothing (near matches are listed), or nothing to inspect.
    """
    if isinstance(layers, str):
        layers = [layers]
    if layers is None:
        found = [InspectedLayer(name, module) for name, module in _norms_below("", model)]
        if not found:
            raise LayerError(
                f"{type(model).__name__} has no normalisation layer (BatchNorm2d, GroupNorm, ...) to inspect; name the "
                f"modules whose feature maps are to be inspected, layers=[...]. It has: {listed(_names(model))}"
            )
        return found
    if not all(isinstance(name, str) for name in layers):
        raise LayerError(f"layers takes names of modules, as in model.named_modules(); got {list(map(type, layers))}")
    if not layers:
        raise LayerError("layers=[] inspects nothing; pass module names, or None for every normalisation layer")
    chosen: dict[int, None] = {}
    for name in layers:
        module = find_module(model, name)
        below = [] if is_normalisation(module) else list(_norms_below(name, module))
        chosen.update((id(each), None) for _, each in (below or [(name, module)]))
    return [InspectedLayer(name, module, True) for name, module in model.named_modules() if id(module) in chosen]


def explicit_names(layers: Sequence[InspectedLayer]) -> list[str] | None:
    """Returns what `inspected_layers` finds these layers by: their names, or None where no name was given."""
    return [layer.name for layer in layers] if any(layer.explicit for layer in layers) else None


def find_module(model: nn.Module, name: str) -> nn.Module:
    """Returns the module called `name`; LayerError, with near matches, where there is none."""
    modules = dict(model.named_modules())
    if name in modules and name:
        return modules[name]
    near = difflib.get_close_matches(name, modules, n=5, cutoff=0.5) or [n for n in modules if name and name in n][:5]
    hint = f"did you mean {listed(near)}?" if near else f"it has: {listed(_names(model))}"
    raise LayerError(f"{type(model).__name__} has no module named {name!r}; {hint}")


def _norms_below(prefix: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, each in module.named_modules(prefix=prefix):
        if is_normalisation(each):
            yield name, each


def _names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules() if name]


def listed(names: Sequence[str], most: int = 12) -> str:
    """Returns names for a message: the first of them, and how many there are."""
    shown = ", ".join(repr(name) for name in names[:most])
    return f"{shown}, ... ({len(names)} in all)" if len(names) > most else shown or "no submodules"


class MapNames:
    """Names the feature maps of one forward pass: a module called again gets "name (call 2)"."""

    def __init__(self) -> None:
        self._calls: dict[str, int] = {}

    def next(self, layer: InspectedLayer) -> str:
        call = self._calls[layer.name] = self._calls.get(layer.name, 0) + 1
        return layer.name if call == 1 else f"{layer.name} (call {call})"

    def check_called(
        self,
        layers: Sequence[InspectedLayer],
        ran: Callable[[nn.Module], bool] = lambda module: False,
    ) -> None:
        """Raises LayerError unless a map was named, and one of every explicit layer.

        Args:
            layers: those that are inspected.
            ran: tells of a module that no hook was called for whether it ran all the same; ModelError if one did.
        """
        missed = [layer.name for layer in layers if layer.name not in self._calls]
        hidden = [layer.name for layer in layers if layer.name in missed and ran(layer.module)]
        if hidden:
            raise ModelError(around_hooks(hidden))
        if missed and (len(missed) == len(layers) or any(layer.explicit for layer in layers if layer.name in missed)):
            raise LayerError(
                f"the layers {listed(missed)} made no feature map of these images: they were not called, or with "
                "another number of images, or inside compiled code, where hooks do not fire; name others, layers=[...]"
            )


def around_hooks(names: Sequence[str]) -> str:
    """Returns the message for inspected layers that ran where no hook sees it."""
    return (
        f"the layers {listed(names)} ran in a thread of the model's own, or by their `forward` instead of being "
        "called: hooks do not see that, and their maps would be missing from the score; call them as module(x) in the "
        "thread that calls the model, or name the layers to inspect without them, layers=[...]"
    )


def is_feature_map(output: object, layer: InspectedLayer, images: int) -> bool:
    """Returns whether what a layer gave is a floating (N, K, H, W) map with positions.

    Raises:
        LayerError: it is not, and the layer is explicit.
    """
    if isinstance(output, Tensor) and output.ndim == 4 and output.is_floating_point() and output.shape[0] == images:
        return True
    if layer.explicit:
        shape = f" of shape {tuple(output.shape)}" if isinstance(output, Tensor) else ""
        raise LayerError(
            f"layer {layer.name!r} gives a {type(output).__name__}{shape} for {images} images, not a (N, K, H, W) "
            "feature map; leave it out"
        )
    return False
