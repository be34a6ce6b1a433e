"""Where the values of an executable lie: one arena, in which what is not needed at the same time shares memory."""

from collections.abc import Iterable, Mapping
from typing import Protocol

import torch

from gaia_fast.ops.convolution.steps import Pointer

_LINE = 16  # floats of a cache line
# Maps are of sizes that are powers of 2: put end to end, equal places of all would share a set of the cache.
_ALIAS_GAP = 5 * _LINE


class Scheduled(Protocol):
    """What the plan asks of an instruction: the values it reads and writes, by number, and when."""

    wave: int

    @property
    def read(self) -> list[int]: ...
    @property
    def written(self) -> list[int]: ...


def place_in_arena(
    instructions: Iterable[Scheduled], sizes: Mapping[int, torch.Size], places: dict[int, Pointer]
) -> int:
    """Places what has no place yet into buffer 0, each where no other lies that is needed at the time.

    First fit, in order of the first wave.

    Returns:
        The floats that the arena needs.
    """
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for each in instructions:
        for value in each.written:
            first[value] = last[value] = each.wave
        for value in each.read:
            last[value] = max(last.get(value, 0), each.wave)
    taken: list[tuple[int, int, int, int]] = []  # begin, end, first wave, last wave
    for value in sorted((each for each in first if each not in places), key=lambda each: first[each]):
        floats = -(-sizes[value].numel() // _LINE) * _LINE + _ALIAS_GAP
        begin = 0
        for other_begin, other_end, from_, to in sorted(taken):
            if first[value] <= to and from_ <= last[value] and other_begin < begin + floats and begin < other_end:
                begin = other_end
        taken.append((begin, begin + floats, first[value], last[value]))
        places[value] = Pointer(0, begin, sizes[value][1] if len(sizes[value]) == 4 else 0)
    return max((end for _, end, _, _ in taken), default=0)
