"""Where the values of an executable lie: one arena, in which what is not needed at the same time shares memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gaia_fast.compiler.native.kernels import Concatenation, Kernel, Shape
from gaia_fast.compiler.native.result_kernels import Columns
from gaia_fast.ops.convolution.packing import NR, padded
from gaia_fast.ops.convolution.steps import Pointer

SIDE_BY_SIDE = (Concatenation, Columns)

_LINE = 16  # floats of a cache line
# Maps are of sizes that are powers of 2: put end to end, equal places of all would share a set of the cache.
_ALIAS_GAP = 5 * _LINE


class Scheduled:
    """What the plan asks of an instruction: the values it reads and writes, by number, and when."""

    kernel: Kernel
    inputs: tuple[int | None, ...]
    outputs: tuple[int | None, ...]
    wave: int

    @property
    def read(self) -> list[int]:
        raise NotImplementedError

    @property
    def written(self) -> list[int]:
        raise NotImplementedError


@dataclass(frozen=True)
class Slice:
    """Channels, or columns, of another value from one on: where lies what is made to stand in it beside others."""

    of: int
    channel: int


def slices(
    instructions: Sequence[Scheduled], shapes: Mapping[int, Shape], places: Mapping[int, Pointer]
) -> dict[int, Slice]:
    """Returns which values lie in a concatenation of them, so that nothing has to be copied.

    The last concatenation comes first, so that one that goes on with another's maps, as DenseNet's do, holds both. A
    value that has a place already is copied, and so is one whose channels are no whole panels. Vectors lie anywhere,
    but for those that are put together of others themselves.
    """
    made = {value for each in instructions for value in each.written}
    vectors = made - {value for each in instructions for value in each.written if isinstance(each.kernel, Columns)}
    found: dict[int, Slice] = {}
    begun: dict[tuple[int, ...], int] = {}  # what a concatenation begins with
    for each in reversed(instructions):
        if isinstance(each.kernel, Columns):
            columns, _ = each.kernel.begins([shapes[value] for value in each.read])
            given = iter(each.read)
            for row, column in zip(each.kernel.rows, columns, strict=True):
                if row is None and (value := next(given)) in vectors and value not in places and value not in found:
                    found[value] = Slice(each.written[0], column)
            continue
        if not isinstance(each.kernel, Concatenation):
            continue
        whole, parts = each.written[0], tuple(each.read)
        larger = begun.get(parts)
        in_larger = all(value in found and found[value].of == larger for value in parts)
        if larger is not None and whole not in places and in_larger:
            found[whole] = Slice(larger, 0)
            continue
        channel = 0
        for index, value in enumerate(parts):
            channels = shapes[value].size[1]
            begun.setdefault(parts[: index + 1], whole)
            free = value in made and value not in places and value not in found and value not in parts[:index]
            if free and channel % NR == 0 and channels % NR == 0 and not _is_whole(value, instructions):
                found[value] = Slice(whole, channel)
            channel += channels
    return found


def in_lines(floats: int) -> int:
    """Returns how much of the arena a value takes: whole lines of the cache, and a gap."""
    return -(-floats // _LINE) * _LINE + _ALIAS_GAP


def _is_whole(value: int, instructions: Sequence[Scheduled]) -> bool:
    """Whether a value is a concatenation itself, whose parts may lie in it."""
    return any(isinstance(each.kernel, Concatenation) and value in each.written for each in instructions)


def place_in_arena(
    instructions: Sequence[Scheduled],
    shapes: Mapping[int, Shape],
    places: dict[int, Pointer],
    slices: Mapping[int, Slice],
) -> int:
    """Places what has no place yet into buffer 0, each where no other lies that is needed at the time.

    First fit, in order of the first wave. A slice lies where it is a slice of.

    Returns:
        The floats that the arena needs.
    """
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for each in instructions:
        for value in each.written:
            root = slices[value].of if value in slices else value
            first[root] = min(first.get(root, each.wave), each.wave)
            last[root] = max(last.get(root, 0), each.wave)
        for value in each.read:
            root = slices[value].of if value in slices else value
            last[root] = max(last.get(root, 0), each.wave)
    taken: list[tuple[int, int, int, int]] = []  # begin, end, first wave, last wave
    for value in sorted((each for each in first if each not in places), key=lambda each: first[each]):
        floats = in_lines(shapes[value].floats)
        begin = 0
        for other_begin, other_end, from_, to in sorted(taken):
            if first[value] <= to and from_ <= last[value] and other_begin < begin + floats and begin < other_end:
                begin = other_end
        taken.append((begin, begin + floats, first[value], last[value]))
        size = shapes[value].size
        places[value] = Pointer(0, begin, padded(size[1]) if len(size) == 4 else 0)
    for value, part in slices.items():
        whole = places[part.of]
        places[value] = whole._replace(offset=whole.offset + part.channel)
    return max((end for _, end, _, _ in taken), default=0)
