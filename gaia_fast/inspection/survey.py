"""What a model does that no hook sees: random numbers, norms run around their hooks, compiled functions.

Told by the operators of one forward pass, so a model is surveyed once for each size of image, not at every call.
"""

import random
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from types import FrameType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gaia_fast.errors import ModelError
from gaia_fast.inspection import checks
from gaia_fast.inspection.forward_hooks import ForwardHooks, OutputReplacedError, has_own_hooks
from gaia_fast.recent import Recent

_MOST_SIZES = 256

S = TypeVar("S")


def nothing(hooks: ForwardHooks) -> None:
    """What is watched where a pass alone is wanted."""


class Passes:
    """Runs forward passes of one model, as it is now; the first for a size of image is watched."""

    def __init__(self) -> None:
        # By the size of an image: control flow may hang on it.
        self._findings: Recent[torch.Size, _Findings] = Recent(_MOST_SIZES)
        self._hooks_apart = True  # until a hook of the user's is seen to have a say in what the model computes

    def knows(self, x: Tensor) -> bool:
        """Whether the model has run on images of this size."""
        return self._findings.get(x.shape[1:]) is not None

    def run(
        self, model: nn.Module, x: Tensor, watch: Callable[[ForwardHooks], S]
    ) -> tuple[Any, S, Callable[[nn.Module], bool]]:
        """Runs the model once, on a copy of the images.

        Args:
            model: in eval mode; it is left without hooks, whatever happens.
            x: (N, C, H, W) images.
            watch: places the hooks, and returns what they write to.

        Returns:
            What the model returned; what the hooks wrote to; and a function that tells of a module that hooks were not
            called for whether it ran all the same, as far as can be seen.

        Raises:
            ModelError: the model draws random numbers, was set to training meanwhile, or failed.
        """
        gradients = torch.is_grad_enabled()
        try:
            return self._run(model, x, watch)
        except OutputReplacedError:
            self._hooks_apart = False
            torch.set_grad_enabled(gradients)
            return self._run(model, x, watch)

    def _run(
        self, model: nn.Module, x: Tensor, watch: Callable[[ForwardHooks], S]
    ) -> tuple[Any, S, Callable[[nn.Module], bool]]:
        found = self._findings.get(x.shape[1:])
        compiled = "torch._dynamo" in sys.modules if found is None else found.compiled
        hooks = ForwardHooks()
        try:
            with eagerly() if compiled else nullcontext():
                for module in model.modules():
                    if self._hooks_apart and has_own_hooks(module):
                        hooks.apart(module)
                seen = watch(hooks)
                if found is not None:
                    output = _forward(model, x.clone(), hooks)
                else:
                    output, found = self._survey(model, x, hooks)
                    self._findings.put(x.shape[1:], found)
        finally:
            hooks.remove()
        normed = found.normed
        return output, seen, lambda module: id(module) in (normed | hooks.elsewhere) - hooks.called

    def _survey(self, model: nn.Module, x: Tensor, hooks: ForwardHooks) -> tuple[Any, "_Findings"]:
        operators, images = _Operators(model, x.device), x.clone()
        begin = partial(torch._C._push_on_torch_dispatch_stack, operators)
        try:  # not `with operators`: what is C cannot be interrupted half-way, see `ForwardHooks.remove`
            begin()
            output = _forward(model, images, hooks)
        finally:
            torch._C._pop_torch_dispatch_stack(None)
        hooks.remove()  # what follows is no part of the pass
        operators.check_random(model, x)
        return output, operators.findings(model)


class _Findings(NamedTuple):
    """Whether compiled functions run in the model; ids of modules whose parameters a normalising operator was given."""

    compiled: bool
    normed: frozenset[int]


def _forward(model: nn.Module, x: Tensor, hooks: ForwardHooks) -> Any:
    modules = list(model.modules())
    for module in modules:
        if isinstance(module, checks.DIFFERENT_IN_TRAINING) and id(module) not in hooks.guarded:
            hooks.before(module, lambda _, __: None)
    output = checks.forward(model, x)
    for module in modules:
        if module.training:
            checks.check_model(model)
    return output


class _Operators(TorchDispatchMode):
    """Watches the operators that the calling thread runs in a forward pass."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        super().__init__()
        self._compiled = False
        self._normed_by: set[int] = set()  # ids of tensors
        self._modules = {id(module): name for name, module in model.named_modules()}
        self._generators = [torch.default_generator]
        if device.type == "cuda":
            self._generators.append(torch.cuda.default_generators[device.index or 0])
        self._sources = _sources(self._generators)
        self._before = {name: get() for name, (get, _) in self._sources.items()}
        self._restore: list[tuple[torch.Generator, Tensor]] = []
        self._drew = ""

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first operator imports torch._dynamo, which takes seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_dynamo_compiling():  # torch.cond and its kin are traced even where nothing is compiled
            return func(*args, **kwargs)
        if not isinstance(func, torch._ops.OpOverload):
            raise ModelError(
                f"the model calls {func} {self._where()}, an operator that takes functions: norms in those go unseen; "
                "write the branch or loop in Python"
            )
        self._compiled = self._compiled or any(_is_in(frame, "torch._dynamo.eval_frame") for frame in _frames())
        if "_norm" in func.__name__:
            self._normed_by.update(id(each) for each in args[1:] if isinstance(each, Tensor))
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        given = [each for each in (*args, *kwargs.values()) if isinstance(each, torch.Generator)]
        generators = given or self._generators
        states = [each.get_state() for each in generators]
        result = func(*args, **kwargs)
        for generator, state in zip(generators, states, strict=True):
            if not torch.equal(generator.get_state(), state):
                self._restore.append((generator, state))
                self._drew = self._drew or f"{func} {self._where()}"
        return result

    def findings(self, model: nn.Module) -> _Findings:
        """Returns what was seen, random numbers apart."""
        normed = frozenset(
            id(module)
            for module in model.modules()
            if any(id(each) in self._normed_by for each in (*module.parameters(False), *module.buffers(False)))
        )
        return _Findings(self._compiled, normed)

    def check_random(self, model: nn.Module, x: Tensor) -> None:
        """Raises ModelError if what the model returns hangs on chance; every generator is as before then."""
        drew = self._drew
        if not drew:
            changed = [name for name, (get, _) in self._sources.items() if not _same(get(), self._before[name])]
            if changed and not _repeats(model, x):  # else another thread drew, or the model makes no use of it
                drew = f"from {' and '.join(changed)}, and what it returns differs from call to call"
        if not drew:
            return
        for generator, state in reversed(self._restore):
            generator.set_state(state)
        for name, (_, put) in self._sources.items():
            put(self._before[name])
        raise ModelError(
            f"the model draws random numbers in eval mode: {drew}. Its scores would differ from call to call; turn "
            "that off, for instance F.dropout(x, training=self.training)"
        )

    def _where(self) -> str:
        """The function, module and line that the operator under way was called from."""
        function = ""
        for frame in _frames():
            if _is_in(frame, "torch.nn.functional"):
                function = f"by F.{frame.f_code.co_name} "
            name = self._modules.get(id(frame.f_locals.get("self")))
            if name is not None:
                module = f"in module {name!r}" if name else "in the model's own forward"
                return f"{function}{module} ({frame.f_code.co_filename}:{frame.f_lineno})"
        return function


def _frames() -> Iterator[FrameType]:
    """The calls under way in the model, innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not _forward.__code__:
        yield frame
        frame = frame.f_back


def _is_in(frame: FrameType, module: str) -> bool:
    return frame.f_globals.get("__name__") == module


def _sources(generators: Sequence[torch.Generator]) -> dict[str, tuple[Callable[[], Any], Callable[[Any], object]]]:
    """Where a model may take chance from: how to read and to set each state."""
    found: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
        f"torch's generator of {each.device}": (each.get_state, each.set_state) for each in generators
    }
    found["Python's random"] = (random.getstate, random.setstate)
    if (numpy := sys.modules.get("numpy")) is not None:
        found["numpy.random"] = (numpy.random.get_state, numpy.random.set_state)
    return found


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    return all(bool((x == y).all()) if hasattr(x, "all") else x == y for x, y in zip(a, b, strict=True))


@torch.no_grad()
def _repeats(model: nn.Module, x: Tensor) -> bool:
    first, second = (checks.logits_of(checks.forward(model, x.clone()), x.shape[0]) for _ in range(2))
    return torch.equal(first, second)


_stance_lock = threading.Lock()
_stances: list[Any] = []  # one for each pass under way


@contextmanager
def eagerly() -> Iterator[None]:
    """Has compiled functions run as they are written, so that hooks in them fire.

    PyTorch keeps this for the whole process: the first pass that needs it sets it, the last one puts it back, and
    functions that other threads compiled run as written meanwhile, too.
    """
    with _stance_lock:
        if not _stances:
            _stances.append(torch.compiler.set_stance("force_eager"))
        _stances.append(None)
    try:
        yield
    finally:
        with _stance_lock:
            _stances.pop()
            if len(_stances) == 1:
                _stances.pop().__exit__(None, None, None)
