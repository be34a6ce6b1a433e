"""That every kind of change is seen, by the extension and by Python alike, and nothing else is taken for one."""

import copy
import enum
import gc
import logging
import threading
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gaia_fast import backends
from gaia_fast.inspection import guards, memory
from gaia_fast.inspection.forward_hooks import ForwardHooks
from gaia_fast.inspection.guards import ModelGuard, settled

import zoo
from changes import GLOBAL, NOTHING, PREPARED, STRUCTURE, VALUES, subject


@pytest.fixture(params=["extension", "python"], autouse=True)
def asked_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "python":
        monkeypatch.setattr(guards, "kernels", None)
    else:
        assert backends.kernels is not None, "the tests need the extension"
    return request.param


def look(model: nn.Module, values: bool = True) -> ModelGuard:
    return ModelGuard(list(model.modules()), values=values)


def images() -> Tensor:
    return torch.rand(2, 3, 16, 16)


def test_nothing_changed() -> None:
    model = zoo.build("vgg_like")
    modules = list(model.modules())
    before, structure = look(model), guards.structure(modules)
    with torch.no_grad():
        model(zoo.images(2))
    assert before.holds()
    assert not before.changes()
    assert guards.structure(modules) == structure


@pytest.mark.parametrize("change", [*STRUCTURE.values(), *VALUES.values()], ids=[*STRUCTURE, *VALUES])
def test_changes_are_seen(change: Callable[[Any], object]) -> None:
    model = subject()
    before = look(model)
    assert before.holds()
    change(model)
    assert not before.holds()
    assert look(model).holds()


@pytest.mark.parametrize("change", VALUES.values(), ids=VALUES)
def test_changes_are_seen_without_pytorchs_c_interface(
    change: Callable[[Any], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(memory.tensor_functions()) == 6
    monkeypatch.setattr(guards, "tensor_functions", tuple)
    test_changes_are_seen(change)


@pytest.mark.parametrize(("prepare", "change"), PREPARED.values(), ids=PREPARED)
def test_changes_to_what_was_put_there_are_seen(
    prepare: Callable[[Any], Any], change: Callable[[Any, Any], object]
) -> None:
    model = subject()
    held = prepare(model)
    before = settled(list(model.modules()), lambda: model(images()))
    assert before.holds()
    change(model, held)
    assert not before.holds()


@pytest.mark.parametrize("hooked", GLOBAL.values(), ids=GLOBAL)
def test_hooks_on_all_modules_are_seen(hooked: Callable[[], AbstractContextManager[None]]) -> None:
    model = subject()
    before = look(model)
    with hooked():
        assert not before.holds()
        assert not look(model, values=False).changes()
    assert before.holds()


@pytest.mark.parametrize("change", STRUCTURE.values(), ids=STRUCTURE)
def test_structure_is_seen_without_values(change: Callable[[Any], object]) -> None:
    model = subject()
    before = look(model, values=False)
    change(model)
    assert not before.holds()


@pytest.mark.parametrize("change", VALUES.values(), ids=VALUES)
def test_a_change_in_one_pass_alone_is_no_work_of_the_models(change: Callable[[Any], object]) -> None:
    """Another thread may change the model while it is prepared."""
    model, passes = subject(), list[None]()

    def run() -> None:
        passes.append(None)
        if len(passes) == 2:
            change(model)

    before = look(model)
    settled(list(model.modules()), run)
    assert not before.holds()


@pytest.mark.parametrize("nothing", NOTHING.values(), ids=NOTHING)
@pytest.mark.parametrize("values", [True, False], ids=["everything", "structure"])
def test_what_changes_nothing(nothing: Callable[[Any], object], values: bool) -> None:
    model = subject()
    before = look(model, values=values)
    nothing(model)
    assert before.holds()


# ---- what the model's own forward pass writes


class Busy(nn.Module):
    """Writes in its forward pass whatever a model can write."""

    total = 0
    average: Tensor
    seen: Tensor
    log: list[torch.Size]
    by_call: dict[int, torch.Size]
    features: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
        self.register_buffer("average", torch.zeros(4))
        self.register_buffer("seen", torch.zeros(()))
        self.calls, self.log, self.by_call = 0, [], {}
        self.space, self.gain, self.features = SimpleNamespace(calls=0, gain=1.0), 1.0, None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.space.calls += 1
        type(self).total += 1
        self.log.append(x.shape)
        self.by_call[self.calls] = x.shape
        self.features = self.conv(x)
        self.average.mul_(0.9).add_(self.features.detach().mean((0, 2, 3)))
        self.seen = self.seen + 1
        if not hasattr(self, "grid"):
            self.grid = torch.ones(4)
        return self.fc(self.features.mean((2, 3)) * self.grid * self.gain * self.space.gain)


def test_what_the_forward_pass_writes_is_left_out() -> None:
    model, x = Busy().eval(), images()
    plain = look(model)
    state = settled(list(model.modules()), lambda: model(x))
    model(x)
    assert state.holds()
    assert not plain.holds()


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model, "gain", 2.0),
        lambda model: setattr(model.space, "gain", 2.0),
        lambda model: model.grid.data.mul_(2),
        lambda model: setattr(model, "grid", torch.ones(4)),
        lambda model: model.conv.weight.data.mul_(2),
        lambda model: setattr(type(model), "forward", lambda self, x: self.fc(x.mean((2, 3)))),
        lambda model: setattr(model, "_buffers", {}),
    ],
    ids=["attribute", "of an object", "kept tensor", "kept tensor replaced", "weight", "forward", "buffers"],
)
def test_all_else_is_seen_in_a_model_that_writes(change: Callable[[Any], object]) -> None:
    model, x = type("Busier", (Busy,), {})().eval(), images()
    state = settled(list(model.modules()), lambda: model(x))
    model(x)
    assert state.holds()
    change(model)
    assert not state.holds()


def test_a_weight_that_is_written_in_every_pass_is_a_change() -> None:
    model: Any = zoo.build("vgg_like")
    weight = model.features[0].weight
    state = settled(list(model.modules()), lambda: weight.data.mul_(1.01))
    assert state.holds()
    weight.data.mul_(1.01)
    assert not state.holds()


def test_own_hooks_are_no_change() -> None:
    model = subject()
    theirs = model.pool.register_forward_hook(lambda module, args, output: output)
    before = look(model)
    with ForwardHooks() as hooks:
        for module in model.modules():
            hooks.before(module, lambda module, x: None)
            hooks.after(module, lambda module, output: None)
        assert before.holds()
        during = look(model)
        theirs.remove()
        assert not before.holds()
        assert not during.holds()
    assert not before.holds()


# ---- what is the same


DIFFERENT = {
    "1, True": (1, True),
    "1, 1.0": (1, 1.0),
    "zeros": (0.0, -0.0),
    "the next number": (1.0, 1.0 + 2**-52),
    "text, bytes": ("1", b"1"),
    "tuples": ((1, 2), (1, True)),
    "tuple, list": ((1,), [1]),
    "None, 0": (None, 0),
    "frozen sets": (frozenset({1}), frozenset({True})),
    "complex zeros": (complex(0, 0.0), complex(0, -0.0)),
    "tuples of zeros": ((0.0,), (-0.0,)),
}
EQUAL: dict[str, Callable[[], object]] = {
    "int": lambda: int("12345"),
    "float": lambda: float("0.1"),
    "NaN": lambda: float("nan"),
    "text": lambda: "".join(["ab", "c"]),
    "bytes": lambda: bytes([1, 2]),
    "tuple": lambda: (int("12345"), (float("0.1"),)),
    "frozen set": lambda: frozenset([int("12345"), "a"]),
    "complex": lambda: complex("1+2j"),
}


@pytest.mark.parametrize(("a", "b"), DIFFERENT.values(), ids=DIFFERENT)
def test_equal_is_not_the_same(a: object, b: object) -> None:
    module: Any = nn.Identity()
    module.value = a
    before = look(module)
    module.value = b
    assert not before.holds()


@pytest.mark.parametrize("make", EQUAL.values(), ids=EQUAL)
def test_equal_is_the_same_where_nothing_can_differ(make: Callable[[], object]) -> None:
    module: Any = nn.Identity()
    module.value = make()
    before = look(module)
    module.value = make()
    assert before.holds()


# ---- odd things in a model


class Hostile:
    """Has an opinion on everything."""

    def __getattr__(self, name: str) -> object:
        raise RuntimeError(name)

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("==")

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        raise RuntimeError("bool")

    def __len__(self) -> int:
        raise RuntimeError("len")


class Fleeting:
    """Another dictionary of attributes every time."""

    @property
    def __dict__(self) -> dict[str, object]:  # type: ignore[override]
        return {}


class Unhashable(type):
    __hash__ = None  # type: ignore[assignment]

    def __eq__(cls, other: object) -> bool:
        raise RuntimeError("==")


class Slots:
    __slots__ = ("x",)


ODD: dict[str, Callable[[], object]] = {
    "opinionated": Hostile,
    "no attributes of its own": Fleeting,
    "unhashable class": lambda: Unhashable("Odd", (), {}),
    "slots": Slots,
    "lock": threading.Lock,
    "thread": threading.current_thread,
    "logger": lambda: logging.getLogger("gaia_fast.tests"),
    "module of Python": lambda: torch,
    "generator": lambda: (each for each in range(3)),
    "random generator": torch.Generator,
    "weak reference": lambda: weakref.ref(nn.Identity),
    "weak proxy": lambda: weakref.proxy(ODD_MODULE),
    "itself": lambda: [ODD_MODULE],
    "large": lambda: list(range(100000)),
    "mock": mock.MagicMock,
    "unfilled cell": lambda: unfilled(),
    "array of objects": lambda: np.array([object()]),
    "array backwards": lambda: np.arange(5.0)[::-1],
    "read-only array": lambda: np.broadcast_to(np.arange(5.0), (2, 5)),
    "strings": lambda: np.array(["a"]),
    "enumeration": lambda: enum.Enum("Odd", "A B").A,  # type: ignore[attr-defined]
    "builtin": lambda: len,
    "builtin method": lambda: [].append,
    "operator": lambda: torch.ops.aten.relu.default,
    "optimiser": lambda: torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1),
    "distribution": lambda: torch.distributions.Normal(0.0, 1.0),
    "data set": lambda: torch.utils.data.TensorDataset(torch.zeros(2)),
    "mappingproxy": lambda: MappingProxyType({"a": 1}),
}
ODD_MODULE: nn.Module = nn.Identity()


def unfilled() -> Callable[[], object]:
    never: int

    def read() -> object:
        return never

    if False:
        never = 1
    return read


@pytest.mark.parametrize("make", ODD.values(), ids=ODD)
def test_odd_things(make: Callable[[], object]) -> None:
    module = nn.Module()
    object.__setattr__(module, "odd", make())
    before = look(module)
    assert before.holds()
    assert not before.changes()
    object.__setattr__(module, "odd", None)
    assert not before.holds()


class Function(Tensor):
    """Every question to it goes through Python."""

    @classmethod
    def __torch_function__(cls, function: object, types: object, args: object = (), kwargs: object = None) -> object:
        raise RuntimeError("asked")


class Wrapper(Tensor):
    """Has no memory of its own."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> "Wrapper":
        made: Any = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: object, types: object, args: object = (), kwargs: object = None
    ) -> object:
        raise RuntimeError("dispatched")


def inference() -> Tensor:
    with torch.inference_mode():
        return torch.rand(3)


TENSORS: dict[str, Callable[[], Tensor]] = {
    "no numbers": lambda: torch.empty(0),
    "no numbers, three dimensions": lambda: torch.empty(3, 0, 2),
    "one number": lambda: torch.tensor(1.0),
    "meta": lambda: torch.empty(3, device="meta"),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "sparse rows": lambda: torch.eye(3).to_sparse_csr(),
    "packed": lambda: torch.rand(2, 3).to_mkldnn(),
    "quantised": lambda: torch.quantize_per_tensor(torch.rand(3), 0.1, 0, torch.qint8),
    "nested": lambda: torch.nested.nested_tensor([torch.rand(2), torch.rand(3)]),
    "nested, jagged": lambda: torch.nested.nested_tensor([torch.rand(2), torch.rand(3)], layout=torch.jagged),
    "expanded": lambda: torch.rand(3, 1).expand(3, 1000),
    "strided": lambda: torch.rand(100, 100)[::3, ::7],
    "transposed": lambda: torch.rand(100, 90).t(),
    "channels last": lambda: torch.rand(8, 8, 3, 3).to(memory_format=torch.channels_last),
    "conjugate": lambda: torch.rand(3, dtype=torch.complex64).conj(),
    "negative": lambda: torch.rand(3, dtype=torch.complex64).conj().imag,
    "complex": lambda: torch.rand(300, dtype=torch.complex128),
    "bool": lambda: torch.ones(3, dtype=torch.bool),
    "float8": lambda: torch.rand(3).to(torch.float8_e4m3fn),
    "of a class that answers by itself": lambda: torch.rand(3).as_subclass(Function),
    "of a class that wraps": lambda: Wrapper(torch.rand(3)),
    "not yet made": nn.UninitializedParameter,
    "made in inference mode": inference,
    "part of a buffer": lambda: torch.rand(1000)[17:23],
    "taken away": lambda: (each := torch.rand(3), each.untyped_storage().resize_(0))[0],
}


@pytest.mark.parametrize("make", TENSORS.values(), ids=TENSORS)
def test_every_kind_of_tensor(make: Callable[[], Tensor]) -> None:
    module = nn.Module()
    tensor = make()
    module.__dict__["plain"] = tensor
    before = look(module)
    assert before.holds()
    module.__dict__["plain"] = make()
    assert not before.holds()


SIZES = [1, 3, 64, 255, 256, 257, 1000, 4096, 100_003]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.complex128])
def test_the_first_and_the_last_number_are_in_the_sample(size: int, dtype: torch.dtype) -> None:
    module: Any = nn.Module()
    module.plain = torch.zeros(size, dtype=dtype)
    for index in (0, size - 1):
        before = look(module)
        module.plain.data[index] += 1
        assert not before.holds()


@pytest.mark.parametrize("size", [1, 16, 63, 64])
def test_a_small_tensor_is_compared_whole(size: int) -> None:
    module: Any = nn.Module()
    module.plain = torch.zeros(size)
    for index in range(size):
        before = look(module)
        module.plain.data[index] += 1
        assert not before.holds()


def test_what_lies_between_the_elements_of_a_tensor_is_not_its() -> None:
    module: Any = nn.Module()
    whole = torch.zeros(100, 10)
    module.plain = whole[:, ::2]
    before = look(module)
    whole.data[:, 1::2] = 1
    whole.numpy()[:, 3] = 2
    assert before.holds()
    whole.numpy()[:, 4] = 2
    assert not before.holds()


def test_memory_that_was_taken_away_is_not_read() -> None:
    model = zoo.build("vgg_like")
    before = look(model)
    sizes = [each.untyped_storage().nbytes() for each in model.parameters()]
    for each in model.parameters():
        each.untyped_storage().resize_(0)
    assert not before.holds()
    for each, size in zip(model.parameters(), sizes, strict=True):
        each.untyped_storage().resize_(size)
    before.holds()  # either is right; nothing that was freed may be read


def test_a_class_may_be_documented_and_pickled() -> None:
    model = subject()
    before = look(model)
    type(model).__doc__ = "Documented."
    type(model).__slotnames__ = []  # what copy and pickle leave there
    type(model).__annotations__ = {"x": int}
    assert before.holds()


def test_nothing_is_kept_alive_by_a_circle() -> None:
    model = subject()
    model.own_fingerprint = [look(model)]
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_what_a_model_writes_is_not_kept() -> None:
    model, x = Busy().eval(), images()
    state = settled(list(model.modules()), lambda: model(x))
    assert model.features is not None
    kept = weakref.ref(model.features)
    model(x)
    gc.collect()
    assert kept() is None
    assert state.holds()


def test_asked_by_many_threads_while_another_writes() -> None:
    model = subject()
    state = look(model)
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            setattr(model, f"extra{number % 7}", number)
            model.register_forward_hook(lambda *_: None).remove()
            model.sizes.append(number)
            model.sizes.pop()
            model.queue.append(number)
            model.queue.pop()
            model.names.add(number + 10)
            model.names.remove(number + 10)
            model.table[str(number % 5)] = number
            model.table.pop(str(number % 5))
            delattr(model, f"extra{number % 7}")

    writer = threading.Thread(target=write)
    writer.start()
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: state.holds(), range(400)))
    stop.set()
    writer.join()
    assert set(answers) <= {True, False}
    assert state.holds()


def test_the_order_of_a_dictionary_is_part_of_it() -> None:
    module: Any = nn.Module()
    module.ordered, module.plain = OrderedDict(a=1, b=2), {"a": 1, "b": 2}
    before = look(module)
    module.ordered.move_to_end("a")
    assert not before.holds()
    before = look(module)
    module.plain["a"] = module.plain.pop("a")
    assert not before.holds()


def test_a_container_may_be_replaced_by_its_equal() -> None:
    """The exporter does that; what is written into the new one is seen."""
    model = subject()
    before = look(model)
    model.sizes, model.ordered, model.queue = list(model.sizes), copy.deepcopy(model.ordered), deque(model.queue)
    model.mapped = {"t": ({"u": model.mapped["t"][0]["u"]},)}
    model.names = set(model.names)
    assert before.holds()
    renewed = before.renewed()
    assert renewed is not before
    model.ordered["a"]["b"][0] = 3.0
    assert not before.holds()
    assert not renewed.holds()
    assert before.renewed() is before


class Named(NamedTuple):
    size: int
    steps: list[int]


class NamedAndMore(Named):
    """With attributes that its fields do not tell of."""


def test_a_named_tuple_may_be_replaced_by_its_equal() -> None:
    model: Any = nn.Module()
    model.named, model.table = Named(1, [2]), defaultdict(list, a=[1])
    before = look(model)
    model.named, model.table = Named(1, [2]), defaultdict(list, a=[1])
    assert before.holds()
    model.named = Named(1, [3])
    assert not before.holds()
    model.named, model.table = Named(1, [2]), defaultdict(set, a=[1])
    assert not before.holds()


def test_a_named_tuple_with_attributes_may_not() -> None:
    model: Any = nn.Module()
    model.named = NamedAndMore(1, [2])
    before = look(model)
    model.named = NamedAndMore(1, [2])
    assert not before.holds()


def test_what_was_replaced_by_its_equal_is_compared_by_identity_again(asked_by: str) -> None:
    """To compare what they hold takes ten times as long, and lasted as long as the detector."""
    model = subject()
    before = look(model)

    def replace() -> None:
        model.sizes, model.ordered, model.queue = list(model.sizes), copy.deepcopy(model.ordered), deque(model.queue)

    def asked() -> int:
        watch = before._look.watch
        seen = 0 if watch is None else watch.asked()
        assert before.holds()
        return 0 if watch is None else watch.asked() - seen

    assert asked() == 0
    replace()
    assert (asked() > 0) == (asked_by == "extension")
    for _ in range(64):
        asked()
    assert asked() == 0
    model.ordered["a"]["b"][0] = 3.0
    assert not before.holds()


def test_a_model_that_puts_new_ones_there_at_each_call_is_not_looked_at_anew_each_time(asked_by: str) -> None:
    model = subject()
    before = look(model)
    seen = {id(before._look): before._look}
    for _ in range(400):
        model.sizes = list(model.sizes)
        assert before.holds()
        seen[id(before._look)] = before._look
    assert len(seen) in ((2, 3, 4) if asked_by == "extension" else (1,))


def test_what_the_forward_pass_writes_stays_left_out_of_a_copy() -> None:
    model, x = Busy().eval(), images()
    state = settled(list(model.modules()), lambda: model(x))
    model.log, model.by_call = list(model.log), dict(model.by_call)
    for each in (state, state.renewed(), state.renewed().renewed()):
        assert each.holds()
        model(x)
        assert each.holds()
