"""What a caller sees of a kernel that cannot be launched."""

import pytest
import torch

from gaia_fast import backends
from gaia_fast.errors import BackendError

from cases import INTERPRETED


class Broken:
    __name__ = "broken_kernel"

    def __getitem__(self, grid: tuple[int, ...]) -> object:
        def run(*arguments: object) -> None:
            raise RuntimeError("an illegal memory access was encountered")

        return run


def test_triton() -> None:
    triton_tiles = pytest.importorskip("gaia_fast.ops.triton_tiles", reason="the triton package is not installed")
    with pytest.raises(BackendError, match=r"kernel broken_kernel on a map of shape \(2, 3\): an illegal memory"):
        triton_tiles.launch(Broken(), (1,), (2, 3), torch.zeros(1))


def test_triton_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = pytest.importorskip("triton.errors", reason="the triton package is not installed")
    from gaia_fast.ops import triton_tiles

    def run(*arguments: object) -> None:
        raise errors.TritonError("out of resource: shared memory")

    monkeypatch.setattr(Broken, "__getitem__", lambda self, grid: run)
    with pytest.raises(BackendError, match="broken_kernel.*out of resource"):
        triton_tiles.launch(Broken(), (1,), (2, 3), torch.zeros(1))


def test_cuda_without_a_device() -> None:
    """A build for GPUs imports, says why nothing runs, and returns an error from a launch."""
    kernels = backends.kernels
    if INTERPRETED or kernels is None or not kernels.cuda_build().startswith("sm_"):
        pytest.skip("this extension holds no CUDA kernels for a GPU")
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    assert "CUDA" in kernels.cuda_obstacle(0)
    from gaia_fast.ops.cuda_launch import launch

    tiling = (0, 1, 1, 4096, 1, 0, 0, 0)
    with pytest.raises(BackendError, match=r"^CUDA kernel channel_moments: .* on a map of shape \(1, 2, 3, 4\)$"):
        launch("cuda_channel_moments", 0, 0, (1, 2, 3, 4), (24, 12, 4, 1), 0, 2, 2, tiling, 0, 0)
    with pytest.raises(BackendError, match=r"^CUDA kernel frobenius: .* on a map of shape"):
        launch("cuda_frobenius", 0, 1, 3, [0], [3], [1.0], 0, 2.0, 0, 0, 0)
    with pytest.raises(BackendError, match=r"^CUDA kernel count_and_score: .* on 0 maps of 1 images$"):
        launch("cuda_count_and_score", [], [], [], [], [], [], [], 0, 1, 2.0, 0, 1, 0, 0, 0, 0, 0)
