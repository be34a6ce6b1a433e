"""Chains of steps as the C++ side runs them: each step against the operation it stands for."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from gaia_fast import ops
from gaia_fast.backends import kernels
from gaia_fast.ops.convolution import Part, Weights, convolution, packing
from gaia_fast.ops.convolution.steps import STATISTICS, Ending, address, convolution_steps, open_step, pointwise_step
from gaia_fast.ops.open_everywhere import open_everywhere

from cases import INTERPRETED, TARGETS, Target

if INTERPRETED:
    pytest.skip("chains have no Triton kernel", allow_module_level=True)

LEVELS = [each for each in TARGETS if each.backend == "cpu"]
IMAGES, CHANNELS, SIDE = 3, 32, 64  # enough work for several threads


@pytest.fixture(params=LEVELS, ids=str)
def level(request: pytest.FixtureRequest) -> Iterator[Target]:
    with request.param.active() as each:
        yield each


def random(*size: int) -> Tensor:
    return torch.randn(size)


def empty_map() -> Tensor:
    return torch.empty(IMAGES, CHANNELS, SIDE, SIDE).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_stages_wait_for_each_other_and_sums_go_where_they_are_wanted(level: Target, threads: int) -> None:
    torch.manual_seed(0)
    x = random(IMAGES, CHANNELS, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
    weights, factor, shift = Weights(random(CHANNELS, CHANNELS, 3, 3) / 17), random(CHANNELS), random(CHANNELS)
    part = Part(weights, (1, 1), (1, 1), (1, 1))
    first, second, third = empty_map(), empty_map(), empty_map()
    packed, answers = torch.empty(IMAGES, 3 * CHANNELS), torch.empty(IMAGES, 2)
    # The maps are given at each run: places 0 to 4.
    row, out = 3 * CHANNELS, (SIDE, SIDE)
    steps = convolution_steps(
        0,
        [part],
        None,
        address(x),
        x.shape,
        out,
        Ending(y=(0, 0), sums=(3, 0), sums_step=row, relu=True, statistic="sum"),
    )
    steps += [
        pointwise_step(
            1,
            address(factor),
            (0, 0),
            x.shape,
            Ending(address(shift), y=(1, 0), sums=(3, CHANNELS), sums_step=row, relu=True, statistic="positive"),
        ),
        open_step(1, (0, 0), x.shape, (4, 0), 2, 1, 3),
    ]
    steps += convolution_steps(
        2,
        [part],
        None,
        (1, 0),
        x.shape,
        out,
        Ending(gate=(0, 0), y=(2, 0), sums=(3, 2 * CHANNELS), sums_step=row, statistic="abs_sum"),
    )
    steps.append(open_step(2, (1, 0), x.shape, (4, 1), 2, 0, 1, 5, 9))
    chain = kernels.Chain(steps)
    for _ in range(3):
        for each in (first, second, third, packed, answers):
            each.fill_(float("nan"))
        given = [each.data_ptr() for each in (first, second, third, packed, answers)]
        assert chain.run(given, threads)
        y, sums = convolution(x, weights, padding=(1, 1), relu=True, statistic="sum")
        assert torch.equal(first, y)
        assert torch.equal(packed[:, :CHANNELS], sums)
        z, counts = ops.relu_forward_count(y, factor, shift, backend="torch")
        assert torch.equal(second, z)
        assert torch.equal(packed[:, CHANNELS : 2 * CHANNELS], counts)
        g, magnitudes = convolution(z, weights, gate=y, padding=(1, 1), statistic="abs_sum")
        assert torch.equal(third, g)
        assert torch.equal(packed[:, 2 * CHANNELS :], magnitudes)
        assert torch.equal(answers[:, 0], open_everywhere(y, 1, 3))
        assert torch.equal(answers[:, 1], open_everywhere(z, 0, 1, 5, 9))


def test_a_stage_waits_for_the_thread_that_began_later(level: Target) -> None:
    """Two long items, the second of them begun when the other thread has woken up; who is done first asks for both."""
    x = torch.ones(1, 512, 8, 8).contiguous(memory_format=torch.channels_last)
    part = Part(Weights(torch.ones(512, 512, 3, 3)), (1, 1), (1, 1), (1, 1))
    y, answer = torch.empty_like(x), torch.empty(1)
    steps = convolution_steps(0, [part], 1, address(x), x.shape, (8, 8), Ending(y=address(y)))
    chain = kernels.Chain([*steps, open_step(1, address(y), x.shape, address(answer), 1, 0, 1)])
    for _ in range(5):
        y.fill_(float("nan"))
        assert chain.run([], 2)
        assert answer.item() == 1


def test_a_long_chain_of_small_steps(level: Target, set_threads: Callable[[int], None]) -> None:
    """Threads that are late find stages that are over; nothing is done twice, or left out."""
    torch.manual_seed(0)
    ones = torch.ones(CHANNELS)
    x = torch.zeros(1, CHANNELS, 2, 2).contiguous(memory_format=torch.channels_last)
    maps = [torch.empty_like(x) for _ in range(400)]
    steps = []
    for i, y in enumerate(maps):
        source = maps[i - 1] if i else x
        steps.append(
            pointwise_step(i, address(None), address(source), x.shape, Ending(address(ones), y=address(y), relu=True))
        )
    # Enough work for several threads.
    part = Part(Weights(torch.zeros(CHANNELS, CHANNELS, 3, 3)), (1, 1), (1, 1), (1, 1))
    large = torch.zeros(1, CHANNELS, 64, 64).contiguous(memory_format=torch.channels_last)
    behind = Ending(y=address(last := torch.empty_like(large)))
    steps += convolution_steps(400, [part], 1, address(large), large.shape, (64, 64), behind)
    chain = kernels.Chain(steps)
    for threads in (1, 2, 4):
        assert chain.run([], threads)
        assert all(bool((y == i + 1).all()) for i, y in enumerate(maps))
        assert not last.any()


def test_steps_of_another_build_are_refused() -> None:
    with pytest.raises(ValueError, match="another build"):
        kernels.Chain([(0, [(-1, 0)], [1], 1, False, 0)])


@pytest.mark.parametrize("stages", [(1,), (-1,), (0, 2), (0, 1, 0)])
def test_stages_that_are_not_numbered_one_by_one_are_refused(stages: tuple[int, ...]) -> None:
    shape = torch.Size((1, CHANNELS, 2, 2))
    with pytest.raises(ValueError, match="a step of stage"):
        kernels.Chain([pointwise_step(stage, (0, 0), (0, 0), shape, Ending(y=(0, 0))) for stage in stages])


@pytest.mark.parametrize(("at", "value", "message"), [(3, 3, "unknown form 3"), (5, 7, "unknown statistic 7")])
def test_unknown_forms_and_statistics_are_refused(at: int, value: int, message: str) -> None:
    step = list(pointwise_step(0, (0, 0), (0, 0), torch.Size((1, CHANNELS, 2, 2)), Ending(y=(0, 0))))
    step[at] = value
    with pytest.raises(ValueError, match=message):
        kernels.Chain([tuple(step)])


def test_packed_weights_of_another_form_or_size_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1, CHANNELS, 8, 8).contiguous(memory_format=torch.channels_last)
    part = Part(Weights(torch.zeros(CHANNELS, CHANNELS, 3, 3)), (1, 1), (1, 1), (1, 1))
    packed = Weights.packed
    for form, other in ((1, 2), (2, 4), (4, 1)):
        monkeypatch.setattr(Weights, "packed", lambda self, _, other=other: packed(self, other))
        steps = convolution_steps(0, [part], form, address(x), x.shape, (8, 8), Ending(y=address(x)))
        with pytest.raises(ValueError, match=f"form {form} with {CHANNELS} inputs and {CHANNELS} outputs, and"):
            kernels.Chain(steps)


def test_packing_and_statistics_are_the_extensions() -> None:
    assert (packing.GROUP, packing.DEPTH) == (kernels.PACKED_GROUP, kernels.PACKED_DEPTH)
    assert kernels.STATISTICS == STATISTICS
    assert set(STATISTICS) == {"sum", "abs_sum", "positive"}
