"""`copy_and_check` in Triton."""

import torch
import triton.language as tl
from torch import Tensor

from gaia_fast.ops.copy_and_check import PART
from gaia_fast.ops.tiling import in_whole_vectors, strides_of
from gaia_fast.ops.triton_tiles import launch, unspecialised

# As integers: a copy is to keep every bit. Of each dtype, which, and the bits that are set in infinities and NaN alone.
_BITS = {
    torch.float32: (torch.int32, 0x7F800000),
    torch.float16: (torch.int16, 0x7C00),
    torch.bfloat16: (torch.int16, 0x7F80),
}


@unspecialised
def copy_and_check_kernel(
    x_ptr,
    out_ptr,
    finite_ptr,
    parts,
    numel,
    positions,
    width,
    x_n,
    x_k,
    x_h,
    x_w,
    EXPONENT: tl.constexpr,
    WHOLE: tl.constexpr,
    VECTOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    n = (program // parts).to(tl.int64)
    i = program % parts * BLOCK + tl.arange(0, BLOCK)
    inside = tl.max_constancy(i < numel, [VECTOR])
    if WHOLE:
        at = tl.multiple_of(n * x_n + i, [VECTOR])
    else:
        position = i % positions
        at = (i // positions).to(tl.int64) * x_k + (position // width).to(tl.int64) * x_h
        at = n * x_n + at + (position % width).to(tl.int64) * x_w
    bits = tl.load(x_ptr + at, mask=inside, other=0)
    tl.store(out_ptr + tl.multiple_of(n * numel + i, [VECTOR]), bits, mask=inside)
    bad = (bits & EXPONENT) == EXPONENT
    tl.store(finite_ptr + program, 1 - tl.max(bad.to(tl.int32), 0))


def copy_and_check_triton(x: Tensor, out: Tensor, finite: Tensor) -> None:
    """Writes a copy of the images, and which parts of them are finite; see `copy_and_check`."""
    integers, exponent = _BITS[x.dtype]
    whole = in_whole_vectors(x, out)
    launch(
        copy_and_check_kernel,
        (finite.numel(),),
        x.shape,
        x.view(integers),
        out.view(integers),
        finite,
        finite.shape[1],
        x.shape[1] * x.shape[2] * x.shape[3],
        x.shape[2] * x.shape[3],
        x.shape[3],
        *strides_of(x),
        EXPONENT=exponent,
        WHOLE=whole,
        VECTOR=16 // x.element_size() if whole else 1,
        BLOCK=PART // x.element_size(),
    )
