"""Where the head of a classifier is, and with it A_last: where GAIA-A's two components meet."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gaia_fast.errors import LayerError
from gaia_fast.inspection import checks, guards, token_maps
from gaia_fast.inspection.forward_hooks import ForwardHooks, in_grad_mode
from gaia_fast.inspection.kept import undisturbed
from gaia_fast.inspection.layers import find_module, listed
from gaia_fast.inspection.survey import Passes, nothing
from gaia_fast.recent import Recent

MOST_SIZES = 256  # of images, for which it is remembered where the head is


@dataclass(frozen=True)
class Head:
    """The head, and the source of A_last.

    Attributes:
        name, module: the final linear or 1x1-convolution module; Phi is what it reads.
        last_name, last_module: the last module before it that returns a 4-D tensor, or a norm of tokens: A_last is its
            output, unless that is a map of tokens.
        explicit: whether the user named it, rather than it being found.
    """

    name: str
    module: nn.Module
    last_name: str
    last_module: nn.Module
    explicit: bool = False

    def check_last(self) -> None:
        """Raises LayerError where the head reads no (N, K, H, W) map, so that GAIA-A has no output component."""
        if token_maps.width(self.last_module):
            raise LayerError(
                f"the head {self.name!r} reads the tokens of {self.last_name!r}, no (N, K, H, W) feature map, so there "
                "is no A_last, and GAIA-A's output component is not defined; fusion='inner' and 'top1' do without it"
            )


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
            f"one that makes them, head=... (among {listed([names[module] for module in outputs])}); the head must be "
            "a module, and nothing but a view may follow it: no softmax inside the model"
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
            if output.ndim == 4 or (output.ndim == 3 and token_maps.is_token_norm(module)):
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


class HeadFinder:
    """Finds the head for images of each shape, on which control flow may depend, and again where the model has changed.

    Args:
        model, head: as in `find_head`.
        modules: all of the model's.
        passes: what is known of the model's forward passes.
    """

    def __init__(
        self, model: nn.Module, modules: Sequence[nn.Module], head: str | nn.Module | None, passes: Passes
    ) -> None:
        self._model, self._modules, self._requested, self._passes = model, list(modules), head, passes
        self._heads: Recent[torch.Size, Head] = Recent(MOST_SIZES)
        self._found_like: guards.ModelGuard | None = None  # what the model was like then

    @in_grad_mode(False)
    def find(self, x: Tensor) -> Head:
        """Returns the head for images like `x`; LayerError where there is none."""
        if self._found_like is None or not self._found_like.holds():
            like = guards.settled(self._modules, lambda: self._passes.run(self._model, x, nothing), values=False)
            self._heads, self._found_like = Recent(MOST_SIZES), like  # in this order, for other threads
        heads = self._heads
        found = heads.get(x.shape[1:])
        if found is None:
            found = find_head(self._model, x, self._requested)
            heads.put(x.shape[1:], found)
        return found
