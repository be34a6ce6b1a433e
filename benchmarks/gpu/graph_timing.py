"""What a call costs on the device, by the replay of a CUDA graph, and what it costs a caller, by the clock.

A graph holds many calls in a row, which are replayed back to back: neither Python nor a launch is in the figure. Calls
on one map leave it in the L2 cache, as the kernel before does in a network ("hot"); calls that go through maps in turn,
which together are several times the cache, find nothing there ("cold").
"""

import time
from collections.abc import Callable, Sequence
from functools import cache
from statistics import median

import torch
from torch._C._autograd import DeviceType

Call = Callable[[], object]

HOT_CALLS, FEW_CALLS = 100, 10
_MOVED = 2 * 10**9  # bytes in a graph are enough to fill a measurement
# Cold figures are of maps that together are so many times the cache; not taken where that is too many maps.
OVER_L2 = 4
MOST_MAPS = 256
_AHEAD = 400_000  # cycles that the device waits, so that it is never Python that is measured
_SECONDS = 2e-3
_ROUNDS = 5


def wait() -> None:
    """For the device, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def is_lost() -> bool:
    """Whether this process can do no more on the device: a kernel has read or written where there is nothing."""
    try:
        wait()
    except Exception:
        return True
    return False


def maps_for_cold(bytes_a_call: int, l2_bytes: int) -> int | None:
    """Returns over how many maps calls go in turn until none of the first is in the cache; None where too many."""
    maps = max(2, -(-OVER_L2 * l2_bytes // bytes_a_call))
    return maps if maps <= MOST_MAPS else None


def milliseconds(run: Call, times: int) -> float:
    """What so many runs take on the device, by events, nothing in it waiting for Python."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(_AHEAD)
    start.record()
    for _ in range(times):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def microseconds_by_replay(replay: Call, calls: int = 1, seconds: float = _SECONDS, rounds: int = _ROUNDS) -> float:
    """The median of a few measurements of one of the calls that a graph holds."""
    replay()
    wait()
    times = times_for(milliseconds(replay, 1) / 1e3, seconds)
    return median(milliseconds(replay, times) for _ in range(rounds)) / (times * calls) * 1e3


def times_for(seconds_a_run: float, seconds: float, most: int = 1000) -> int:
    """How often to run what takes so long, to fill a time."""
    return max(1, min(most, round(seconds / max(seconds_a_run, 1e-9))))


@cache
def _beside() -> torch.cuda.Stream:
    """What records: always one stream, since free memory is kept for each."""
    return torch.cuda.Stream()


@torch.no_grad()
def microseconds(calls: Sequence[Call], keep: bool) -> float:
    """Records calls, in this order, into one graph, and returns what one of them takes.

    Args:
        calls: may hold one and the same call many times.
        keep: whether each call writes to memory of its own; else what one wrote is written over by the next.
    """
    beside = _beside()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for call in dict.fromkeys(calls):  # Triton compiles, and PyTorch takes memory, which a recording must not
            call()
    torch.cuda.current_stream().wait_stream(beside)
    wait()
    graph = torch.cuda.CUDAGraph()
    kept: list[object] = []
    with torch.cuda.stream(beside):
        # Not torch.cuda.graph: it gives all free memory back each time, which thousands of graphs cannot afford.
        graph.capture_begin()
        try:
            for call in calls:
                result = call()
                if keep:
                    kept.append(result)
                del result
        finally:
            graph.capture_end()
    return microseconds_by_replay(graph.replay, len(calls))


def hot(call: Call, moved: int) -> float:
    """Microseconds of a call, which moves so many bytes, on what lies in the cache, as far as it fits there."""
    return microseconds([call] * max(FEW_CALLS, min(HOT_CALLS, _MOVED // moved)), keep=False)


def cold(calls: Sequence[Call]) -> float:
    """Microseconds of a call, each on a map of its own that is not in the cache."""
    rounds = max(1, 4 // len(calls))
    return microseconds([*calls] * rounds, keep=rounds == 1)


def microseconds_by_clock(run: Call, seconds: float = _SECONDS) -> float:
    """What a caller waits for one run and its results: the mean of a few in a row."""
    wait()
    start = time.perf_counter()
    run()
    wait()
    times = times_for(time.perf_counter() - start, seconds, most=50)
    start = time.perf_counter()
    for _ in range(times):
        run()
        wait()
    return (time.perf_counter() - start) / times * 1e6


def launches(run: Call) -> int:
    """How many kernels, copies and fillings a run starts on the device."""
    run()
    wait()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        wait()
    return sum(each.count for each in profile.key_averages() if each.device_type == DeviceType.CUDA)
