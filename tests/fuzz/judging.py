"""Whether what an engine says of a batch is right: held to the oracle in float64, and in the engine's own dtype.

Most answers are the oracle's, to rounding. Where one is not, rounding may still be the reason: a unit that is zero to
rounding opens, two logits are all but equal, a gradient is a difference of equal numbers. So the oracle answers again
and again with weights, maps and gradients that are off by as much as the engine's arithmetic may be; an entry of a
gradient that is zero in one answer, or half as large again in another, may then be counted or not. (In half precision
that is a wide licence behind a maximum over positions: several per cent of it make values equal.) All other entries
must be counted as they are, and other numbers lie within what those answers span.
"""

import copy
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fuzz.oracle import Answer, Question, UndefinedError, answer, norm

# By the dtype that an engine computes in: what its arithmetic may be off by, and what is passed without a closer look.
NOISE = {torch.float64: 1e-11, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
CLOSE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}
SCORE = 2e-6  # scores are float32, whatever the model; below its normal numbers they are multiples of
STEP = 2.0**-149
ANSWERS = 8
TINY = 1e-300


class Found(NamedTuple):
    """What an engine says of a batch."""

    logits: Tensor
    score: Tensor


@dataclass(frozen=True)
class Truth:
    """What is true of a batch."""

    model: nn.Module
    x: Tensor
    question: Question

    def fault(self, found: Found, dtype: torch.dtype) -> str:
        """Why `found` is wrong for an engine that computes in `dtype`; empty where it is right."""
        if fault := self._misshapen(found):
            return fault
        if self.x.shape[0] == 0:
            return ""
        try:
            exact = self._exact
        except UndefinedError as none:
            return f"a score of {found.score[0]:.4g} where there is none: {none}"
        if _close(found, exact, dtype):
            return ""
        own = self._answer(dtype)
        if _close(found, own, dtype):
            return ""
        return self._outside(found, [exact, own, *self._others(found, dtype)], dtype)

    @cached_property
    def _exact(self) -> Answer:
        return self._answer(torch.float64)

    def _answer(self, dtype: torch.dtype, classes: Tensor | None = None, noise: float = 0.0) -> Answer:
        return answer(_in(self.model, dtype), self.x.to(dtype), self.question, classes, noise)

    def _others(self, found: Found, dtype: torch.dtype) -> list[Answer]:
        classes = found.logits.argmax(1)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            each = [self._answer(torch.float64, noise=NOISE[dtype]) for _ in range(ANSWERS)]
            each += [self._answer(dtype, noise=NOISE[dtype]) for _ in range(ANSWERS if dtype != torch.float64 else 0)]
        return [*each, self._answer(torch.float64, classes), self._answer(dtype, classes)]

    def _outside(self, found: Found, answers: list[Answer], dtype: torch.dtype) -> str:
        """By how much logits or scores lie outside of what the answers span."""
        logits = torch.stack([each.logits.double() for each in answers])
        size = logits[0].abs().amax(1, keepdim=True).clamp_min(TINY)
        off = _beyond(found.logits.double(), *_span(logits), _rounding(found, dtype) * size) / size
        if not off.max() <= 0:
            return f"logits off by {off.max():.2g} of the largest"
        if self.question.name == "gaia-z":
            low, high = _countable(answers)
        else:
            low, high = _span(torch.stack([each.score() for each in answers]))
        score = answers[0].score()
        largest = torch.maximum(score.abs(), found.score.double().abs()).clamp_min(TINY)
        off = _beyond(found.score.double(), low, high, (SCORE + CLOSE[dtype]) * high.abs() + STEP) / largest
        if not off.max() <= 0:
            worst = int(off.nan_to_num(torch.inf).argmax())
            return (
                f"score off by {off[worst]:.2g}: {found.score[worst]:.7g} instead of {score[worst]:.7g} "
                f"(image {worst}, class {int(answers[0].logits[worst].argmax())})"
            )
        return ""

    def _misshapen(self, found: Found) -> str:
        images = self.x.shape[0]
        if found.score.shape != (images,) or found.logits.ndim != 2 or found.logits.shape[0] != images:
            return f"logits {tuple(found.logits.shape)} and score {tuple(found.score.shape)} of {images} images"
        if found.score.dtype != torch.float32 or found.logits.dtype != self.x.dtype:
            return f"logits in {found.logits.dtype}, scores in {found.score.dtype}"
        if not (found.score.isfinite().all() and found.logits.isfinite().all()):
            return "a number that is not finite"
        return ""


@lru_cache(maxsize=8)
def _in(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    return copy.deepcopy(model).to(dtype)


def _close(found: Found, truth: Answer, dtype: torch.dtype) -> bool:
    size = truth.logits.double().abs().amax(1, keepdim=True)
    off = (found.logits.double() - truth.logits.double()).abs()
    score = truth.score()
    near = (found.score.double() - score).abs() <= (SCORE + min(CLOSE[dtype], 1e-5)) * score.abs() + STEP
    return bool((off <= _rounding(found, dtype) * size).all() and near.all())


def _rounding(found: Found, dtype: torch.dtype) -> float:
    """What logits may be off by: they may be computed in a wider dtype than they are given in."""
    return max(CLOSE[dtype], torch.finfo(found.logits.dtype).eps)


def _span(each: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest of the answers, and as much again on either side."""
    low, high = each.amin(0), each.amax(0)
    return low - (high - low), high + (high - low)


def _beyond(found: Tensor, low: Tensor, high: Tensor, allowed: Tensor) -> Tensor:
    return torch.maximum(low - found, found - high) - allowed


def _countable(answers: list[Answer]) -> tuple[Tensor, Tensor]:
    """The scores if only what is non-zero beyond doubt is counted, and if all that may be is."""
    certain, possible = [], []
    for maps in zip(*(each.gradients for each in answers), strict=True):
        each = torch.stack([g.double() for g in maps])
        steady = ((each - each[0]).abs() <= 0.5 * each[0].abs()).all(0)
        certain.append(((each != 0).all(0) & steady).double().mean((2, 3)))
        possible.append((each != 0).any(0).double().mean((2, 3)))
    p = answers[0].question.p
    return norm(certain, p), norm(possible, p)
