"""`copy_and_check` in CUDA (csrc/cuda/result_checks.cu)."""

from torch import Tensor

from gaia_fast.ops.copy_and_check import PART
from gaia_fast.ops.cuda_launch import launch, where
from gaia_fast.ops.maps import DTYPE_CODES
from gaia_fast.ops.tiling import in_whole_vectors, strides_of


def copy_and_check_cuda(x: Tensor, out: Tensor, finite: Tensor) -> None:
    """Writes a copy of the images, and which parts of them are finite; see `copy_and_check`."""
    launch(
        "cuda_copy_and_check",
        x.data_ptr(),
        out.data_ptr(),
        finite.data_ptr(),
        DTYPE_CODES[x.dtype],
        x.shape,
        strides_of(x),
        PART // x.element_size(),
        finite.shape[1],
        in_whole_vectors(x, out),
        *where(x),
    )
