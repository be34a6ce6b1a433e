"""`check_results` in Triton."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from gaia_fast.ops.check_results import MOST
from gaia_fast.ops.result_checks import rounding
from gaia_fast.ops.triton_tiles import launch, unspecialised

BLOCK = 1024  # logits, or other columns, at a time
PIECES, PIECE = 8, 256  # pieces of memory that a program compares, and the bytes of the longest


@triton.jit
def not_finite(x):
    return (tl.abs(x) <= 3.4028234663852886e38) == 0


@triton.jit
def column_fails(column_ptr, n, stride_n, PLACE: tl.constexpr, SCORES: tl.constexpr, COLUMNS: tl.constexpr):
    """Whether a score is not finite, or an output component not positive; no where there is no such column."""
    fails = 0
    if PLACE < COLUMNS:
        x = tl.load(column_ptr + n * stride_n).to(tl.float32)
        if PLACE < SCORES:
            fails = not_finite(x).to(tl.int32)
        else:
            fails = ((x > 0) == 0).to(tl.int32)
    return fails


@triton.jit
def logits_are_level(logits_ptr, stride_c, classes, largest, least, ROUNDING: tl.constexpr, BLOCK: tl.constexpr):
    """Whether the gradient of the sum of log_softmax is rounding alone: its largest entry, of the largest or least
    logit."""
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, classes, BLOCK):
        c = start + tl.arange(0, BLOCK)
        logit = tl.load(logits_ptr + c.to(tl.int64) * stride_c, mask=c < classes, other=float("-inf")).to(tl.float32)
        total += tl.exp(logit - largest).to(tl.float64)
    sum_ = tl.sum(total, 0)
    number = classes.to(tl.float64)
    slope = tl.maximum(number / sum_ - 1, 1 - number * tl.exp(least - largest).to(tl.float64) / sum_)
    return ((slope > ROUNDING) == 0).to(tl.int32)


@unspecialised
def check_results_kernel(
    logits_ptr,
    preconditions_ptr,
    finite_ptr,
    pieces_ptr,
    expected_ptr,
    answers_ptr,
    counts_ptr,
    ended_ptr,
    told_ptr,
    column_0_ptr,
    column_1_ptr,
    column_2_ptr,
    column_3_ptr,
    column_4_ptr,
    column_5_ptr,
    column_0_n,
    column_1_n,
    column_2_n,
    column_3_n,
    column_4_n,
    column_5_n,
    images,
    classes,
    logits_n,
    logits_c,
    preconditions,
    preconditions_n,
    preconditions_p,
    finite,
    finite_n,
    finite_p,
    pieces,
    programs,
    SCORES: tl.constexpr,
    COLUMNS: tl.constexpr,
    HAS_MEMORY: tl.constexpr,
    HAS_COUNTS: tl.constexpr,
    ROUNDING: tl.constexpr,
    BLOCK: tl.constexpr,
    PIECES: tl.constexpr,
    PIECE: tl.constexpr,
):
    program = tl.program_id(0)
    if program < images:
        n = program.to(tl.int64)
        bad = tl.zeros([BLOCK], tl.int32)
        highest = tl.full([BLOCK], float("-inf"), tl.float32)
        lowest = tl.full([BLOCK], float("inf"), tl.float32)
        for start in range(0, classes, BLOCK):
            c = start + tl.arange(0, BLOCK)
            inside = c < classes
            logit = tl.load(logits_ptr + n * logits_n + c.to(tl.int64) * logits_c, mask=inside, other=0)
            logit = logit.to(tl.float32)
            bad |= not_finite(logit).to(tl.int32)
            highest = tl.maximum(highest, tl.where(inside, logit, float("-inf")))
            lowest = tl.minimum(lowest, tl.where(inside, logit, float("inf")))
        for start in range(0, preconditions, BLOCK):
            p = start + tl.arange(0, BLOCK)
            at = preconditions_ptr + n * preconditions_n + p.to(tl.int64) * preconditions_p
            bad |= ((tl.load(at, mask=p < preconditions, other=1).to(tl.float32) > 0) == 0).to(tl.int32)
        for start in range(0, finite, BLOCK):
            p = start + tl.arange(0, BLOCK)
            at = finite_ptr + n * finite_n + p.to(tl.int64) * finite_p
            bad |= (tl.load(at, mask=p < finite, other=1) == 0).to(tl.int32)
        fails = tl.max(bad, 0)
        fails |= column_fails(column_0_ptr, n, column_0_n, 0, SCORES, COLUMNS)
        fails |= column_fails(column_1_ptr, n, column_1_n, 1, SCORES, COLUMNS)
        fails |= column_fails(column_2_ptr, n, column_2_n, 2, SCORES, COLUMNS)
        fails |= column_fails(column_3_ptr, n, column_3_n, 3, SCORES, COLUMNS)
        fails |= column_fails(column_4_ptr, n, column_4_n, 4, SCORES, COLUMNS)
        fails |= column_fails(column_5_ptr, n, column_5_n, 5, SCORES, COLUMNS)
        if COLUMNS > SCORES:
            row = logits_ptr + n * logits_n
            fails |= logits_are_level(row, logits_c, classes, tl.max(highest, 0), tl.min(lowest, 0), ROUNDING, BLOCK)
        tl.store(answers_ptr + n, 1 - fails)
    else:
        fails = tl.max(tl.zeros([PIECES], tl.int32), 0)
        if HAS_MEMORY:
            piece = (program - images) * PIECES + tl.arange(0, PIECES)
            there = piece < pieces
            address = tl.load(pieces_ptr + 3 * piece, mask=there, other=0)
            size = tl.load(pieces_ptr + 3 * piece + 1, mask=there, other=0)
            begin = tl.load(pieces_ptr + 3 * piece + 2, mask=there, other=0)
            byte = tl.arange(0, PIECE)
            inside = byte[None, :] < size[:, None]
            now = tl.load(address.to(tl.pointer_type(tl.uint8))[:, None] + byte[None, :], mask=inside, other=0)
            expected = tl.load(expected_ptr + begin[:, None] + byte[None, :], mask=inside, other=0)
            fails = tl.max(tl.max((now != expected).to(tl.int32), 1), 0)
    if HAS_COUNTS:
        tl.atomic_or(ended_ptr + 1, fails)
        if tl.atomic_add(ended_ptr, 1) == programs - 1:
            failed = tl.atomic_xchg(ended_ptr + 1, 0)
            tl.atomic_xchg(ended_ptr, 0)
            launches = tl.load(counts_ptr + 1) + 1
            failures = tl.load(counts_ptr + 2) + failed
            tl.store(counts_ptr + 1, launches)
            tl.store(counts_ptr + 2, failures)
            tl.store(told_ptr, failures)
            tl.store(told_ptr + 1, launches)


def check_results_triton(
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
    answers: Tensor,
) -> None:
    """Writes the (N,) answers, and counts; see `check_results`."""
    images, classes = logits.shape
    compared = pieces.shape[0] if memory and pieces is not None else 0
    columns = [*scores, *components]
    filled = [*columns, *[logits] * (MOST - len(columns))]  # of which nothing is read
    programs = images + triton.cdiv(compared, PIECES)
    written = answers.view(torch.uint8)
    launch(
        check_results_kernel,
        (programs,),
        logits.shape,
        logits,
        logits if preconditions is None else preconditions,
        written if finite is None else finite,
        pieces if compared else written,
        expected if compared else written,
        written,
        written if counts is None else counts,
        written if counts is None else counts.view(torch.int32),
        written if told is None else told,
        *filled,
        *(each.stride(0) for each in filled),
        images,
        classes,
        *logits.stride(),
        *((0, 0, 0) if preconditions is None else (preconditions.shape[1], *preconditions.stride())),
        *((0, 0, 0) if finite is None else (finite.shape[1], *finite.stride())),
        compared,
        programs,
        SCORES=len(scores),
        COLUMNS=len(columns),
        HAS_MEMORY=compared > 0,
        HAS_COUNTS=counts is not None,
        ROUNDING=rounding(classes, torch.float32),
        BLOCK=BLOCK,
        PIECES=PIECES,
        PIECE=PIECE,
    )
