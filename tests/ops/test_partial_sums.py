"""Programs that share a channel: their sums in one launch, in order, and the tickets by which the last is known."""

from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from gaia_fast.ops import channel_moments, partial_sums, relu_backward_moments, relu_forward_count
from gaia_fast.ops.partial_sums import PartialSums, partial_sums_for, tickets_for
from gaia_fast.ops.tiling import Tiling, tiling_for

from cases import CHANNELS_LAST, LAYOUT, NCHW, TARGETS, Layout, Target, gradient
from tolerance import assert_same_bits

OPS = ("channel_moments", "relu_backward_moments", "relu_forward_count")
GPU = [target for target in TARGETS if target.backend in ("triton", "cuda")]
each_gpu_target = pytest.mark.parametrize("target", GPU, indirect=True, ids=str)
each_op = pytest.mark.parametrize("op", OPS)
# Of each way through the kernels a map that several programs share.
SHARED: tuple[tuple[tuple[int, ...], Layout], ...] = (
    ((2, 3, 1, 2500), NCHW),
    ((2, 40, 30, 40), CHANNELS_LAST),
    ((1, 3, 40, 60), LAYOUT["crop"]),
)
each_shared_map = pytest.mark.parametrize(("shape", "layout"), SHARED, ids=str)


def results_of(op: str, g: Tensor, backend: str) -> Tensor:
    """What programs add up: (moments, N, K)."""
    if op == "channel_moments":
        return channel_moments(g, backend=backend)
    if op == "relu_backward_moments":
        return relu_backward_moments(g, g, backend=backend)[1]
    return relu_forward_count(g, backend=backend)[1].unsqueeze(0)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[PartialSums]:
    """What the calls of a test were given, all with the same tickets."""
    given: list[PartialSums] = []
    tickets: dict[torch.device, Tensor] = {}

    def of(out: Tensor, tiling: Tiling) -> PartialSums | None:
        sums = partial_sums_for(out, tiling)
        if sums is None:
            return None
        mine = tickets.setdefault(out.device, torch.zeros(1000, dtype=torch.int32, device=out.device))
        given.append(PartialSums(sums.partial, mine))
        return given[-1]

    for backend in {target.backend for target in GPU}:
        for op in OPS:
            monkeypatch.setattr(import_module(f"gaia_fast.ops.{op}.{backend}"), "partial_sums_for", of)
    return given


@each_gpu_target
@each_shared_map
@each_op
def test_shares_are_added_in_their_order(
    target: Target, op: str, shape: tuple[int, ...], layout: Layout, kept: list[PartialSums]
) -> None:
    g = gradient(shape, torch.float32, target.device, layout).tensor
    got = results_of(op, g, target.backend)
    (sums,) = kept
    assert sums.partial.shape == (tiling_for(g).splits, *got.shape)
    assert sums.partial.shape[0] > 1
    total = torch.zeros_like(got)
    for share in sums.partial:
        total += share
    assert_same_bits(got, total, op)


@each_gpu_target
@each_shared_map
@each_op
def test_tickets_are_zeros_again(
    target: Target, op: str, shape: tuple[int, ...], layout: Layout, kept: list[PartialSums]
) -> None:
    g = gradient(shape, torch.float32, target.device, layout).tensor
    first = results_of(op, g, target.backend)
    for _ in range(2):  # a ticket that was not put back names another program the last, or none
        assert kept[-1].tickets.unique().tolist() == [0]
        assert_same_bits(results_of(op, g, target.backend), first, op)
    assert len(kept) == 3


@pytest.mark.parametrize("backend", sorted({target.backend for target in GPU}))
@each_op
def test_one_launch(op: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module(f"gaia_fast.ops.{op}.{backend}")
    target = next(each for each in GPU if each.backend == backend)
    launch: Callable[..., None] = module.launch
    launched: list[object] = []

    def counted(what: object, *arguments: Any, **options: Any) -> None:
        launched.append(what)
        launch(what, *arguments, **options)

    monkeypatch.setattr(module, "launch", counted)
    g = gradient((1, 40, 30, 40), torch.float32, target.device, CHANNELS_LAST).tensor
    assert tiling_for(g).splits > 1
    results_of(op, g, backend)
    assert len(launched) == 1


def test_no_memory_where_nothing_is_shared() -> None:
    g = gradient((2, 64, 8, 8), torch.float32).tensor
    assert partial_sums_for(torch.empty(3, 2, 64), tiling_for(g)) is None


def test_shares_of_counts_and_of_moments() -> None:
    tiling = tiling_for(gradient((2, 64, 32, 32), torch.float32, layout=CHANNELS_LAST).tensor)
    for out, shape in ((torch.empty(3, 2, 64), (3, 2, 64)), (torch.empty(2, 64), (1, 2, 64))):
        sums = partial_sums_for(out, tiling)
        assert sums is not None
        assert sums.partial.shape == (tiling.splits, *shape)
        assert sums.partial.is_contiguous()
        assert sums.tickets.tolist() == [0] * 128


class Device:
    """What `tickets_for` asks of a CUDA device, where there is none."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stream, self.index, self.capturing, self.pool, self.tells = 0, 0, False, (0, 0), True
        zeros = torch.zeros
        cuda = SimpleNamespace(
            device=self.enter,
            current_device=lambda: self.index,
            current_stream=lambda: SimpleNamespace(cuda_stream=self.stream),
            is_current_stream_capturing=lambda: self.capturing,
            memory_snapshot=self.segments,
        )
        made: list[Tensor] = []
        self.made = made

        def on_device(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
            made.append(zeros(count, dtype=dtype))
            return made[-1]

        fake = SimpleNamespace(cuda=cuda, zeros=on_device, int32=torch.int32)
        monkeypatch.setattr(partial_sums, "torch", fake)
        monkeypatch.setattr(partial_sums, "_tickets", {})

    def enter(self, device: torch.device) -> nullcontext[None]:
        self.index = device.index
        return nullcontext()

    def segments(self) -> list[dict[str, Any]]:
        if not self.tells:
            raise RuntimeError("cudaMallocAsync does not yet support snapshot")
        return [
            {"address": each.data_ptr(), "total_size": each.nbytes, "segment_pool_id": self.pool} for each in self.made
        ]

    def tickets(self, count: int = 10, index: int = 0) -> Tensor:
        found = tickets_for(torch.device("cuda", index), count)
        assert found.numel() >= count
        assert not bool(found.any())
        return found


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(monkeypatch)


def test_each_stream_keeps_its_tickets(device: Device) -> None:
    first = device.tickets()
    assert device.tickets(5) is first
    device.stream = 77
    second = device.tickets()
    assert second is not first
    assert device.tickets() is second
    assert device.tickets(index=1) is not second
    device.stream = 0
    assert device.tickets() is first


def test_more_tickets_are_made_where_they_are_needed(device: Device) -> None:
    first = device.tickets()
    more = device.tickets(first.numel() + 1)
    assert more.numel() >= 2 * first.numel()
    assert device.tickets() is more


def test_what_is_recorded_gets_tickets_of_its_own(device: Device) -> None:
    kept = device.tickets()
    device.capturing = True
    assert len({id(each) for each in (kept, device.tickets(), device.tickets())}) == 3
    device.capturing = False
    assert device.tickets() is kept


def test_a_stream_for_each_thread_is_not_taken_for_one(device: Device) -> None:
    device.stream = 2
    assert device.tickets() is not device.tickets()


@pytest.mark.parametrize("tells", [True, False])
def test_tickets_in_memory_that_may_be_given_away_are_not_kept(device: Device, tells: bool) -> None:
    device.pool, device.tells = (0, 7), tells
    assert device.tickets() is not device.tickets()
    device.pool, device.tells = (0, 0), True
    assert device.tickets() is device.tickets()


def test_on_the_cpu_no_call_shares_tickets_with_another() -> None:
    assert tickets_for(torch.device("cpu"), 3) is not tickets_for(torch.device("cpu"), 3)


def test_calls_of_one_graph_share_tickets_that_are_made_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    captures = False
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: captures)
    graph, device = partial_sums.GraphTickets(), torch.device("cpu")
    with graph:
        made = graph.take(device, 10_000)
        captures = True
        assert graph.take(device, 3) is made
        assert graph.take(device, 10_000) is made
        beyond = graph.take(device, 100_000)  # was not called in the warm-up
        assert beyond.numel() >= 100_000
        assert graph.take(device, 3) is made
    assert made.count_nonzero() == beyond.count_nonzero() == 0
    assert partial_sums.GraphTickets().take(device, 3) is not made
