"""Every kind of change to a model that scores depend on, and what must not count as one."""

import copy
import functools
from collections import OrderedDict, UserDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torch.nn.modules.module as torch_module
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune


class ReAct:
    """Clips the features; kept as an object, as libraries do."""

    def __init__(self, limit: float) -> None:
        self.limit = limit

    def hook(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output.clamp(max=self.limit)

    def before(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0].clamp(max=self.limit),)


def ash(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Prunes the smaller half of each image's features and makes up for it (ASH-S)."""
    features = args[0]
    kept = features.topk(features.shape[1] // 2, dim=1)
    pruned = torch.zeros_like(features).scatter(1, kept.indices, kept.values)
    return (pruned * (1 + pruned.sum(1, keepdim=True).abs().sqrt() * 0.1),)


@dataclass
class Inner:
    gain: float = 1.25


@dataclass
class Config:
    gain: float = 1.5
    inner: Inner = field(default_factory=Inner)


class AttributeDict(dict[str, Any]):
    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]


def subject() -> Any:
    """A model that reads all there is to change; its class is its own, so that that can be changed as well."""

    class Settings:
        gain = 1.125

    def offset_by(start: float) -> tuple[Callable[[Tensor], Tensor], Callable[[float], None]]:
        def add(y: Tensor) -> Tensor:
            return y + start

        def move(to: float) -> None:
            nonlocal start
            start = to

        return add, move

    class Block(nn.Sequential):
        pass

    class Subject(nn.Module):
        class_gain = 1.0625

        def __init__(self) -> None:
            super().__init__()
            self.trunk = Block(
                nn.Conv2d(3, 8, 3, padding=1, bias=False),
                nn.BatchNorm2d(8),
                nn.LeakyReLU(0.1),
                nn.Conv2d(8, 8, 3, padding=1),
                nn.GroupNorm(2, 8),
                nn.ReLU(),
            )
            self.wide = nn.Conv2d(8, 64, 3, padding=1)
            self.pool = nn.AvgPool2d(2)
            self.hidden, self.fc = nn.Linear(64, 64), nn.Linear(64, 7)
            self.unused = nn.Linear(64, 7)
            self.register_buffer("bias", torch.rand(64))
            self.temperature, self.flag, self.function = 0.5, True, torch.tanh
            self.sizes, self.table, self.names, self.queue = [1.5, 2], {"gain": 0.75}, {1, 2}, deque([1.25])
            self.ordered = OrderedDict(a={"b": [0.75]})
            self.config, self.space, self.kind = Config(), SimpleNamespace(gain=0.5), Settings
            self.user, self.attribute_dict = UserDict(gain=1.5), AttributeDict(gain=1.5)
            self.partial = functools.partial(torch.clamp, min=-1.0)
            self.closure, self.move_closure = offset_by(0.1)
            self.plain, self.listed, self.mapped = torch.rand(64), [torch.rand(64)], {"t": ({"u": torch.rand(64)},)}
            self.held = SimpleNamespace(mean=torch.rand(64))
            self.array = np.random.default_rng(0).random(64, dtype=np.float32)
            self.helpers = [nn.Linear(64, 64).requires_grad_(False)]

        @property
        def gain(self) -> float:
            return 1.5

        def middle(self, y: Tensor) -> Tensor:
            return self.wide(y)

        def forward(self, x: Tensor) -> Tensor:
            y = self.pool(self.middle(self.trunk(x)))
            factor = self.temperature * self.class_gain * self.gain * self.sizes[0] * self.table["gain"]
            factor *= sum(self.names) * self.queue[0] * self.ordered["a"]["b"][0] * self.config.gain
            factor *= self.config.inner.gain * self.space.gain * self.kind.gain
            factor *= self.user["gain"] * self.attribute_dict.gain
            f = y.mean((2, 3)) + self.plain + self.listed[0] + self.mapped["t"][0]["u"] + self.held.mean
            f = self.helpers[0](f * torch.as_tensor(self.array) + self.bias)
            f = self.closure(self.partial(self.function(self.hidden(f))))
            return self.fc(F.relu(f * factor) if self.flag else f * factor)

    torch.manual_seed(0)
    model = Subject()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
        if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias, 0, 0.3)
    return model.eval()


def _clip(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output.clamp(max=0.2)


def _replaced_forward(self: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x * 2 - 0.1, self.weight, self.bias)


class _Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x - 0.1)


def _fused(model: nn.Module, kind: Callable[..., torch.optim.Optimizer], **options: Any) -> None:
    optimiser = kind(model.parameters(), lr=0.05, fused=True, **options)
    model(torch.rand(2, 3, 16, 16)).square().sum().backward()
    optimiser.step()
    optimiser.zero_grad()


def _moved_to_the_front(model: Any) -> None:
    children = model.trunk._modules
    norm = children.pop("5")
    rest = list(children.items())
    children.clear()
    children.update([("5", norm), *rest])


def _set_code(model: Any) -> None:
    """As the automatic reloading of notebooks does."""

    def middle(self: Any, y: Tensor) -> Tensor:
        return self.wide(y) * 2 - 0.1

    type(model).middle.__code__ = middle.__code__


def _set_dict(model: nn.Module) -> None:
    model.__dict__ = {**vars(model), "temperature": 3.0}


def _unflagged(model: Any) -> None:
    model.flag = False


def _assign(name: str, value: Any) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        owner, _, last = name.rpartition(".")
        setattr(
            functools.reduce(lambda at, part: getattr(at, part), owner.split(".") if owner else [], model), last, value
        )

    return change


def _like(parameter: nn.Parameter) -> nn.Parameter:
    """Another parameter of the same shape, written to as often."""
    other = nn.Parameter(torch.rand_like(parameter))
    with torch.no_grad():
        while other._version < parameter._version:
            other.add_(1)
    return other


def _do(action: Callable[[Any], Any]) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        with torch.no_grad():
            action(model)

    return change


def _each(*actions: Callable[[Any], Any]) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        for action in actions:
            action(model)

    return change


def _set_gradients(model: nn.Module) -> None:
    for each in model.parameters():
        each.grad = torch.ones_like(each)


STRUCTURE: dict[str, Callable[[Any], Any]] = {
    "forward hook": lambda m: m.trunk[5].register_forward_hook(_clip),
    "forward hook first of several": lambda m: m.trunk[5].register_forward_hook(_clip, prepend=True),
    "forward hook with keywords": lambda m: m.trunk[5].register_forward_hook(
        lambda module, args, kwargs, output: output.clamp(max=0.2), with_kwargs=True
    ),
    "forward pre-hook": lambda m: m.fc.register_forward_pre_hook(lambda module, args: (args[0] * 2 - 0.1,)),
    "forward pre-hook with keywords": lambda m: m.fc.register_forward_pre_hook(
        lambda module, args, kwargs: ((args[0] * 2 - 0.1,), kwargs), with_kwargs=True
    ),
    "forward hook on a norm": lambda m: m.trunk[1].register_forward_hook(_clip),
    "forward hook on the model": lambda m: m.register_forward_hook(lambda module, args, output: output * 2),
    "ReAct hook": lambda m: m.pool.register_forward_hook(ReAct(0.1).hook),
    "ReAct pre-hook on the head": lambda m: m.fc.register_forward_pre_hook(ReAct(0.1).before),
    "ASH pre-hook on the head": lambda m: m.fc.register_forward_pre_hook(ash),
    "backward hook": lambda m: m.pool.register_full_backward_hook(
        lambda module, into, out: tuple(each * (each > 0) * 2 for each in into)
    ),
    "forward of the instance": lambda m: setattr(m.fc, "forward", _replaced_forward.__get__(m.fc)),
    "class": _assign("fc.__class__", _Doubled),
    "class of the norm": _assign(
        "trunk.1.__class__",
        type("Norm", (nn.BatchNorm2d,), {"forward": lambda self, x: -nn.BatchNorm2d.forward(self, x)}),
    ),
    "forward of the class": lambda m: setattr(
        type(m), "forward", lambda self, x: self.fc(torch.relu(self.hidden(self.wide(self.trunk(x)).mean((2, 3)))))
    ),
    "call of the class": lambda m: setattr(type(m.trunk), "__call__", lambda self, x: 2 * nn.Module.__call__(self, x)),
    "method of the class": lambda m: setattr(type(m), "middle", lambda self, y: self.wide(y) * 2 - 0.1),
    "method of the instance": lambda m: setattr(m, "middle", lambda y: m.wide(y) * 2 - 0.1),
    "code of a method": _set_code,
    "attribute of the class": lambda m: setattr(type(m), "class_gain", 2.0),
    "attribute over that of the class": _assign("class_gain", 2.0),
    "property of the class": lambda m: setattr(type(m), "gain", property(lambda self: -2.0)),
    "eps": _assign("trunk.1.eps", 0.5),
    "eps of a group norm": _assign("trunk.4.eps", 0.5),
    "groups of a norm": _assign("trunk.4.num_groups", 4),
    "stride": _assign("trunk.0.stride", (2, 2)),
    "padding": _assign("trunk.0.padding", (0, 0)),
    "dilation": _each(_assign("trunk.0.dilation", (2, 2)), _assign("trunk.0.padding", (2, 2))),
    "padding mode": _assign("trunk.0.padding_mode", "circular"),
    "slope": _assign("trunk.2.negative_slope", 0.5),
    "window of a pool": _assign("pool.kernel_size", 4),
    "number": _assign("temperature", 3.0),
    "sign of a number": _assign("temperature", -0.5),
    "flag": _unflagged,
    "function": _assign("function", torch.sigmoid),
    "partial": _assign("partial", functools.partial(torch.clamp, min=0.5)),
    "closure": lambda m: m.move_closure(-0.2),
    "list": lambda m: m.sizes.__setitem__(0, 3.0),
    "dictionary": lambda m: m.table.__setitem__("gain", 3.0),
    "set": lambda m: m.names.add(5),
    "deque": lambda m: (m.queue.popleft(), m.queue.append(3.0)),
    "nested containers": lambda m: m.ordered["a"]["b"].__setitem__(0, 3.0),
    "namespace": _assign("space.gain", 3.0),
    "dataclass": _assign("config.gain", 3.0),
    "dataclass within": _assign("config.inner.gain", 3.0),
    "class as a namespace": _assign("kind.gain", 3.0),
    "user dictionary": lambda m: m.user.__setitem__("gain", 3.0),
    "dictionary of attributes": lambda m: m.attribute_dict.__setitem__("gain", 3.0),
    "all attributes": _set_dict,
    "module": lambda m: setattr(m, "pool", nn.MaxPool2d(2).eval()),
    "module put in": lambda m: m.trunk.append(nn.Hardtanh(0.1, 0.5).eval()),
    "module taken out": lambda m: m.trunk.__delitem__(2),
    "modules reordered": _moved_to_the_front,
    "module without a name": lambda m: m.helpers.__setitem__(0, nn.Linear(64, 64).requires_grad_(False)),
    "head": lambda m: setattr(m, "fc", nn.Linear(64, 7).eval()),
    "training": lambda m: m.trunk[1].train(),
    "statistics lost": _each(_assign("trunk.1.running_var", None), _assign("trunk.1.running_mean", None)),
    "parametrization": lambda m: (
        parametrize.register_parametrization(m.fc, "weight", nn.Hardtanh(-0.05, 0.05)),
        m.eval(),
    ),
    "weight norm": lambda m: (
        nn.utils.parametrizations.weight_norm(m.fc).eval(),
        m.fc.parametrizations.weight.original0.data.mul_(2),
    ),
    "pruning": lambda m: prune.l1_unstructured(m.fc, "weight", amount=0.5),
    "bias taken away": lambda m: setattr(m.fc, "bias", None),
}

VALUES: dict[str, Callable[[Any], Any]] = {
    "in place": _do(lambda m: m.fc.weight.mul_(2)),
    "in place, in inference mode": lambda m: torch.inference_mode()(lambda: m.fc.weight.mul_(2))(),
    "several at once": _do(lambda m: torch._foreach_mul_([m.fc.weight, m.fc.bias], 2.0)),
    ".data in place": lambda m: m.fc.weight.data.mul_(2),
    ".data in place, a large one": lambda m: m.hidden.weight.data.mul_(-2),
    ".data in place, one number of a norm": lambda m: m.trunk[1].weight.data[3:4].mul_(-3),
    ".data assigned": lambda m: setattr(m.fc.weight, "data", m.fc.weight.data * 2),
    ".data transposed where it is": lambda m: setattr(m.hidden.weight, "data", m.hidden.weight.data.t()),
    ".data expanded where it is": lambda m: setattr(m.hidden.bias, "data", m.hidden.bias.data[:1].expand(64)),
    ".data cut short where it is": _each(
        lambda m: setattr(m.fc.weight, "data", m.fc.weight.data[:4]),
        lambda m: setattr(m.fc.bias, "data", m.fc.bias.data[:4]),
    ),
    "numpy": lambda m: m.fc.weight.detach().numpy().__imul__(2),
    "storage": lambda m: m.fc.bias.untyped_storage().copy_(torch.rand(7).untyped_storage()),
    "set_": _do(lambda m: m.fc.bias.set_(torch.rand(7))),
    "swapped": lambda m: torch.utils.swap_tensors(m.fc.weight, nn.Parameter(torch.rand(7, 64))),
    "swapped for one of the same version": lambda m: torch.utils.swap_tensors(m.fc.weight, _like(m.fc.weight)),
    "replaced": lambda m: setattr(m.fc, "weight", nn.Parameter(torch.rand(7, 64))),
    "fused SGD": lambda m: _fused(m, torch.optim.SGD),
    "fused SGD with momentum": lambda m: _fused(m, torch.optim.SGD, momentum=0.9),
    "fused Adam": lambda m: _fused(m, torch.optim.Adam),
    "fused AdamW": lambda m: _fused(m, torch.optim.AdamW),
    "fused Adagrad": lambda m: _fused(m, torch.optim.Adagrad),
    "loaded": lambda m: m.load_state_dict({name: each * 1.5 for name, each in m.state_dict().items()}),
    "loaded, assigned": lambda m: m.load_state_dict(
        {name: each * 1.5 for name, each in m.state_dict().items()}, assign=True
    ),
    "buffer": lambda m: m.bias.add_(1),
    "buffer's .data": lambda m: m.bias.data.add_(1),
    "buffer replaced": lambda m: setattr(m, "bias", m.bias + 1),
    "running mean": lambda m: m.trunk[1].running_mean.data.add_(1),
    "running variance": lambda m: m.trunk[1].running_var.data.mul_(9),
    "plain tensor": lambda m: m.plain.add_(1),
    "plain tensor's .data": lambda m: m.plain.data.add_(1),
    "plain tensor rebound": lambda m: setattr(m, "plain", m.plain + 1),
    "tensor in a list": lambda m: m.listed[0].data.add_(1),
    "tensor in a list rebound": lambda m: m.listed.__setitem__(0, m.listed[0] + 1),
    "tensor in nested containers": lambda m: m.mapped["t"][0]["u"].data.add_(1),
    "tensor of an object": lambda m: m.held.mean.data.add_(1),
    "array": lambda m: m.array.__imul__(2),
    "array rebound": lambda m: setattr(m, "array", m.array * 2),
    "weight of a module without a name": lambda m: m.helpers[0].weight.data.mul_(2),
}


def _watched(model: Any) -> Any:
    react = ReAct(10.0)
    return react, model.pool.register_forward_hook(react.hook)


# Changes to what was put there before: (what, how).
PREPARED: dict[str, tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]] = {
    "forward hook taken off": (lambda m: m.trunk[5].register_forward_hook(_clip), lambda m, hook: hook.remove()),
    "forward pre-hook taken off": (lambda m: m.fc.register_forward_pre_hook(ash), lambda m, hook: hook.remove()),
    "hooks cleared": (
        lambda m: m.trunk[5].register_forward_hook(_clip),
        lambda m, hook: m.trunk[5]._forward_hooks.clear(),
    ),
    "hooks reordered": (
        lambda m: (m.trunk[5].register_forward_hook(_clip), m.trunk[5].register_forward_hook(lambda *a: -2 * a[-1])),
        lambda m, _: m.trunk[5]._forward_hooks.move_to_end(next(iter(m.trunk[5]._forward_hooks))),
    ),
    "limit of a hook's object": (_watched, lambda m, held: setattr(held[0], "limit", 0.1)),
    "forward of the instance taken away": (
        lambda m: setattr(m.fc, "forward", _replaced_forward.__get__(m.fc)),
        lambda m, _: delattr(m.fc, "forward"),
    ),
    "parametrization removed": (
        lambda m: (parametrize.register_parametrization(m.fc, "weight", nn.Hardtanh(-0.05, 0.05)), m.eval()),
        lambda m, _: parametrize.remove_parametrizations(m.fc, "weight", leave_parametrized=False),
    ),
    "mask of a pruning": (
        lambda m: prune.l1_unstructured(m.fc, "weight", amount=0.5),
        lambda m, _: m.fc.weight_mask.data.fill_(1),
    ),
}


@contextmanager
def everywhere(register: Callable[[Callable[..., Any]], Any], hook: Callable[..., Any]) -> Iterator[None]:
    """A hook on every module of the process."""
    handle = register(hook)
    try:
        yield
    finally:
        handle.remove()


GLOBAL: dict[str, Callable[[], Any]] = {
    "global forward hook": lambda: everywhere(
        torch_module.register_module_forward_hook,
        lambda module, args, output: output * 2 if isinstance(module, nn.Linear) else None,
    ),
    "global forward pre-hook": lambda: everywhere(
        torch_module.register_module_forward_pre_hook,
        lambda module, args: (args[0] * 2 - 0.1,) if isinstance(module, nn.Linear) else None,
    ),
}


# ---- what changes nothing

NOTHING: dict[str, Callable[[Any], Any]] = {
    "a call": lambda m: m(torch.rand(3, 3, 16, 16)),
    "a call that records": lambda m: m(torch.rand(1, 3, 16, 16, requires_grad=True)).sum().backward(),
    "deepcopy": copy.deepcopy,
    "eval": lambda m: m.eval(),
    "zero_grad": lambda m: m.zero_grad(),
    "requires_grad_": lambda m: (m.requires_grad_(False), m.requires_grad_(True)),
    "state_dict": lambda m: m.state_dict(),
    "an equal number": lambda m: setattr(m, "temperature", float("0.5")),
    "an equal tuple": lambda m: setattr(m.trunk[0], "stride", (int("1"), int("1"))),
    "an equal word": lambda m: setattr(m.trunk[0], "padding_mode", "".join(["ze", "ros"])),
    "a state dict's hook": lambda m: m.register_state_dict_post_hook(lambda *_: None),
    "the same tensor": lambda m: setattr(m, "plain", m.plain),
    "a hook put on and taken off": lambda m: m.fc.register_forward_hook(_clip).remove(),
    "gradients": _set_gradients,
    "a parameter's hook": lambda m: m.fc.weight.register_hook(lambda g: g),
    "set back": _each(_assign("flag", False), _assign("flag", True)),
    "cpu": lambda m: m.cpu().float().to("cpu"),
    "named_modules": lambda m: (list(m.named_modules()), repr(m)),
}
