"""Where the GPU kernels keep the partial sums of programs that share a channel, and how they know who ends last.

Each program writes its share and draws a ticket; who draws a group's last one adds the shares up, in their order, and
puts the ticket back to zero. So the result is the same whoever is last, and the tickets of one call serve the next.
"""

import threading
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor

from gaia_fast.ops.tiling import Tiling, power_of_2

_LEAST = 4096  # tickets, so that they are seldom replaced by more
_PER_THREAD = 2  # cudaStreamPerThread: one handle, and a stream for each thread

_tickets: dict[tuple[int, int], Tensor] = {}
_of_thread = threading.local()


@dataclass(frozen=True)
class PartialSums:
    """What the programs of one call share; `tickets` are zero before the call and after it.

    Attributes:
        partial: (splits, moments, N, K) float32, contiguous; written before it is read.
        tickets: int32 zeros, one for each channel of each image: no program group has less than one channel.
    """

    partial: Tensor
    tickets: Tensor


class GraphTickets:
    """Tickets for all calls that are recorded into one CUDA graph: they follow each other whenever it is replayed.

    While this is entered, on this thread, calls take them. They are made in the warm-up: a call that is recorded
    without one before it has zeros of its own, which takes a launch at every replay. Who replays the graph keeps this.
    """

    def __init__(self) -> None:
        self._tickets: Tensor | None = None

    def __enter__(self) -> "GraphTickets":
        _of_thread.graph = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        _of_thread.graph = None

    def take(self, device: torch.device, count: int) -> Tensor:
        """Returns at least `count` zeros."""
        found = self._tickets
        if found is None or found.device != device or found.numel() < count:
            found = torch.zeros(_rounded(count), dtype=torch.int32, device=device)
            if not torch.cuda.is_current_stream_capturing():
                self._tickets = found
        return found


def partial_sums_for(out: Tensor, tiling: Tiling) -> PartialSums | None:
    """Returns what programs need beside `out`, (moments, N, K) or (N, K); None where no program shares a channel."""
    if tiling.splits == 1:
        return None
    moments, images, channels = out.shape if out.ndim == 3 else (1, *out.shape)
    partial = torch.empty((tiling.splits, moments, images, channels), dtype=out.dtype, device=out.device)
    return PartialSums(partial, tickets_for(out.device, images * channels))


def tickets_for(device: torch.device, count: int) -> Tensor:
    """Returns at least `count` zeros on the device, for the caller's current stream.

    Calls on one stream follow each other, so that each finds the zeros that the one before left. What is recorded into
    a CUDA graph gets its own (`GraphTickets`): the graph runs on any stream, beside other calls.
    """
    if device.type != "cuda":
        return torch.zeros(count, dtype=torch.int32, device=device)
    with torch.cuda.device(device):
        graph: GraphTickets | None = getattr(_of_thread, "graph", None)
        if graph is not None:
            return graph.take(device, count)
        stream = torch.cuda.current_stream().cuda_stream
        if stream == _PER_THREAD or torch.cuda.is_current_stream_capturing():
            return torch.zeros(count, dtype=torch.int32, device=device)
        key = torch.cuda.current_device(), stream
        kept = _tickets.get(key)
        if kept is not None and kept.numel() >= count:
            return kept
        # The smaller ones go back to the stream's memory: what takes their place runs after what still uses them.
        made = torch.zeros(_rounded(count), dtype=torch.int32, device=device)
        if is_everyones(made):
            _tickets[key] = made
        return made


def _rounded(count: int) -> int:
    return max(_LEAST, power_of_2(count))


def is_everyones(tensor: Tensor) -> bool:
    """Whether memory is of PyTorch's common pool: of another one, its owner may give away what others still hold."""
    address = tensor.data_ptr()
    try:
        segments = torch.cuda.memory_snapshot()
    except (RuntimeError, NotImplementedError):  # of another allocator, which does not tell
        return False
    for segment in segments:
        if segment["address"] <= address < segment["address"] + segment["total_size"]:
            return tuple(segment.get("segment_pool_id", ())) == (0, 0)
    return False
