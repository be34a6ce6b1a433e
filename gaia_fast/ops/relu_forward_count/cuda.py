"""`relu_forward_count` in CUDA (csrc/cuda/relu_forward_count.cu)."""

from torch import Tensor

from gaia_fast.ops.cuda_launch import launch, tiling_arguments, where
from gaia_fast.ops.maps import DTYPE_CODES
from gaia_fast.ops.partial_sums import partial_sums_for
from gaia_fast.ops.tiling import strides_of, tiling_for


def relu_forward_count_cuda(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, residual: Tensor | None, y: Tensor, nonzero: Tensor
) -> None:
    """Writes y and the counts `nonzero` (N, K); see `relu_forward_count`."""
    added = x if residual is None else residual
    tiling = tiling_for(x, added, y)
    sums = partial_sums_for(nonzero, tiling)
    launch(
        "cuda_relu_forward_count",
        x.data_ptr(),
        0 if residual is None else residual.data_ptr(),
        0 if scale is None else scale.data_ptr(),
        0 if shift is None else shift.data_ptr(),
        y.data_ptr(),
        DTYPE_CODES[x.dtype],
        x.shape,
        strides_of(x),
        strides_of(added),
        strides_of(y),
        nonzero.data_ptr(),
        nonzero.stride(0),
        tiling_arguments(tiling, sums),
        *where(x),
    )
