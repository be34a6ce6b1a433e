import pytest
import torch

from gaia_fast.compiler.native.executable import Executable, Instruction, in_waves
from gaia_fast.compiler.native.kernels import IDENTITY, Check, Convolution, Mask, Pool, Shape
from gaia_fast.compiler.native.memory_plan import place_in_arena
from gaia_fast.compiler.native.result_kernels import Columns
from gaia_fast.ops.convolution import Part, Weights
from gaia_fast.ops.convolution.steps import RELU, Pointer


def convolution() -> Convolution:
    return Convolution(
        [Part(Weights(torch.zeros(16, 16, 1, 1)), (1, 1), (0, 0), (1, 1))], None, None, None, IDENTITY, None
    )


def convolved(x: int, y: int, residual: int | None = None, skip: int | None = None) -> Instruction:
    return Instruction(convolution(), (x, residual, None, skip), (y, None, None))


def test_what_does_not_need_each_other_shares_a_wave() -> None:
    found = in_waves(
        [
            convolved(0, 1),
            convolved(1, 2),
            convolved(0, 3),
            convolved(2, 4, residual=3),
            Instruction(Check(0, 1), (1,), (5,)),
        ]
    )
    assert [(each.outputs[0], each.wave) for each in found] == [(1, 0), (3, 0), (2, 1), (5, 1), (4, 2)]


def test_memory_is_shared_by_what_is_not_needed_at_the_same_time() -> None:
    executable = in_waves([convolved(i, i + 1, skip=0 if i == 4 else None) for i in range(6)])
    shapes = {i: Shape(torch.Size((2, 16, 4, 4))) for i in range(7)}
    places = {0: Pointer(1, 0, 16), 6: Pointer(2, 0, 16)}
    arena = place_in_arena(executable, shapes, places, {})
    floats = shapes[1].floats
    assert floats * 2 <= arena < floats * 3
    lying = {value: begin for value, (place, begin, _) in places.items() if place == 0}
    assert set(lying) == {1, 2, 3, 4, 5}
    for value in range(1, 5):  # an input and its output
        assert abs(lying[value] - lying[value + 1]) >= floats
    assert lying[1] == lying[3]


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (33, 31), (70, 65)])
@pytest.mark.parametrize("channels", [2, 3, 5, 15])
def test_images_are_read_as_they_lie(channels: int, size: tuple[int, int]) -> None:
    """Channel by channel, channels last, or as a part of others; by a kernel that reads whole panels, and one that
    does not."""
    weights = Weights(torch.randn(8, channels, 1, 1))
    read = Convolution([Part(weights, (1, 1), (0, 0), (1, 1))], None, None, None, IDENTITY, None)
    averaged = Instruction(Pool("mean", None), (0, None), (1, None))
    single = Executable([Instruction(read, (0, None, None, None), (2, None, None))], [(0, None)], (2,))
    both = Executable(
        [averaged, *single.instructions, Instruction(read, (3, None, None, None), (4, None, None))],
        [(0, None), (3, None)],
        (1, 2, 4),
    )
    several, before = torch.randn(3, channels + 1, *size), torch.get_num_threads()
    plain = several[:, 1:].contiguous()
    truth = torch.einsum("nchw,kc->nkhw", plain.double(), weights.weight[:, :, 0, 0].double())
    mean = plain.double().mean((2, 3), keepdim=True)
    kept: list[torch.Tensor] = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            for x in (plain, plain.contiguous(memory_format=torch.channels_last), several[:, 1:]):
                found = [*single(None, x), *both(None, x, plain)]
                kept = kept or found
                assert all(torch.equal(one, other) for one, other in zip(kept, found, strict=True))
    finally:
        torch.set_num_threads(before)
    for each, right in zip(kept, (truth, mean, truth, truth), strict=True):
        assert float((each - right).abs().max()) <= 1e-5


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("images", [2, 3, 8])
def test_images_one_by_one_give_what_they_do_together(images: int, threads: int) -> None:
    torch.manual_seed(0)
    stem = Convolution([Part(Weights(torch.randn(32, 3, 3, 3)), (2, 2), (1, 1), (1, 1))], None, None, None, RELU, "sum")
    deep = Convolution(
        [Part(Weights(torch.randn(64, 32, 1, 1)), (1, 1), (0, 0), (1, 1))], None, None, None, RELU, "sum"
    )
    executable = Executable(
        [
            Instruction(stem, (0, None, None, None), (1, 2, None)),
            Instruction(deep, (1, None, None, None), (3, 4, None)),
            Instruction(Check(0, 1), (3,), (5,)),
            Instruction(Columns([None, None, torch.ones(7), None]), (2, 4, 2), (6,)),
            Instruction(Columns([None]), (5,), (7,)),
        ],
        [(0, None)],
        (3, 6, 7),
    )
    x, before = torch.randn(images, 3, 30, 31), torch.get_num_threads()
    told: list[int] = []
    try:
        torch.set_num_threads(threads)
        together = executable(None, x)
        executable.one_by_one = {images}
        for given in (x, x.contiguous(memory_format=torch.channels_last)):
            found = executable(lambda: told.append(1), given)
            assert all(torch.equal(a, b) for a, b in zip(together, found, strict=True))
            executable(None, x[:1])
    finally:
        torch.set_num_threads(before)
    assert len(told) == 2
    with pytest.raises(KeyError):
        executable(_refuse, x)


def _refuse() -> None:
    raise KeyError


def test_masks_that_leave_keep_images_together() -> None:
    """A panel's words lie side by side for all images."""
    mask = Mask(None)
    executable = Executable([Instruction(mask, (0, 1), (2, 3))], [(0, 16), (1, 16)], (2, 3))
    words = torch.randint(0, 1 << 15, (2, 1, 4, 4), dtype=torch.int16)
    together = executable(None, words, words)
    executable.one_by_one = {2}
    assert all(torch.equal(a, b) for a, b in zip(together, executable(None, words, words), strict=True))
