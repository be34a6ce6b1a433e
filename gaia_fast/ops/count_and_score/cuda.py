"""`count_and_score` in CUDA (csrc/cuda/count_and_score.cu): one launch for all maps."""

from collections.abc import Sequence

from torch import Tensor

from gaia_fast.ops.count_and_score import active_limits
from gaia_fast.ops.cuda_launch import launch, where
from gaia_fast.ops.maps import DTYPE_CODES
from gaia_fast.ops.tiling import strides_of


def count_and_score_cuda(
    maps: Sequence[Tensor],
    sums: Sequence[Tensor],
    layers: Sequence[int],
    inverse_area: Sequence[float],
    upper: Sequence[float],
    windows: Sequence[int],
    p: float,
    scratch: Tensor,
    packed: Tensor,
    live: Tensor,
    score: Tensor,
) -> None:
    """Writes the counts, whether the windows are live, and the norms; see `count_and_score`."""
    dtype = maps[0].dtype if maps else score.dtype
    limits = active_limits(tuple(upper), dtype)
    launch(
        "cuda_count_and_score",
        [each.data_ptr() for each in maps],
        [(*each.shape[1:], *strides_of(each), limit) for each, limit in zip(maps, limits, strict=True)],
        [each.data_ptr() for each in sums],
        [(each.shape[1], *each.stride()) for each in sums],
        layers,
        inverse_area,
        windows,
        DTYPE_CODES[dtype],
        score.shape[0],
        p,
        scratch.data_ptr(),
        scratch.shape[1],
        packed.data_ptr(),
        live.data_ptr(),
        score.data_ptr(),
        *where(score),
    )
