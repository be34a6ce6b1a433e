"""GAIA-Z and GAIA-A from their definitions, in plain autograd: nothing of the package is used.

A zero is added to each map that matters; the gradient towards that zero is the gradient at the map, whatever changes
the map in place behind it.
"""

import copy
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fuzz.networks import PLAIN_NORMS, logits_of
from fuzz.parts import equal_within

TINY = 1e-300
OWN_STATISTICS = (nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d)
WEIGHTED = (*PLAIN_NORMS, nn.LayerNorm, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


class UndefinedError(Exception):
    """There is no score: the network has no head that gives the logits, or they do not depend on an inspected map."""


@dataclass(frozen=True)
class Question:
    """What is to be measured of a model: the method's options, the inspected modules' names, the head's name."""

    name: str
    fusion: str
    statistic: str
    p: float
    layers: list[str] | None
    head: str | None


@dataclass(frozen=True)
class Answer:
    """Logits (N, C); the gradients at the maps, each (N, K, H, W); the output component (N,), ones if unused."""

    logits: Tensor
    gradients: list[Tensor]
    component: Tensor
    question: Question = field(repr=False)

    def score(self) -> Tensor:
        q = self.question
        if q.name == "gaia-z":
            eps = [(g != 0).double().mean((2, 3)) for g in self.gradients]
        elif q.fusion == "output":
            eps = [torch.ones_like(self.component).unsqueeze(1)]
        elif q.statistic == "abs_mean":
            eps = [g.double().mean((2, 3)).abs() for g in self.gradients]
        else:
            eps = [g.double().abs().mean((2, 3)) for g in self.gradients]
        return norm(eps, q.p) / self.component


def norm(eps: list[Tensor], p: float) -> Tensor:
    """The norm of each image's row of Lambda."""
    return torch.linalg.vector_norm(torch.cat(eps, 1), ord=p, dim=1)


def answer(
    model: nn.Module, x: Tensor, question: Question, classes: Tensor | None = None, noise: float = 0.0
) -> Answer:
    """Measures a batch.

    Args:
        model: in any dtype.
        x: (N, C, H, W) images of that dtype.
        question: what to measure.
        classes: (N,) the logits that GAIA-Z and fusion "top1" take; None for each image's largest.
        noise: the relative size of what is multiplied into the weights, and into what weighted modules give and get
            back, and by which maxima are equal, so that whatever hangs on rounding comes out otherwise.

    Raises:
        UndefinedError: there is no such score.
    """
    names = dict(model.named_modules())
    inspected = [each for each in names.values() if isinstance(each, PLAIN_NORMS)]
    if question.layers is not None:
        inspected = [names[name] for name in question.layers]
    needs_component = question.name == "gaia-a" and question.fusion in ("division", "output")
    needs_phi = question.name == "gaia-a" and question.fusion in ("division", "inner")
    head = last = None
    if needs_component or needs_phi:
        head = _head(model, x, question.head)
        last = _last_map(model, x, head)
    if noise:
        model = _jittered(model, noise)  # modules keep their places
        renamed = dict(zip(names.values(), model.modules(), strict=True))
        inspected = [renamed[each] for each in inspected]
        head = renamed[head] if head is not None else None
        last = (renamed[last[0]], last[1]) if last is not None else None

    zeros: dict[tuple[nn.Module, int], Tensor] = {}
    calls: dict[nn.Module, int] = {}
    phi: list[Tensor] = []

    def leave(module: nn.Module, inputs: Any, output: Any) -> Tensor | None:
        calls[module] = call = calls.get(module, 0) + 1
        changed = output
        if noise and isinstance(module, WEIGHTED):
            changed = changed * (1 + noise * torch.randn_like(changed))
            if isinstance(module, OWN_STATISTICS):
                changed = changed + _of_its_statistics(inputs[0], output, noise)
        if isinstance(output, Tensor) and output.ndim == 4 and (module in inspected or (module, call) == last):
            zero = zeros[module, call] = torch.zeros_like(output, requires_grad=True)
            changed = changed + zero
        return None if changed is output else changed

    with ExitStack() as stack:
        stack.callback(equal_within.reset, equal_within.set(2 * noise))  # both may be off
        for module in model.modules():
            if module is not model:
                stack.enter_context(module.register_forward_hook(leave))
        if head is not None:
            stack.enter_context(head.register_forward_pre_hook(lambda _, inputs: phi.append(inputs[0].sum())))
        with torch.enable_grad():
            logits = logits_of(model(x.detach().clone()))
            component = torch.ones(x.shape[0], dtype=torch.float64)
            if needs_component:
                assert last is not None
                (g,) = _towards(_log_softmax_sum(logits, noise), [zeros[last]])
                component = g.double().mean((2, 3)).abs().mean(1).sqrt()
            maps = [zero for (module, _), zero in zeros.items() if module in inspected]
            if not maps:
                raise UndefinedError("no inspected module gives a map")
            target = phi[-1] if needs_phi else None
            if target is None:
                chosen = logits.max(1).indices if classes is None else classes
                target = logits[torch.arange(len(chosen)), chosen].sum()
            gradients = [] if question.fusion == "output" and needs_component else _towards(target, maps)
    return Answer(logits.detach(), gradients, component, question)


def _log_softmax_sum(logits: Tensor, noise: float) -> Tensor:
    """Its gradient is 1 - C p, which cancels where the C classes are all but equally likely: the noise is C p's."""
    if noise:
        logits = logits.clone()
        logits.register_hook(lambda g: g - (1 - g) * noise * torch.randn_like(g))
    return logits.log_softmax(1).sum()


def _of_its_statistics(x: Tensor, output: Tensor, noise: float) -> Tensor:
    """A norm takes its input's size out, up to the rounding of its statistics: a gate before it gets what is left."""
    over = tuple(range(2, x.ndim)) or (1,)
    given, made = (each.detach().double().abs().mean(over, keepdim=True) for each in (x, output))
    size = made / given.clamp_min(TINY)
    return (noise * torch.randn_like(size) * size * x.double()).to(x.dtype)


def _towards(target: Tensor, zeros: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(target, zeros, retain_graph=True, allow_unused=True)
    missing = [index for index, each in enumerate(found) if each is None]
    if missing:
        raise UndefinedError(f"nothing comes back to the maps {missing}")
    return [each for each in found if each is not None]


def _children(model: nn.Module) -> Iterator[nn.Module]:
    return (each for each in model.modules() if each is not model)


@torch.no_grad()
def _head(model: nn.Module, x: Tensor, name: str | None) -> nn.Module:
    """The module of that name; else the last linear or 1x1 convolution whose result's memory the logits lie in."""
    if name is not None:
        return model.get_submodule(name)
    results: dict[nn.Module, Tensor] = {}
    with ExitStack() as stack:
        for module in _children(model):
            if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)):
                stack.enter_context(module.register_forward_hook(lambda m, _, y: results.update({m: y})))
        logits = logits_of(model(x.clone()))
    found = [m for m, y in results.items() if y.untyped_storage().data_ptr() == logits.untyped_storage().data_ptr()]
    if not found:
        raise UndefinedError("no module gives the logits")
    return found[-1]


@torch.no_grad()
def _last_map(model: nn.Module, x: Tensor, head: nn.Module) -> tuple[nn.Module, int]:
    """The last module, and which call of it, that had given a 4-D tensor when the head was entered."""
    calls: dict[nn.Module, int] = {}
    seen: list[tuple[nn.Module, int]] = []
    at_head: list[tuple[nn.Module, int]] = []

    def leave(module: nn.Module, _: Any, output: Any) -> None:
        calls[module] = calls.get(module, 0) + 1
        if isinstance(output, Tensor) and output.ndim == 4:
            seen.append((module, calls[module]))

    with ExitStack() as stack:
        for module in _children(model):
            stack.enter_context(module.register_forward_hook(leave))
        stack.enter_context(head.register_forward_pre_hook(lambda *_: at_head.extend(seen[-1:])))
        model(x.clone())
    if not at_head:
        raise UndefinedError("no map before the head")
    return at_head[-1]


@torch.no_grad()
def _jittered(model: nn.Module, noise: float) -> nn.Module:
    model = copy.deepcopy(model)
    for each in [*model.parameters(), *model.buffers()]:
        if each.is_floating_point():
            each.mul_(1 + noise * torch.randn_like(each))
    return model
