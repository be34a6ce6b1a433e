"""The end of a forward GAIA-Z program, in one launch: counts of all layers, what they rest on, and the score."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate
from math import inf

import torch
from torch import Tensor

from gaia_fast.backends import kernels
from gaia_fast.errors import BackendError
from gaia_fast.ops import maps as check
from gaia_fast.ops import transforms
from gaia_fast.ops.library import define_op, implementation, is_traced

# Of a build without CUDA: what Triton's kernel, which takes an address for each, is sure to be compiled for.
_LIMITS = {"maps": 200, "sums": 200, "layers": 256, "windows": 200}


def count_and_score(
    maps: Sequence[Tensor],
    sums: Sequence[Tensor],
    layers: Sequence[int],
    inverse_area: Sequence[float],
    upper: Sequence[float] = (),
    windows: Sequence[int] = (),
    p: float = 2.0,
    scratch: Tensor | None = None,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The active units of each layer, whether windows of maps hold some, and the score (Eq. 10 and 12), in one pass.

        count[m, n, k]           = |{(i, j) : 0 < maps[m][n, k, i, j] < upper[m]}|
        packed[n, offset_l + k]  = count[layers[l], n, k], or sums[layers[l] - M][n, k] where layers[l] >= M
        live[n, j]               = 1 if some channel is active, and none is NaN, at every position of
                                   maps[m][n, :, begin::step, begin::step], with (m, begin, step) = windows[3j : 3j + 3]
        score[n]                 = (sum over l, k of |packed[n, offset_l + k] * inverse_area[l]|^p)^(1/p)

    Where the structure of a network proves that the gradient behind a ReLU vanishes just where the ReLU is inactive,
    count / (H*W) is the density of Eq. 10; `live` is what that proof asks of the image.

    Args:
        maps: M outputs of ReLUs, (N, K_m, H_m, W_m) each, of one dtype: float32, float16 or bfloat16 (float64 with
            backend "torch"); any strides.
        sums: S counts that come from elsewhere, (N, K) float32 each; any strides, those of expanded rows included.
        layers: of each layer, whose counts it has: m of maps, or M + s of sums. Several may have the same.
        inverse_area: 1 / (H_l * W_l) of each layer.
        upper: of each map, where its units saturate (6 for ReLU6), rounded to the maps' dtype; infinity for nowhere,
            and an infinite value is active there. Empty: infinity for all.
        windows: (map, begin, step) of each window, flat. A grid without a position is live.
        p: the order of the norm, at least 1; infinity gives the largest entry.
        scratch: contiguous zeros of int32, at least N rows of `scratch_size`; zero again when the call is done, so that
            the operation counts as one that writes nothing. Calls that share it must run one after the other, as they
            do on one stream. None: made here.
        backend: a name of `gaia_fast.backends.BACKENDS` but "cpu"; None picks the fastest, plain PyTorch on the CPU.

    Returns:
        packed, (N, sum of K_l); live, (N, number of windows); score, (N,): float32, also for float64. A NaN is not
        active. No layers have the score 0.

    Raises:
        BackendError: wrong shapes, dtypes or numbers, more maps or layers than a kernel takes, or a backend that cannot
            run here.

    Deterministic: counts are integers; the order of summation depends on the widths alone.

    Example:
        >>> y = torch.tensor([[[[1.0, 0.0], [0.0, 3.0]], [[0.0, 2.0], [0.0, 7.0]]]])
        >>> packed, live, score = count_and_score([y], [], layers=[0], inverse_area=[0.25], windows=[0, 0, 1])
        >>> packed.tolist(), live.tolist()  # no channel is active at the lower left
        ([[2.0, 2.0]], [[0.0]])
        >>> round(score.item(), 4)
        0.7071
    """
    if _is_traced(maps, sums):
        return torch.ops.gaia_fast.count_and_score(
            maps, sums, layers, inverse_area, upper, windows, p, scratch, backend
        )
    return _eager(maps, sums, layers, inverse_area, upper, windows, p, scratch, backend)


def scratch_size(shapes: Sequence[tuple[int, int, int]], windows: Sequence[int] = ()) -> int:
    """Returns how many columns the scratch of `count_and_score` has.

    Args:
        shapes: (K, H, W) of each map.
        windows: as in `count_and_score`.

    Example:
        >>> scratch_size([(64, 8, 8), (128, 4, 4)], windows=[0, 1, 3])  # counts, the window's bits and NaN, a ticket
        195
    """
    size = sum(channels for channels, _, _ in shapes)
    for m, begin, step in window_triples(windows):
        _, height, width = shapes[m]
        size += -(-grid_size(height, begin, step) * grid_size(width, begin, step) // 32) + 1
    return size + 1


def fits(maps: int, sums: int, layers: int, windows: int) -> bool:
    """Whether every backend takes so many of each in one call."""
    limits = getattr(kernels, "CUDA_COUNT_AND_SCORE_LIMITS", _LIMITS)
    wanted = {"maps": maps, "sums": sums, "layers": layers, "windows": windows}
    return all(wanted[name] <= limits[name] for name in wanted)


def window_triples(windows: Sequence[int]) -> list[tuple[int, int, int]]:
    """Returns (map, begin, step) of each window."""
    return list(zip(windows[::3], windows[1::3], windows[2::3], strict=True))


def grid_size(size: int, begin: int, step: int) -> int:
    """Returns how many positions begin::step has on an axis of that size."""
    return max(0, -(-(size - begin) // step))


@lru_cache(maxsize=256)
def active_limits(upper: tuple[float, ...], dtype: torch.dtype) -> tuple[int, ...]:
    """Returns the largest bits of an active element below each bound: it is active where they are from 1 to that.

    Taken as unsigned numbers, the bits of what is positive grow with it, and those of NaN and of -0.0 lie above.
    """
    integers = {2: torch.int16, 4: torch.int32}[dtype.itemsize]
    bits = torch.tensor(upper, dtype=dtype).view(integers).tolist()
    return tuple(each if bound == inf else max(each - 1, 0) for each, bound in zip(bits, upper, strict=True))


def _is_traced(maps: Sequence[Tensor], sums: Sequence[Tensor]) -> bool:
    given = (*maps, *sums)
    return bool(given) and (is_traced(given[0]) or any(type(each) is not Tensor and is_traced(each) for each in given))


def _eager(
    maps: Sequence[Tensor],
    sums: Sequence[Tensor],
    layers: Sequence[int],
    inverse_area: Sequence[float],
    upper: Sequence[float],
    windows: Sequence[int],
    p: float = 2.0,
    scratch: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    maps, sums = _checked(maps, sums)
    first = (*maps, *sums)[0]
    _check_numbers(len(maps), len(sums), layers, inverse_area, upper, windows, p)
    shapes = [(each.shape[1], each.shape[2], each.shape[3]) for each in maps]
    size = scratch_size(shapes, windows)
    if scratch is not None:
        _check_scratch(scratch, first, size)
    run = implementation("count_and_score", _backend_name(backend, first))
    packed, live, score = _results(first, _widths(maps, sums, layers), windows)
    if first.shape[0] > 0:
        if scratch is None:
            scratch = first.new_zeros((first.shape[0], size), dtype=torch.int32)
        bounds = _rounded(tuple(upper), first.dtype) if upper else (inf,) * len(maps)
        run(maps, sums, layers, inverse_area, bounds, windows, p, scratch, packed, live, score)
    return packed, live, score


@lru_cache(maxsize=256)
def _rounded(upper: tuple[float, ...], dtype: torch.dtype) -> tuple[float, ...]:
    """Returns the bounds as the maps have them, in their dtype."""
    return tuple(torch.tensor(upper, dtype=dtype).tolist())


def _widths(maps: Sequence[Tensor], sums: Sequence[Tensor], layers: Sequence[int]) -> list[int]:
    sources = (*maps, *sums)
    return [sources[layer].shape[1] for layer in layers]


def begins_of(widths: Sequence[int]) -> list[int]:
    """Returns the column of `packed` at which each layer begins."""
    return list(accumulate(widths[:-1], initial=0)) if widths else []


def _results(first: Tensor, widths: Sequence[int], windows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    images = first.shape[0]
    shapes = ((images, sum(widths)), (images, len(windows) // 3), (images,))
    packed, live, score = (first.new_empty(each, dtype=torch.float32, requires_grad=False) for each in shapes)
    return packed, live, score


def _backend_name(requested: str | None, first: Tensor) -> str:
    name = check.backend_name(requested, first)
    if name != "cpu":
        return name
    if requested is None:
        return "torch"
    raise BackendError("count_and_score has no C++ kernel; leave backend out, or ask for 'torch'")


def _checked(maps: Sequence[Tensor], sums: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Returns maps and sums as their memory holds them; BackendError unless they belong together."""
    if not maps and not sums:
        raise BackendError("maps and sums are both empty: nothing tells how many images there are; give one of them")
    maps = [check.check_map(each, f"maps[{index}]") for index, each in enumerate(maps)]
    for index, each in enumerate(maps):
        shape = torch.Size((maps[0].shape[0], *each.shape[1:]))
        check.check_same(each, f"maps[{index}]", shape, maps[0].dtype, maps[0].device)
    found = []
    for index, each in enumerate(sums):
        name = f"sums[{index}]"
        if not isinstance(each, Tensor) or each.ndim != 2:
            what = f"shape {tuple(each.shape)}" if isinstance(each, Tensor) else type(each).__name__
            raise BackendError(f"{name} must be a (N, K) float32 tensor, got {what}")
        first = maps[0] if maps else sums[0]
        check.check_same(each, name, torch.Size((first.shape[0], each.shape[1])), torch.float32, first.device)
        found.append(each.resolve_neg())
    return maps, found


def _check_numbers(
    maps: int,
    sums: int,
    layers: Sequence[int],
    inverse_area: Sequence[float],
    upper: Sequence[float],
    windows: Sequence[int],
    p: float,
) -> None:
    if not all(0 <= layer < maps + sums for layer in layers):
        raise BackendError(f"layers must be of {maps} maps and {sums} sums, from 0 on, got {list(layers)}")
    if len(inverse_area) != len(layers) or not all(0 < area < inf for area in inverse_area):
        raise BackendError(
            f"inverse_area must be positive and finite, one for each of {len(layers)} layers, got {list(inverse_area)}"
        )
    if len(upper) not in (0, maps) or not all(bound > 0 for bound in upper):
        raise BackendError(f"upper must be positive, one for each of {maps} maps or none at all, got {list(upper)}")
    if len(windows) % 3 != 0 or not all(
        0 <= m < maps and begin >= 0 and step >= 1 for m, begin, step in window_triples(windows)
    ):
        raise BackendError(
            f"windows must be triples of a map, of {maps}, a begin from 0 on and a step from 1 on, got {list(windows)}"
        )
    if not p >= 1:
        raise BackendError(f"p must be at least 1 for a norm, got {p}")


def _check_scratch(scratch: Tensor, first: Tensor, size: int) -> None:
    images = first.shape[0]
    if (
        scratch.ndim != 2
        or scratch.shape[0] < images
        or scratch.shape[1] != size
        or scratch.dtype != torch.int32
        or scratch.device != first.device
        or not scratch.is_contiguous()
    ):
        raise BackendError(
            f"scratch must be contiguous zeros of int32, at least {images} rows of {size} on {first.device}, as "
            f"scratch_size says, got {scratch.dtype} of shape {tuple(scratch.shape)} on {scratch.device}"
        )


def _fake(
    maps: Sequence[Tensor],
    sums: Sequence[Tensor],
    layers: Sequence[int],
    inverse_area: Sequence[float],
    upper: Sequence[float],
    windows: Sequence[int],
    p: float = 2.0,
    scratch: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    return _results((*maps, *sums)[0], _widths(maps, sums, layers), windows)


def _batched(
    op: Callable[..., tuple[Tensor, Tensor, Tensor]],
    times: int,
    dims: tuple[transforms.ListDims | None, ...],
    maps: Sequence[Tensor],
    sums: Sequence[Tensor],
    layers: Sequence[int],
    inverse_area: Sequence[float],
    upper: Sequence[float],
    windows: Sequence[int],
    p: float,
    scratch: Tensor | None,
    backend: str | None,
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    def joined(tensors: Sequence[Tensor], of: transforms.ListDims | None) -> list[Tensor]:
        mapped = zip(tensors, of or [None] * len(tensors), strict=True)
        return [transforms.joined(each, dim, times, transforms.IMAGES) for each, dim in mapped]

    # The scratch has a row for each of the images before they were joined: another one is made.
    of_maps, of_sums = joined(maps, dims[0]), joined(sums, dims[1])
    results = op(of_maps, of_sums, layers, inverse_area, upper, windows, p, None, backend)
    return tuple(transforms.parted(each, times, 0) for each in results), (0, 0, 0)


define_op("count_and_score", _eager, _fake, _batched)
