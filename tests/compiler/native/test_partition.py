import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from gaia_fast import GaiaA, GaiaZ
from gaia_fast.compiler.frontend.capture import capture
from gaia_fast.compiler.native.executable import Executable
from gaia_fast.compiler.native.kernels import Convolution
from gaia_fast.compiler.runtimes.native import Native
from gaia_fast.compiler.runtimes.runner import no_guard

import zoo
from graphs import captured, fold, fused, native, targets

aten = torch.ops.aten
DETECTORS = [GaiaA, GaiaZ]
NETWORKS = [
    "resnet34",
    "wrn_40_2",
    "small_bit",
    "vgg_like",
    "dense_like",
    "parallel",
    "strided_shortcut",
    "norm_act",
    "plain_norm",
]


def pair(detector: Any, name: str, images: int = 3) -> tuple[fx.GraphModule, fx.GraphModule, Tensor]:
    """A program of kernels one by one, the same in executables, and images."""
    model, x = zoo.build(name), zoo.images(images, zoo.image_size(name))
    prepared = detector(model, engine="compiled", runtime="eager").prepare(x).program(x)
    assert prepared is not None
    one_by_one = fused(prepared.program.graph)
    return one_by_one, native(prepared.program.graph), x.contiguous(memory_format=torch.channels_last)


def executables(module: fx.GraphModule) -> list[Executable]:
    return [each for each in module.modules() if isinstance(each, Executable)]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("detector", DETECTORS)
def test_executables_compute_what_their_kernels_do_one_by_one(
    detector: type[GaiaA] | type[GaiaZ], name: str, set_threads: Callable[[int], None]
) -> None:
    one_by_one, together, x = pair(detector, name)
    with torch.no_grad():
        for images in (3, 1, 2, 3):  # back to a number that is known
            expected = one_by_one(x[:images])
            for threads in (1, 2, 3):
                set_threads(threads)
                found = together(x[:images])
                assert len(found) == len(expected)
                for a, b in zip(found, expected, strict=True):
                    # Kernels that read channels-last maps otherwise add in another order than an executable does;
                    # and one by one, a group norm is PyTorch's own, which is off by 2e-5 of the largest gradients here.
                    atol = 2e-5 * float(b.abs().max()) if name == "small_bit" else 1e-6
                    torch.testing.assert_close(a, b, rtol=1e-5, atol=atol)


@pytest.mark.parametrize(
    ("detector", "number"), [(GaiaZ, 1), (GaiaA, 1), (partial(GaiaA, fusion="top1"), 2)], ids=["z", "a", "top1"]
)
def test_a_residual_network_is_one_executable_unless_gradients_wait_for_the_logits(detector: Any, number: int) -> None:
    _, together, _ = pair(detector, "wrn_40_2")
    assert len(executables(together)) == number
    left = targets(together)
    for each in (aten.cat.default, aten.stack.default, aten.convolution.default, aten.relu.default, aten.where.self):
        assert each not in left
    assert not any(isinstance(each, Convolution) for each in together.children())


@pytest.mark.parametrize("name", ["resnet34", "wrn_40_2", "strided_shortcut"])
@pytest.mark.parametrize("detector", DETECTORS)
def test_a_residual_network_and_the_checks_of_its_results_are_one_executable_called_at_once(
    detector: Any, name: str
) -> None:
    model, x = zoo.build(name), zoo.images(3, zoo.image_size(name))
    prepared = detector(model, engine="compiled", runtime="native").prepare(x, tune="model").program(x)
    runner = prepared.runner
    assert isinstance(runner, Native)
    assert runner._alone is not None
    *found, holds = runner(x)
    assert holds.tolist() == [1, 1, 1]
    for one, other in zip(found, runner._run(x, no_guard), strict=False):
        assert torch.equal(one, other)


def test_any_number_of_images_and_no_more_plans_than_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gaia_fast.compiler.native.executable._PLANS", 2)
    one_by_one, together, x = pair(GaiaZ, "vgg_like", 5)
    for images in (1, 2, 3, 4, 5, 1):
        torch.testing.assert_close(together(x[:images])[1], one_by_one(x[:images])[1], rtol=1e-5, atol=0)
        assert all(1 <= len(each._plans) <= 2 for each in executables(together))


def test_defaults_of_the_callers_do_not_matter() -> None:
    _, together, x = pair(GaiaZ, "vgg_like")
    expected = together(x)
    torch.set_default_dtype(torch.float64)
    try:
        found = together(x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_threads_that_score_at_once_do_not_meet() -> None:
    _, together, x = pair(GaiaZ, "wrn_40_2", 4)
    batches = [x[i : i + 1] for i in range(4)]
    expected = [together(each) for each in batches]
    wrong: list[int] = []

    def score(i: int) -> None:
        for _ in range(10):
            found = together(batches[i])
            if not all(torch.equal(a, b) for a, b in zip(found, expected[i], strict=True)):
                wrong.append(i)

    threads = [threading.Thread(target=score, args=(i,)) for i in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong


def test_a_value_that_the_caller_gets_is_not_written_by_a_later_call() -> None:
    _, together, x = pair(GaiaA, "strided_shortcut")
    found = together(x)
    kept = [each.clone() for each in found]
    together(-x)
    assert all(torch.equal(a, b) for a, b in zip(found, kept, strict=True))


class Twice(nn.Module):
    """Two branches of kernels with something of PyTorch's between them and what follows, in no whole sixteens."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 1), nn.Conv2d(16, 32, 1)
        self.odd, self.norm, self.fc = nn.Conv2d(32, 10, 1), nn.BatchNorm2d(10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x).relu()
        z = self.two(y).tanh() * self.three(y)
        return self.fc(self.norm(self.odd(z)).relu().mean((2, 3)))


def test_what_is_of_pytorchs_own_stands_between_executables() -> None:
    model, x = Twice().eval(), zoo.images(2)
    graph = captured(model, x, ["norm"], with_head=False).graph
    fold(graph)
    made = native(graph)
    assert [len(each.instructions) for each in executables(made)] == [3, 1, 3]
    assert targets(made).count(aten.tanh.default) == targets(made).count(aten.mul.Tensor) == 1
    with torch.no_grad():
        torch.testing.assert_close(made(x)[0], model(x), rtol=1e-5, atol=1e-6)


class Patches(nn.Module):
    """Images, and each cut into four, in one executable."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.whole = nn.Conv2d(3, 16, 3), nn.Sequential(*zoo.conv_norm(3, 16))
        self.second, self.fc = nn.Sequential(*zoo.conv_norm(16, 16)), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        patches = x.reshape(n, 3, 2, h // 2, 2, w // 2).permute(0, 2, 4, 1, 3, 5).reshape(n * 4, 3, h // 2, w // 2)
        patches = self.patch(patches).relu().mean((2, 3)).reshape(n, 4, 16).mean(1)
        return self.fc(self.second(self.whole(x).relu()).relu().mean((2, 3)) + patches)


@pytest.mark.parametrize("detector", DETECTORS)
def test_maps_of_several_numbers_of_images_share_an_executable(detector: type[GaiaA] | type[GaiaZ]) -> None:
    torch.manual_seed(0)
    model, x = Patches().eval(), zoo.images(3)
    found = detector(model, engine="compiled", runtime="native")(x)
    torch.testing.assert_close(found, detector(model, engine="reference")(x), rtol=2e-5, atol=0)


class Averages(nn.Module):
    """Nothing that an executable takes."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) * 2


@pytest.mark.parametrize("name", ["wrn_40_2", None])
def test_what_is_to_be_done_meanwhile_is_done_once_with_and_without_an_executable(name: str | None) -> None:
    if name is None:
        x = zoo.images(2)
        together = native(capture(Averages(), x, [], None).graph)
        assert not executables(together)
    else:
        _, together, x = pair(partial(GaiaA, fusion="top1"), name)
        assert len(executables(together)) == 2
    calls: list[int] = []
    together(x, lambda: calls.append(threading.get_ident()))
    assert calls == [threading.get_ident()]
    together(x)
    assert len(calls) == 1


def test_other_threads_begin_meanwhile(set_threads: Callable[[int], None]) -> None:
    """And the calling one finds what they have left, if anything."""
    one_by_one, together, x = pair(GaiaA, "resnet34")
    expected = one_by_one(x)
    for threads in (1, 2, 3):
        set_threads(threads)
        for a, b in zip(together(x, lambda: time.sleep(0.2)), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_memory_is_kept_for_the_next_call_up_to_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    _, together, x = pair(GaiaZ, "wrn_40_2")
    expected = together(x)
    (executable,) = executables(together)
    (kept,) = executable._spare
    kept.fill_(torch.nan)
    for images in (3, 1, 3):  # fewer fit as well
        found = together(x[:images])
        assert all(torch.equal(a, b[:images]) for a, b in zip(found, expected, strict=True))
        assert executable._spare[0] is kept
    together(x[[0] * 9])
    assert executable._spare[0].numel() > kept.numel()
    monkeypatch.setattr("gaia_fast.compiler.native.executable._KEPT", kept.numel())
    together(x[[0] * 9])
    assert not executable._spare


def test_what_runs_meanwhile_may_score_as_well(set_threads: Callable[[int], None]) -> None:
    """A signal's handler, say: it runs on the same thread, in the middle of an executable."""
    set_threads(3)
    _, together, x = pair(GaiaZ, "wrn_40_2", 4)
    inner, outer = together(x[:1]), together(x)
    found: list[tuple[Tensor, ...]] = []

    def again() -> None:
        for _ in range(5):
            together(x[[3] * 7])
            found.append(together(x[:1]))

    for _ in range(5):
        for a, b in zip(together(x, again), outer, strict=True):
            assert torch.equal(a, b)
    for each in found:
        for a, b in zip(each, inner, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
