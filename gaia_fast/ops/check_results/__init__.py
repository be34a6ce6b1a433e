"""Whether a batch's results mean something, in one launch that ends a program, told without a copy from the device."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gaia_fast.errors import BackendError
from gaia_fast.ops import maps
from gaia_fast.ops.copy_and_check import backend_for
from gaia_fast.ops.library import define_op, implementation, is_traced

MOST = 6  # scores and output components that a kernel takes
_PIECE = 256  # bytes that a warp compares, at most


def check_results(
    logits: Tensor,
    scores: Sequence[Tensor],
    preconditions: Tensor | None = None,
    components: Sequence[Tensor] = (),
    finite: Tensor | None = None,
    memory: Sequence[Tensor] = (),
    expected: Tensor | None = None,
    pieces: Tensor | None = None,
    counts: Tensor | None = None,
    told: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """Which images' results mean something, and whether the whole batch's do, of an unchanged model.

        answers[n] = logits[n] and every score[n] are finite, preconditions[n] > 0, finite[n] != 0, and every
                     component[n] can be divided by: `gaia_fast.ops.result_checks.divisible`

    With `counts` and `told`, the launches are counted, and those of them that failed: of which an image's answer is no,
    or the memory not what it was. Both only ever grow. Whoever reads told[0], starts a launch, and waits for it, finds
    told[1] grown, and told[0] the same if nothing was wrong.

    Args:
        logits: (N, C) float32, float16 or bfloat16 (float64 with backend "torch"), any strides, as all others.
        scores: (N,) each, of such a dtype.
        preconditions: (N, P), of such a dtype; None for none.
        components: (N,) each, of such a dtype.
        finite: (N, parts) uint8, of `copy_and_check`; None where that is checked elsewhere.
        memory: uint8, one dimension, contiguous: what of a model's memory is compared.
        expected: uint8: what that held, side by side.
        pieces: `pieces_of(memory)`; None: made here, which copies it to the device.
        counts: (3,) int64, zeros at first. Launches that share it must run one after the other.
        told: (2,) int64: failures, launches. For a device, in pinned memory of the host, which the device writes.
        backend: "cuda", "triton" or "torch"; None picks the fastest, plain PyTorch on the CPU.

    Returns:
        (N,) bools.

    Raises:
        BackendError: tensors that do not fit together, or a backend that cannot run here.

    Example:
        >>> logits = torch.tensor([[1.0, 2.0], [0.0, 0.0], [torch.nan, 1.0]])
        >>> check_results(logits, [torch.ones(3)]).tolist()
        [True, True, False]
        >>> check_results(logits, [torch.ones(3)], components=[torch.ones(3)]).tolist()
        [True, False, False]
    """
    given = (logits, scores, preconditions, components, finite, memory, expected, pieces, counts, told, backend)
    return torch.ops.gaia_fast.check_results(*given) if is_traced(logits) else _eager(*given)


def pieces_of(memory: Sequence[Tensor]) -> Tensor:
    """Returns (P, 3) int64 on the memory's device: where its pieces lie, how long they are, and their place in
    `expected`. The kernels read through it: it must not outlive the memory."""
    rows, begin = [], 0
    for each in memory:
        for offset in range(0, each.numel(), _PIECE):
            rows.append((each.data_ptr() + offset, min(_PIECE, each.numel() - offset), begin + offset))
        begin += each.numel()
    device = memory[0].device if memory else None
    return torch.tensor(rows, dtype=torch.int64, device=device).reshape(-1, 3)


def _eager(
    logits: Tensor,
    scores: Sequence[Tensor],
    preconditions: Tensor | None,
    components: Sequence[Tensor],
    finite: Tensor | None,
    memory: Sequence[Tensor],
    expected: Tensor | None,
    pieces: Tensor | None,
    counts: Tensor | None,
    told: Tensor | None,
    backend: str | None,
) -> Tensor:
    logits = _checked(logits, "logits", (None, None), logits, "torch")
    name, images = backend_for(backend, logits), logits.shape[0]
    scores = [_checked(each, "a score", (images,), logits, name) for each in scores]
    components = [_checked(each, "an output component", (images,), logits, name) for each in components]
    if preconditions is not None:
        preconditions = _checked(preconditions, "preconditions", (images, None), logits, name)
    if name != "torch" and len(scores) + len(components) > MOST:
        raise BackendError(
            f"there are {len(scores)} scores and {len(components)} output components; the kernels take {MOST} in all, "
            "backend='torch' any number"
        )
    if finite is not None:
        size = torch.Size((images, finite.shape[1] if finite.ndim == 2 else 0))
        maps.check_same(finite, "finite", size, torch.uint8, logits.device)
        finite = finite.contiguous()
    length = sum(each.numel() for each in memory)
    for each in memory:
        maps.check_same(each, "memory", torch.Size((each.numel(),)), torch.uint8, logits.device)
        if not each.is_contiguous():
            raise BackendError("memory must be contiguous")
    if length:
        if expected is None:
            raise BackendError(f"expected is missing: what {length} bytes of memory held")
        maps.check_same(expected, "expected", torch.Size((length,)), torch.uint8, logits.device)
        if name != "torch":
            pieces = pieces_of(memory) if pieces is None else pieces
            maps.check_same(pieces, "pieces", torch.Size((pieces.shape[0], 3)), torch.int64, logits.device)
            expected = expected.contiguous()
    if (counts is None) != (told is None):
        raise BackendError("counts and told go together: one counts what the other tells")
    if counts is not None and told is not None:
        maps.check_same(counts, "counts", torch.Size((3,)), torch.int64, logits.device)
        maps.check_same(told, "told", torch.Size((2,)), torch.int64, told.device)
        if not (counts.is_contiguous() and told.is_contiguous()):
            raise BackendError("counts and told must be contiguous")
        if told.device != logits.device and not told.is_pinned():
            raise BackendError("told must be in pinned memory, which the device can write: pin_memory=True")
    answers = torch.empty(images, dtype=torch.bool, device=logits.device)
    if images or length or counts is not None:
        # There is no launch of nothing.
        run = implementation("check_results", name if images or length else "torch")
        held = memory if length else ()
        run(logits, scores, preconditions, components, finite, held, expected, pieces, counts, told, answers)
    return answers


def _checked(tensor: Tensor, what: str, shape: tuple[int | None, ...], logits: Tensor, backend: str) -> Tensor:
    """Returns a tensor as its memory holds it, if its shape and device are right, and its dtype for the backend."""
    dtypes = maps.DTYPES if backend == "torch" else tuple(maps.DTYPE_CODES)
    fits = tensor.ndim == len(shape) and all(b in (None, a) for a, b in zip(tensor.shape, shape, strict=True))
    if not fits or tensor.dtype not in dtypes or tensor.device != logits.device:
        wanted = f"({', '.join('any' if size is None else str(size) for size in shape)})"
        raise BackendError(
            f"{what} must be {', '.join(str(each) for each in dtypes)} of shape {wanted} on {logits.device}, got "
            f"{tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}"
        )
    return tensor.resolve_neg()


def _fake(
    logits: Tensor,
    scores: Sequence[Tensor],
    preconditions: Tensor | None,
    components: Sequence[Tensor],
    finite: Tensor | None,
    memory: Sequence[Tensor],
    expected: Tensor | None,
    pieces: Tensor | None,
    counts: Tensor | None,
    told: Tensor | None,
    backend: str | None,
) -> Tensor:
    return logits.new_empty(logits.shape[0], dtype=torch.bool)


define_op("check_results", _eager, _fake, writes=("counts", "told"))
