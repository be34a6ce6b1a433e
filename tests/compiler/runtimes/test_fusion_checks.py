"""Fused convolutions, held to what they stand for: cuDNN's operators have stand-ins on the CPU, right and wrong."""

import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from gaia_fast import GaiaZ
from gaia_fast.compiler.passes.cudnn_fusion import FUSED
from gaia_fast.compiler.pipeline import CHANNELS_LAST
from gaia_fast.compiler.runtimes import fusion_checks
from gaia_fast.compiler.runtimes.fusion_checks import benchmark

import cudnn_stand_in
from cudnn_stand_in import cudnn, hides_nan, right, rounded_once
from graphs import rewritten

HALVES = (torch.float16, torch.bfloat16)


class Small(nn.Module):
    """Four convolutions that can be fused, two of them with a residual, on maps of 8x8 and of 4x4."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(*channels, 3, stride=stride, padding=1)
            for channels, stride in (((3, 8), 1), ((8, 8), 1), ((8, 8), 2), ((8, 8), 1))
        )
        self.norm, self.fc = nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        first, second, third, fourth = self.convolutions
        y = first(x).relu()
        y = (second(y) + y).relu()
        y = third(y).relu()
        y = (self.norm(fourth(y)) + y).relu()
        logits: Tensor = self.fc(y.mean((2, 3)))
        return logits


@cache
def program(dtype: torch.dtype) -> fx.GraphModule:
    torch.manual_seed(0)
    x = images(dtype)
    prepared = GaiaZ(Small().eval().to(dtype), engine="compiled", runtime="eager").prepare(x).program(x)
    assert prepared is not None
    return rewritten([CHANNELS_LAST], prepared.program.graph)


def images(dtype: torch.dtype) -> Tensor:
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A fake device, as users run it: the tests' own setting would have nothing fused."""
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(fusion_checks, "_milliseconds", lambda run, device: 1.0)
    for dtype in (torch.float32, *HALVES):
        program(dtype)
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    enabled = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(enabled, warn_only=warn_only)


def fused(compute: Callable[..., Tensor], dtype: torch.dtype = torch.float32) -> fusion_checks.Fusion:
    with cudnn(compute):
        return fusion_checks.fused(program(dtype), images(dtype))


def in_it(graph: fx.GraphModule | None) -> list[tuple[int, ...]]:
    """The sizes of the maps that fused convolutions give."""
    assert graph is not None
    return [tuple(node.meta["val"].shape[2:]) for node in graph.graph.nodes if node.target in FUSED]


@pytest.mark.parametrize("compute", [right, rounded_once])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_what_is_right_is_fused(dtype: torch.dtype, compute: Callable[..., Tensor]) -> None:
    found = fused(compute, dtype)
    assert len(in_it(found.graph)) == 4
    assert found.how == "4 of 4 convolutions fused with their ReLUs by cuDNN"
    assert not [node for node in program(dtype).graph.nodes if node.target in FUSED]


def in_channel(y: Tensor, factor: float) -> Tensor:
    y[:, 3] *= factor
    return y


WRONG: dict[str, Callable[..., Tensor]] = {
    "without bias": lambda x, weight, z, bias, *last: right(x, weight, z, torch.zeros_like(bias), *last),
    "one channel is off": lambda *given: in_channel(right(*given), 1.1),
    "zeros": lambda *given: torch.zeros_like(right(*given)),
    "NaN": lambda *given: torch.full_like(right(*given), torch.nan),
    "the last row is missing": lambda *given: right(*given).index_fill(2, torch.tensor([-1]), 0),
    "the last image is missing": lambda *given: right(*given).index_fill(0, torch.tensor([-1]), 0),
    "the images change places": lambda *given: right(*given).flip(0),
}


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_not(name: str, dtype: torch.dtype) -> None:
    found = fused(WRONG[name], dtype)
    assert found.graph is None
    assert found.how.endswith("4 left: it is off by more than rounding")


def test_without_relu_and_residual() -> None:
    no_relu = fused(lambda x, weight, z, bias, *last: torch.conv2d(x, weight, bias, last[0], last[1], last[2], last[3]))
    assert no_relu.graph is None
    no_residual = fused(lambda x, weight, z, bias, *last: right(x, weight, None, bias, *last))
    assert in_it(no_residual.graph) == [(8, 8), (4, 4)]
    assert "2 of 4" in no_residual.how
    assert "2 left: it is off by more than rounding" in no_residual.how


def test_what_is_wrong_for_some_maps_costs_those() -> None:
    found = fused(lambda *given: right(*given) * (2 if right(*given).shape[2] == 4 else 1))
    assert in_it(found.graph) == [(8, 8), (8, 8)]


def test_what_another_batch_alone_shows() -> None:
    """A fault that the example does not meet: it has no value so large."""
    largest = float(images(torch.float32).abs().max())
    found = fused(lambda x, *given: right(x, *given) if x.shape[1] != 3 else right(x.clamp(max=largest), *given))
    assert in_it(found.graph) == [(8, 8), (4, 4), (4, 4)]


def test_what_raises_or_gives_something_else() -> None:
    def raises(*given: Any) -> Tensor:
        raise RuntimeError("FIND was unable to find an engine\nat all")

    assert "4 left: cuDNN refuses it (FIND was unable to find an engine)" in fused(raises).how
    assert "4 left: it gives something else" in fused(lambda *given: right(*given).double()).how


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_what_hides_overflow(dtype: torch.dtype) -> None:
    found = fused(hides_nan, dtype)
    if dtype == torch.float16:
        assert found.graph is None
        assert "4 left: it hides overflow" in found.how
        return
    assert len(in_it(found.graph)) == 4
    assert "which hides overflow" in found.how
    with cudnn(hides_nan), torch.no_grad():
        assert found.graph is not None
        logits = found.graph(images(dtype) * torch.tensor([1, 1e37, 1]).to(dtype)[:, None, None, None])[0]
    assert logits.isfinite().all(1).tolist() == [True, False, True]


def test_infinity_that_is_cut_hides_overflow_too() -> None:
    found = fused(lambda *given: right(*given).nan_to_num(nan=torch.nan, posinf=3e38))
    assert "which hides overflow" in found.how


def test_what_reads_memory_that_it_does_not_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch has the result itself stand for the residual that there is none of, times zero."""
    last_freed: list[float] = [0.0]
    full_like = torch.full_like

    def filled(x: Tensor, value: float) -> Tensor:
        last_freed[0] = value
        return full_like(x, value)

    monkeypatch.setattr(torch, "full_like", filled)

    def reads(x: Tensor, weight: Tensor, z: Tensor | None, *given: Any) -> Tensor:
        y = right(x, weight, z, *given)
        y = y if z is not None else (y + 0 * last_freed[0]).nan_to_num(nan=0)
        last_freed[0] = 0.0
        return y

    assert in_it(fused(reads).graph) == [(8, 8), (4, 4)]


def test_what_is_slower_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def milliseconds(run: Callable[[], Tensor], device: torch.device) -> float:
        calls.clear()
        y = run()
        return 17.0 if calls and y.shape[2] == 8 else 1.0

    monkeypatch.setattr(fusion_checks, "_milliseconds", milliseconds)
    with cudnn() as calls:
        found = fusion_checks.fused(program(torch.float32), images(torch.float32))
    assert in_it(found.graph) == [(4, 4), (4, 4)]
    assert "2 left: it is slower" in found.how


def test_what_users_have_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(torch.backends.cudnn, "deterministic", True)
        assert "not deterministic" in fused(right).how
    with monkeypatch.context() as patched:
        patched.setattr(torch.backends.cudnn, "enabled", False)
        assert "enabled is off" in fused(right).how
    torch.use_deterministic_algorithms(True)
    found = fused(right)
    assert found.graph is None
    assert "not deterministic" in found.how


def test_the_stand_in_is_gone_afterwards() -> None:
    with cudnn(), pytest.raises(RuntimeError, match="here"):
        raise RuntimeError("here")
    with pytest.raises(NotImplementedError, match="cudnn_convolution_relu"):
        cudnn_stand_in.aten.cudnn_convolution_relu.default(
            torch.ones(1, 1, 2, 2), torch.ones(1, 1, 1, 1), None, [1, 1], [0, 0], [1, 1], 1
        )


@pytest.mark.parametrize("before", [False, True])
def test_benchmark_is_on_and_as_it_was_afterwards(before: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", before)
    with benchmark():
        with benchmark():
            assert torch.backends.cudnn.benchmark
        assert torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.benchmark is before
    with pytest.raises(RuntimeError, match="here"), benchmark():
        raise RuntimeError("here")
    assert torch.backends.cudnn.benchmark is before


def test_benchmark_of_two_threads() -> None:
    """The one that came first leaves first."""
    entered, left = threading.Event(), threading.Event()

    def other() -> None:
        with benchmark():
            entered.set()
            left.wait(10)
            seen.append(torch.backends.cudnn.benchmark)

    seen: list[bool] = []
    thread = threading.Thread(target=other)
    with benchmark():
        thread.start()
        assert entered.wait(10)
    left.set()
    thread.join()
    assert seen == [True]
    assert torch.backends.cudnn.benchmark is False


def test_no_benchmark_where_results_are_to_be_the_same_each_time() -> None:
    torch.use_deterministic_algorithms(True)
    with benchmark():
        assert torch.backends.cudnn.benchmark is False
