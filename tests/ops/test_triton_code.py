"""Every Triton kernel compiled ahead of time, with the arguments its launches have: no spills, 128 bits at a time.

What may be narrow: the (K,) parameters and the moments, a few bytes beside the maps; maps whose rows do not begin at
multiples of 16 bytes, or at other strides than 1; the columns of `frobenius`, which begin anywhere; and the sums
that programs share.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from ops.machine_code import ARCHITECTURES, compiled, recorded

from gaia_fast.ops.count_and_score import scratch_size

from cases import (
    CHANNELS_LAST,
    HALVES_AND_FLOAT,
    INSTRUMENTED,
    INTERPRETED,
    LAYOUT,
    NCHW,
    Layout,
    activation,
    gradient,
    norm_scale,
)

pytest.importorskip("triton", reason="the triton package is not installed")
if INTERPRETED or INSTRUMENTED:
    pytest.skip("the process with the kernels that users have compiles Triton's", allow_module_level=True)

# What a thread of `count_and_score` reads of a window at a time, element by element.
WINDOW_LOADS = 16

each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
each_dtype = pytest.mark.parametrize("dtype", HALVES_AND_FLOAT, ids=lambda dtype: str(dtype)[6:])
# Maps of which rows, or channel vectors, are whole 128-bit vectors, and maps of which they are not. Of 7x7 positions
# several channels are.
WIDE = {
    "nchw 7x7": ((2, 64, 7, 7), NCHW),
    "channels_last, shared": ((2, 64, 56, 56), CHANNELS_LAST),
    "nchw": ((2, 64, 56, 56), NCHW),
    "nchw small": ((2, 64, 8, 8), NCHW),
    "channels_last": ((2, 64, 7, 7), CHANNELS_LAST),
}
NARROW = {
    "nchw 7x7, an odd number": ((2, 61, 7, 7), NCHW),
    "crop": ((2, 64, 8, 8), LAYOUT["crop"]),
    "one element": ((1, 1, 1, 1), NCHW),
    "two channels": ((1, 2, 56, 56), CHANNELS_LAST),
    "few positions": ((2, 512, 4, 4), CHANNELS_LAST),
}
each_wide = pytest.mark.parametrize(("shape", "layout"), WIDE.values(), ids=WIDE)
each_narrow = pytest.mark.parametrize(("shape", "layout"), NARROW.values(), ids=NARROW)


def launches_of(op: str, shape: tuple[int, ...], layout: Layout, dtype: torch.dtype, parameters: bool) -> list[Any]:
    """Returns the launches of the op's kernel on maps of this kind."""
    module = import_module(f"gaia_fast.ops.{op}.triton")
    n, k = shape[:2]
    g, y = gradient(shape, dtype, layout=layout).tensor, activation(shape, dtype, layout=layout).tensor
    scale = norm_scale(k, dtype) if parameters else None
    with recorded(module, f"{op}_kernel") as launches:
        if op == "channel_moments":
            module.channel_moments_triton(g, torch.empty(3, n, k))
        elif op == "relu_backward_moments":
            module.relu_backward_moments_triton(g, y, scale, torch.empty_like(y), torch.empty(3, n, k))
        else:
            module.relu_forward_count_triton(g, scale, scale, y, torch.empty_like(g), torch.empty(n, k))
    return launches


OPS = ("channel_moments", "relu_backward_moments", "relu_forward_count")
MOMENTS = {"channel_moments": 3, "relu_backward_moments": 3, "relu_forward_count": 1}
LOADS, SHARES = 4, 8  # of a thread at a time: of all maps together, and of other programs' sums


@each_architecture
@each_dtype
@each_wide
@pytest.mark.parametrize("op", OPS)
def test_contiguous_maps(
    op: str, shape: tuple[int, ...], layout: Layout, dtype: torch.dtype, architecture: int, tmp_path: Path
) -> None:
    (launch,) = launches_of(op, shape, layout, dtype, parameters=False)
    code = compiled(launch, architecture, tmp_path)
    assert code.spills == 0
    shares = code.loads.pop(32, 0)
    assert shares == (SHARES * MOMENTS[op] if launch.options["SHARED"] else 0)
    assert set(code.loads) == {128}, code.loads
    assert code.loads[128] == LOADS, "loads that a thread has in flight"
    if op != "channel_moments":
        assert code.stores[128] >= 1, code.stores


@each_dtype
@each_wide
@pytest.mark.parametrize("op", OPS[1:])
def test_parameters_leave_the_maps_wide(
    op: str, shape: tuple[int, ...], layout: Layout, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Only the parameters are read in another width, and they are read before the loop."""
    plain, full = (compiled(launches_of(op, shape, layout, dtype, each)[0], 90, tmp_path) for each in (False, True))
    assert full.spills == 0
    assert full.loads[128] >= plain.loads[128]


@each_architecture
@each_narrow
@pytest.mark.parametrize("op", OPS)
def test_other_maps_compile_without_spills(
    op: str, shape: tuple[int, ...], layout: Layout, architecture: int, tmp_path: Path
) -> None:
    for dtype in HALVES_AND_FLOAT:
        (launch,) = launches_of(op, shape, layout, dtype, parameters=True)
        assert compiled(launch, architecture, tmp_path).spills == 0


@each_architecture
@pytest.mark.parametrize("p", [1.0, 2.0, 3.5, float("inf")])
def test_frobenius(p: float, architecture: int, tmp_path: Path) -> None:
    module = import_module("gaia_fast.ops.frobenius.triton")
    with recorded(module, "frobenius_kernel") as launches:
        for component in (None, torch.ones(2)):
            module.frobenius_triton(torch.ones(2, 80), [0, 30], [30, 50], [0.5, 1.0], component, p, torch.empty(2))
    assert len(launches) == 2, "one launch a call, for all layers"
    for launch in launches:
        assert compiled(launch, architecture, tmp_path).spills == 0


def launch_of_all_maps(
    maps: Mapping[str, tuple[tuple[int, ...], Layout]],
    dtype: torch.dtype,
    p: float = 2.0,
    windows: tuple[int, ...] = (),
) -> Any:
    """Returns the launch of `count_and_score` on maps of one network, as these kinds are, and two sums."""
    module = import_module("gaia_fast.ops.count_and_score.triton")
    given = [activation((2, *shape[1:]), dtype, layout=layout).tensor for shape, layout in maps.values()]
    layers = [*range(len(given)), len(given) + 1, len(given), 0]
    columns = sum(y.shape[1] for y in given) + 3 + 5 + given[0].shape[1]
    with recorded(module, "count_and_score_kernel") as launches:
        module.count_and_score_triton(
            given,
            [torch.ones(2, 5), torch.ones(3).expand(2, 3)],
            layers,
            [0.5] * len(layers),
            [float("inf"), 6.0, *[float("inf")] * (len(given) - 2)],
            windows,
            p,
            torch.zeros(
                2, scratch_size([(y.shape[1], y.shape[2], y.shape[3]) for y in given], windows), dtype=torch.int32
            ),
            torch.empty(2, columns),
            torch.empty(2, len(windows) // 3),
            torch.empty(2),
        )
    (launch,) = launches  # for all maps
    return launch


@each_architecture
@each_dtype
def test_count_and_score(dtype: torch.dtype, architecture: int, tmp_path: Path) -> None:
    """Of half precision only the windows, which no map has here, would be read element by element."""
    code = compiled(launch_of_all_maps(WIDE, dtype), architecture, tmp_path)
    assert code.spills == 0
    assert code.loads[128] >= len(WIDE), code.loads
    assert code.loads[16] <= (WINDOW_LOADS if dtype != torch.float32 else 0), code.loads


@each_architecture
@pytest.mark.parametrize("p", [1.0, 2.0, 3.5, float("inf")])
def test_count_and_score_of_other_maps(p: float, architecture: int, tmp_path: Path) -> None:
    launch = launch_of_all_maps({**WIDE, **NARROW}, torch.float16, p, (0, 1, 3, 5, 0, 1))
    assert compiled(launch, architecture, tmp_path).spills == 0


@each_dtype
@pytest.mark.parametrize("op", OPS)
def test_channels_of_odd_length_leave_registers_for_other_programs(op: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """By an address for each element, 7x7 positions took up to 239 registers of a thread: a program in eight."""
    (launch,) = launches_of(op, (2, 64, 7, 7), NCHW, dtype, parameters=True)
    assert launch.options["LAYOUT"] == "flat"
    assert compiled(launch, 90, tmp_path).registers <= 96


@each_architecture
@each_dtype
@pytest.mark.parametrize("layout", [NCHW, CHANNELS_LAST, LAYOUT["crop"]], ids=str)
def test_copy_and_check(layout: Layout, dtype: torch.dtype, architecture: int, tmp_path: Path) -> None:
    module = import_module("gaia_fast.ops.copy_and_check.triton")
    x = gradient((2, 3, 32, 32), dtype, layout=layout).tensor
    with recorded(module, "copy_and_check_kernel") as launches:
        module.copy_and_check_triton(x, torch.empty(x.shape, dtype=dtype), torch.empty(2, 3, dtype=torch.uint8))
    (launch,) = launches
    code = compiled(launch, architecture, tmp_path)
    assert code.spills == 0
    if layout is NCHW:
        assert set(code.loads) == {128}, code.loads
        assert code.stores[128] >= 1, code.stores


@each_architecture
@pytest.mark.parametrize("everything", [False, True])
def test_check_results(everything: bool, architecture: int, tmp_path: Path) -> None:
    ops = import_module("gaia_fast.ops.check_results")
    module = import_module("gaia_fast.ops.check_results.triton")
    memory, counts = [torch.zeros(999, dtype=torch.uint8)], torch.zeros(3, dtype=torch.int64)
    others: list[Any] = [None, [], None, [], None, None, None, None]
    if everything:
        finite, pieces = torch.ones((2, 3), dtype=torch.uint8), ops.pieces_of(memory)
        others = [
            torch.ones(2, 3),
            [torch.ones(2)],
            finite,
            memory,
            memory[0],
            pieces,
            counts,
            torch.zeros_like(counts),
        ]
    for dtype in HALVES_AND_FLOAT:
        with recorded(module, "check_results_kernel") as launches:
            answers = torch.empty(2, dtype=torch.bool)
            module.check_results_triton(torch.ones((2, 80), dtype=dtype), [torch.ones(2)], *others, answers)
        assert len(launches) == 1
        assert compiled(launches[0], architecture, tmp_path).spills == 0
