"""Which feature maps are inspected, and where the head is."""

import contextlib
import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from gaia_fast import checks
from gaia_fast.capture import ForwardHooks
from gaia_fast.errors import LayerError, ModelError
from gaia_fast.kept import undisturbed
from gaia_fast.survey import Passes

# Normalisation layers that torchvision and timm derive from nn.Module itself.
_FROZEN_NORMS = ("FrozenBatchNorm2d", "FrozenBatchNormAct2d")


@dataclass(frozen=True)
class InspectedLayer:
    """A module whose feature map A^l is inspected.

    The map is the module's output; for a layer that normalises and activates in one module (timm's BatchNormAct2d),
    it is what the first module called inside it reads, so that the map lies before the activation as everywhere else.
    """

    name: str
    module: nn.Module

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


@dataclass(frozen=True)
class Head:
    """Where GAIA-A's two components meet.

    Attributes:
        name, module: the final linear or 1x1-convolution module; Phi is what it reads.
        last_name, last_module: the last module before it that returns a 4-D tensor: A_last is its output.
        asked_for: whether the user named it, rather than it being found.
    """

    name: str
    module: nn.Module
    last_name: str
    last_module: nn.Module
    asked_for: bool = False


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
                f"modules whose feature maps are to be inspected, layers=[...]. It has: {_some(_names(model))}"
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
    return [InspectedLayer(name, module) for name, module in model.named_modules() if id(module) in chosen]


def find_module(model: nn.Module, name: str) -> nn.Module:
    """Returns the module called `name`; LayerError, with near matches, where there is none."""
    modules = dict(model.named_modules())
    if name in modules and name:
        return modules[name]
    near = difflib.get_close_matches(name, modules, n=5, cutoff=0.5) or [n for n in modules if name and name in n][:5]
    hint = f"did you mean {_some(near)}?" if near else f"it has: {_some(_names(model))}"
    raise LayerError(f"{type(model).__name__} has no module named {name!r}; {hint}")


def _norms_below(prefix: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, each in module.named_modules(prefix=prefix):
        if is_normalisation(each):
            yield name, each


def _names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules() if name]


def _some(names: Sequence[str], most: int = 12) -> str:
    listed = ", ".join(repr(name) for name in names[:most])
    return f"{listed}, ... ({len(names)} in all)" if len(names) > most else listed or "no submodules"


def find_head(model: nn.Module, x: Tensor, head: str | nn.Module | None) -> Head:
    """Finds the head, and with it A_last, by watching one forward pass.

    The head is the last linear or 1x1-convolution module whose output is the logits (the same memory, so a view of it
    counts; with two images, where one is given). A_last is the output of the last module that had returned a 4-D tensor
    when the head was entered: the rule that gives the authors' choice for all three of their networks.

    Args:
        model: the classifier, in eval mode; run once under no_grad by the caller.
        x: (N, C, H, W) images.
        head: a module of the model, or its name, to use instead of searching.

    Raises:
        LayerError: no such module, or none found.
    """
    names = {module: name for name, module in model.named_modules()}
    asked = find_module(model, head) if isinstance(head, str) else head
    if asked is not None and asked not in names:
        raise LayerError(f"head={type(asked).__name__}(...) is not a module of {type(model).__name__}; pass its name")

    def watch(hooks: ForwardHooks) -> _HeadSearch:
        search = _HeadSearch()
        for module in names:
            if module is model:
                continue
            if module is asked or (asked is None and _can_be_head(module)):
                hooks.before(module, search.entered)
            hooks.after(module, search.left)
        return search

    def look(x: Tensor) -> tuple[Tensor, _HeadSearch]:
        output, search, _ = undisturbed(model, lambda: Passes().run(model, x, watch))
        return checks.logits_of(output, x.shape[0]), search

    logits, search = look(x)
    before, outputs = search.before, search.outputs

    if asked is not None:
        found: nn.Module | None = asked if asked in before else None
        if found is None:
            raise LayerError(f"the head {names[asked]!r} was not called in the forward pass; name the one that is")
    else:
        same = [module for module, output in outputs.items() if shares_memory(output, logits)]
        found = same[-1] if same else None
        if found is not None and x.shape[0] == 1 and outputs[found] is not logits:
            # One row is contiguous however it is turned: what copies two may return it as it is.
            with contextlib.suppress(Exception):  # a model for one image alone
                logits, search = look(x.repeat(2, 1, 1, 1))
                found = found if shares_memory(search.outputs[found], logits) else None
    if found is None:
        raise LayerError(
            checks.quantised(model)
            or f"no linear or 1x1-convolution module of {type(model).__name__} returns the logits themselves; name the "
            f"one that makes them, head=... (among {_some([names[module] for module in outputs])}); the head must be a "
            "module, and nothing but a view may follow it: no softmax inside the model"
        )
    last_module = before[found]
    if last_module is None:
        raise LayerError(f"no module returns a 4-D feature map before the head {names[found]!r}; GAIA-A needs one")
    return Head(names[found], found, names[last_module], last_module, asked is not None)


class _HeadSearch:
    """What one forward pass shows of heads, by module."""

    def __init__(self) -> None:
        self.last: nn.Module | None = None
        self.before: dict[nn.Module, nn.Module | None] = {}
        self.outputs: dict[nn.Module, Tensor] = {}  # kept alive, so that no memory is handed out twice

    def entered(self, module: nn.Module, _: object) -> None:
        self.before[module] = self.last

    def left(self, module: nn.Module, output: object) -> None:
        if isinstance(output, Tensor):
            if output.ndim == 4:
                self.last = module
            if module in self.before:
                self.outputs.pop(module, None)
                self.outputs[module] = output


def _can_be_head(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return all(size == 1 for size in module.kernel_size)
    return isinstance(module, nn.Linear)


def shares_memory(a: Tensor, b: Tensor) -> bool:
    """Returns whether one tensor is the other or a view of it."""
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


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
        asked_for: bool,
        ran: Callable[[nn.Module], bool] = lambda module: False,
    ) -> None:
        """Raises LayerError unless a map was named, and one of every layer if they were asked for by name.

        Args:
            layers, asked_for: as in `gaia_fast.hooks.measure`.
            ran: tells of a module that no hook was called for whether it ran all the same; ModelError if one did.
        """
        missed = [layer.name for layer in layers if layer.name not in self._calls]
        hidden = [layer.name for layer in layers if layer.name in missed and ran(layer.module)]
        if hidden:
            raise ModelError(around_hooks(hidden))
        if missed and (asked_for or not self._calls):
            raise LayerError(
                f"the layers {_some(missed)} made no feature map of these images: they were not called, or with "
                "another number of images, or inside compiled code, where hooks do not fire; name others, layers=[...]"
            )


def around_hooks(names: Sequence[str]) -> str:
    """Returns the message for inspected layers that ran where no hook sees it."""
    return (
        f"the layers {_some(names)} ran in a thread of the model's own, or by their `forward` instead of being called: "
        "hooks do not see that, and their maps would be missing from the score; call them as module(x) in the thread "
        "that calls the model, or name the layers to inspect without them, layers=[...]"
    )


def is_feature_map(output: object, layer: InspectedLayer, images: int, asked_for: bool) -> bool:
    """Returns whether what a layer gave is a floating (N, K, H, W) map with positions.

    Raises:
        LayerError: it is not, and the layer was asked for by name.
    """
    if isinstance(output, Tensor) and output.ndim == 4 and output.is_floating_point() and output.shape[0] == images:
        return True
    if asked_for:
        shape = f" of shape {tuple(output.shape)}" if isinstance(output, Tensor) else ""
        raise LayerError(
            f"layer {layer.name!r} gives a {type(output).__name__}{shape} for {images} images, not a (N, K, H, W) "
            "feature map; leave it out"
        )
    return False
