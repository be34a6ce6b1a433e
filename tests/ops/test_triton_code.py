"""Every Triton kernel compiled ahead of time, with the arguments its launches have: no spills, 128 bits at a time.

What may be narrow: the (K,) parameters and the moments, a few bytes beside the maps; maps whose rows do not begin at
multiples of 16 bytes, or at other strides than 1. The columns of `frobenius` and of partial sums begin anywhere.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from ops.machine_code import ARCHITECTURES, compiled, recorded

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

each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)
each_dtype = pytest.mark.parametrize("dtype", HALVES_AND_FLOAT, ids=lambda dtype: str(dtype)[6:])
# Maps of which rows, or channel vectors, are whole 128-bit vectors, and maps of which they are not.
WIDE = {
    "nchw": ((2, 64, 56, 56), NCHW),
    "nchw small": ((2, 64, 8, 8), NCHW),
    "channels_last": ((2, 64, 7, 7), CHANNELS_LAST),
}
NARROW = {
    "nchw 7x7": ((2, 64, 7, 7), NCHW),
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
READS = {"channel_moments": 1, "relu_backward_moments": 2, "relu_forward_count": 2}


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
    assert set(code.loads) == {128}, code.loads
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


@each_architecture
def test_add_partials(architecture: int, tmp_path: Path) -> None:
    module = import_module("gaia_fast.ops.triton_tiles")
    with recorded(module, "_add_partials_kernel") as launches:
        for channels in (1, 64):
            module.add_partials(torch.ones(5, 3, 2, channels), torch.empty(3, 2, channels))
    assert len(launches) == 2
    for launch in launches:
        assert compiled(launch, architecture, tmp_path).spills == 0


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
