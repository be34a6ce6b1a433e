"""The CUDA kernels as nvcc compiled them into the extension: no spills, 128 bits at a time, no integer divisions.

What may be narrow: the (K,) parameters and the moments, a few bytes beside the maps; maps whose rows do not begin at
multiples of 16 bytes, or at other strides than 1; the columns of `frobenius`, which begin anywhere; and the sums
that blocks share. `count_and_score` has a way for each of these in one kernel, so that its wide loads are counted, not
its narrow ones.
"""

import re
from pathlib import Path

import pytest
from ops.machine_code import ARCHITECTURES, Code, disassembled

from gaia_fast import backends

if backends.kernels is None or not backends.kernels.cuda_build().startswith("sm_"):
    pytest.skip("this extension holds no machine code of CUDA kernels", allow_module_level=True)

SHARES = 16  # loads of other blocks' sums: eight at a time, and of what is left
FULL = {"Float32": 4, "Float16": 8, "BFloat16": 8}
# The operand, how many (K,) parameters it reads, and whether it writes a map.
OPERANDS = {"Plain": (0, False), "Masked": (1, True), "Rectified": (2, True)}


@pytest.fixture(scope="module")
def code() -> dict[tuple[str, int], Code]:
    assert backends.kernels is not None
    assert backends.kernels.__file__ is not None
    return disassembled(Path(backends.kernels.__file__))


def test_every_architecture_is_there(code: dict[tuple[str, int], Code]) -> None:
    built = {int(each) for each in re.findall(r"sm_(\d+)", backends.kernels.cuda_build())}
    assert {architecture for _, architecture in code} == built
    if not set(ARCHITECTURES) <= built:
        pytest.skip(f"built for {sorted(built)} alone, by GAIA_FAST_CUDA_ARCHITECTURES or an older compiler")
    names = {name for name, _ in code}
    for word in (*OPERANDS, "frobenius_kernel", "count_and_score_kernel", "copy_kernel", "check_kernel"):
        assert any(word in name for name in names), word


def test_no_kernel_spills(code: dict[tuple[str, int], Code]) -> None:
    assert {key: each.spills for key, each in code.items() if each.spills} == {}


def test_no_reduction_divides(code: dict[tuple[str, int], Code]) -> None:
    reductions = {key: each for key, each in code.items() if "reduce_" in key[0]}
    assert len({name for name, _ in reductions}) == 3 * 3 * 9  # operands, dtypes, and ways through a map
    assert {key: each.reciprocals for key, each in reductions.items() if each.reciprocals} == {}


@pytest.mark.parametrize("dtype", FULL)
@pytest.mark.parametrize("operand", OPERANDS)
def test_contiguous_maps(code: dict[tuple[str, int], Code], operand: str, dtype: str) -> None:
    parameters, writes = OPERANDS[operand]
    vector = FULL[dtype]
    seen = 0
    for (name, architecture), each in code.items():
        if operand not in name or not re.search(rf"\d{dtype}E", name):
            continue
        if re.search(rf"reduce_rows.*Layout\w*E0E?Li{vector}ELi(\d)ELi(\d)E", name):
            rows = int(re.search(rf"Li{vector}ELi(\d)E", name)[1])  # type: ignore[index]
            shares = SHARES if rows == 1 else 0
        elif re.search(rf"reduce_channels.*Li{vector}E", name):
            rows, shares = vector, SHARES
        elif re.search(rf"reduce_pieces.*Li{vector}E", name):
            rows, shares = 4 * vector, 0  # a value for each element of the four vectors
        else:
            continue
        seen += 1
        where = f"{name} on sm_{architecture}: {each}"
        narrow = sum(count for width, count in each.loads.items() if width != 128)
        assert narrow <= parameters * rows + shares, where
        assert each.loads[128] >= 4, where
        assert each.stores[128] >= 4 * writes, where
    assert seen == 4 * len({architecture for _, architecture in code})


def test_count_and_score(code: dict[tuple[str, int], Code]) -> None:
    """Four vectors of each thread are in flight, of maps whose channels follow each other and of channels-last ones."""
    found = {key: each for key, each in code.items() if "count_and_score_kernel" in key[0]}
    assert len(found) == 8 * len({architecture for _, architecture in code})  # item sizes, norms, sizes of the table
    for (name, architecture), each in found.items():
        assert each.loads[128] == 8, f"{name} on sm_{architecture}: {each}"


@pytest.mark.parametrize("dtype", FULL)
def test_images_without_gaps(code: dict[tuple[str, int], Code], dtype: str) -> None:
    found = {name: each for name, each in code.items() if re.search(rf"copy_kernel.*\d{dtype}ELb1E", name[0])}
    assert len(found) == len({architecture for _, architecture in code})
    for (name, architecture), each in found.items():
        where = f"{name} on sm_{architecture}: {each}"
        assert set(each.loads) == {128}, where
        assert each.loads[128] >= 2, where
        assert each.stores[128] >= 2, where
