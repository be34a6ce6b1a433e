"""Which feature maps are inspected."""

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from gaia_fast.errors import LayerError, ModelError
from gaia_fast.inspection import normalisation, proposals, token_maps
from gaia_fast.inspection.forward_hooks import ForwardHooks
from gaia_fast.inspection.normalisation import is_normalisation


@dataclass(frozen=True)
class InspectedLayer:
    """A module whose feature map A^l is inspected.

    The map is the module's output; for a layer that normalises and activates in one module (timm's BatchNormAct2d),
    it is what the first module called inside it reads, or where the norm is known by its name alone what its activation
    reads, so that the map lies before the activation as everywhere else.
    For a module that works on the last axis alone (nn.LayerNorm, nn.Linear) it is a map of tokens: see `token_maps`.

    Attributes:
        name, module: of the model.
        explicit: whether the user named it, so that it has to give a map.
    """

    name: str
    module: nn.Module
    explicit: bool = False

    @property
    def inner(self) -> tuple[nn.Module, ...]:
        """The modules that may be called inside a norm, after it.

        Inside a norm that is known by its name these are activations alone: others may come before it, or turn axes.
        """
        if not is_normalisation(self.module):
            return ()
        if self._is_known_by_name:
            return tuple(proposals.activations_in(self.module))
        return tuple(each for each in self.module.children() if not token_maps.is_token_norm(each))

    @cached_property
    def _is_known_by_name(self) -> bool:
        return is_normalisation(self.module) and normalisation.is_known_by_name(self.module)

    @cached_property
    def _channels(self) -> int:
        """How many channels a norm has that is known by its name alone; else 0."""
        return normalisation.channels(self.module) if self._is_known_by_name else 0

    @cached_property
    def _has_channels_first(self) -> bool:
        return normalisation.has_channels_first(self.module)

    def gives_channels_first(self, output: Tensor) -> bool:
        """Returns whether the second axis of a 4-D output is that of the channels, for a norm known by its name alone.

        Of any other module it is taken for that.

        Raises:
            LayerError: it cannot be told.
        """
        if not self._channels:
            return True
        second, last = output.shape[1] == self._channels, output.shape[-1] == self._channels
        if second and (not last or self._has_channels_first):
            return True
        if last and not second:
            return False
        which = "may be the second axis or the last" if second else "are neither its second axis nor its last"
        raise LayerError(
            f"layer {self.name!r}, a {type(self.module).__name__}, gives a map of shape {tuple(output.shape)}, whose "
            f"{self._channels} channels {which}; name the layers to inspect without it, layers=[...], or use images of "
            "another size"
        )

    def may_have_channels_last(self, output: Tensor) -> bool:
        """Returns whether the last axis of a 4-D output may be that of its channels, for all that is known."""
        if is_normalisation(self.module) or token_maps.width(self.module):
            return False
        norms = [each for each in self.module.modules() if token_maps.is_token_norm(each)]
        return output.shape[-1] in map(token_maps.width, norms)

    def watch(self, hooks: ForwardHooks, callback: Callable[[nn.Module, Any], Any]) -> None:
        """Calls `callback(module, map)` whenever the layer makes a map; a tensor returned replaces the map."""
        if self.inner:
            hooks.between(self.module, self.inner, callback)
        elif token_maps.width(self.module):
            hooks.after(self.module, token_maps.seen_as_map(self.name, callback))
        else:
            hooks.after(self.module, callback)


def inspected_layers(model: nn.Module, layers: Sequence[str] | None = None) -> list[InspectedLayer]:
    """Returns the modules to inspect, in the model's own order, each once.

    Args:
        model: the classifier.
        layers: None for every normalisation layer; or names of modules, where a name of a container stands for every
            normalisation layer below it.

    Raises:
        LayerError: a name that matches nothing (near matches are listed), or nothing to inspect (what could be is
            proposed). ModelError: maps of tokens are asked for, and their axes are in another order.
    """
    if isinstance(layers, str):
        layers = [layers]
    if layers is None:
        found = [InspectedLayer(name, module) for name, module in _norms_below("", model)]
        if not found:
            raise LayerError(proposals.refusal(model, listed(_names(model))))
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
        if token_maps.width(module):
            token_maps.check_order(model)
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
        LayerError: it is not, and the layer is explicit; or it cannot be told which axis is that of the channels.
    """
    if isinstance(output, Tensor) and output.ndim == 4 and output.is_floating_point() and output.shape[0] == images:
        if layer.explicit and layer.may_have_channels_last(output):
            raise LayerError(
                f"layer {layer.name!r} gives a map of shape {tuple(output.shape)} whose channels may come last, not a "
                f"(N, K, H, W) feature map; leave it out{_norms_of_tokens(layer)}"
            )
        if layer.gives_channels_first(output):
            return True
        if layer.explicit:
            raise LayerError(
                f"layer {layer.name!r}, a {type(layer.module).__name__}, gives a map of shape {tuple(output.shape)} "
                "whose channels come last, not a (N, K, H, W) feature map; leave it out"
            )
        return False
    if layer.explicit:
        shape = f" of shape {tuple(output.shape)}" if isinstance(output, Tensor) else ""
        raise LayerError(
            f"layer {layer.name!r} gives a {type(output).__name__}{shape} for {images} images, not a (N, K, H, W) "
            f"feature map; leave it out{_norms_of_tokens(layer)}"
        )
    return False


def _norms_of_tokens(layer: InspectedLayer) -> str:
    inside = [f"{layer.name}.{name}" for name in token_maps.token_norms(layer.module) if name]
    return f", or name the norms in it, whose maps of tokens are experimental: layers={inside[:8]}" if inside else ""
