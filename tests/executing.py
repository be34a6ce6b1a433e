"""Kernels in an executable, and by themselves."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gaia_fast.compiler.native.executable import Executable, Instruction
from gaia_fast.compiler.native.kernels import Convolution, Kernel
from gaia_fast.ops.convolution import Part, Weights
from gaia_fast.ops.convolution.packing import NR, Algorithm, padded
from gaia_fast.ops.convolution.steps import IDENTITY

HEIGHT, WIDTH = 9, 7  # an odd number of positions, so that the planes of masks are padded

Values = dict[int, Tensor]
_BALLAST = 1000


def plane(images: int, height: int, width: int) -> int:
    positions = images * height * width
    return positions + positions % 2


def words(mask: Tensor) -> Tensor:
    """A mask as executables take it: a word for each position of a panel."""
    images, channels, height, width = mask.shape
    bits = F.pad(mask, (0, 0, 0, 0, 0, padded(channels) - channels)).unflatten(1, (-1, NR)).to(torch.int32)
    made = (bits << torch.arange(NR).view(-1, 1, 1)).sum(2).to(torch.int32)
    room = torch.zeros(made.shape[1], plane(images, height, width), dtype=torch.int32)
    room[:, : images * height * width] = made.transpose(0, 1).flatten(1)
    lying = (height * width, room.shape[1], width, 1)
    return room.to(torch.int16).as_strided((images, made.shape[1], height, width), lying)


def bools(found: Tensor, channels: int) -> Tensor:
    """The mask that words are of; nothing may be in the channels behind its last."""
    bits = (found.to(torch.int32).unsqueeze(2) >> torch.arange(NR).view(-1, 1, 1)) & 1
    mask = bits.flatten(1, 2).bool()
    assert not mask[:, channels:].any()
    return mask[:, :channels]


def one_by_one(instructions: Sequence[Instruction], given: Values) -> Values:
    """All values, each kernel called by itself."""
    values = dict(given)
    for each in instructions:
        found = each.kernel(*(None if i is None else values[i] for i in each.inputs))
        values |= {i: value for i, value in zip(each.outputs, found, strict=True) if i is not None}
    return values


def ballast() -> tuple[Instruction, Tensor]:
    """Enough work for several threads."""
    part = Part(Weights(torch.zeros(NR, NR, 3, 3)), (1, 1), (1, 1), (1, 1))
    kernel = Convolution([part], None, None, None, IDENTITY, None, Algorithm.INDIRECT_GEMM)
    return Instruction(kernel, (_BALLAST, None, None, None), (_BALLAST + 1, None, None)), torch.zeros(1, NR, 64, 64)


def together(instructions: list[Instruction], given: Values, outputs: Sequence[int], like: Values) -> list[Tensor]:
    """Outputs of an executable, masks as bools; the same on any number of threads."""
    more, zeros = ballast()
    inputs = [(i, each.shape[1] if each.dtype == torch.bool else None) for i, each in given.items()]
    executable = Executable([*instructions, more], [*inputs, (_BALLAST, None)], tuple(outputs))
    lying = [words(each) if each.dtype == torch.bool else each for each in given.values()]
    found: list[Tensor] | None = None
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            raw = executable(None, *lying, zeros)
            made = [
                bools(each, like[i].shape[1]) if isinstance(i, int) and like[i].dtype == torch.bool else each
                for i, each in zip(outputs, raw, strict=True)
            ]
            for each in made:
                check_dense(each)
            found = found or made
            assert all(same(a, b) for a, b in zip(found, made, strict=True)), f"{threads} threads"
    finally:
        torch.set_num_threads(before)
    assert found is not None
    return found


def same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.nan_to_num(nan=1e30), b.nan_to_num(nan=1e30)) if a.is_floating_point() else torch.equal(a, b)


def check_dense(y: Tensor) -> None:
    """Checks that a map that leaves has no gaps."""
    assert y.ndim != 4 or not y.is_floating_point() or y.is_contiguous(memory_format=torch.channels_last)


def both(
    instructions: list[Instruction], given: Values, outputs: Sequence[int], rtol: float = 0, atol: float = 0
) -> list[Tensor]:
    """Outputs of an executable, which have to be those of the kernels one by one."""
    expected = one_by_one(instructions, given)
    found = together(instructions, given, outputs, expected)
    for i, each in zip(outputs, found, strict=True):
        assert each.shape == expected[i].shape
        check_close(each, expected[i], rtol, atol, f"value {i}")
    return found


def check_close(found: Tensor, expected: Tensor, rtol: float, atol: float, what: str) -> None:
    torch.testing.assert_close(
        found, expected, rtol=rtol, atol=atol, equal_nan=True, msg=lambda told: f"{what}: {told}"
    )


def alone(
    kernel: Kernel, inputs: Sequence[Tensor | None], wanted: Sequence[int], rtol: float = 0, atol: float = 0
) -> list[Tensor]:
    """What a kernel gives of an executable that has no other, compared."""
    given = {i: each for i, each in enumerate(inputs) if each is not None}
    numbers = tuple(i if i in given else None for i in range(len(inputs)))
    first = len(inputs)
    results = tuple(first + i if i in wanted or (i == 0 and kernel.always) else None for i in range(kernel.results))
    instruction = Instruction(kernel, numbers, results)
    return both([instruction], given, [first + i for i in wanted], rtol, atol)


def map_of(images: int, channels: int, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    return torch.randn(images, channels, height, width)


def mask_of(images: int, channels: int, height: int = HEIGHT, width: int = WIDTH, density: float = 0.2) -> Tensor:
    return torch.rand(images, channels, height, width) < density
