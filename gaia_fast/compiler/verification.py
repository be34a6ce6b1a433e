"""Programs held to the reference: on the example, and on other numbers of images than it has."""

import contextlib
import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gaia_fast import reference
from gaia_fast.compiler.ir.results import LOGITS, PRECONDITIONS, ResultNames
from gaia_fast.errors import CompilationError, GaiaError
from gaia_fast.inspection.head import Head
from gaia_fast.inspection.requests import Request
from gaia_fast.reference import copy_in

# PyTorch's exporter takes it that there are two images or more: what becomes of one has to be tried.
NUMBERS = (1, 2, 3)
HALVES = (torch.float16, torch.bfloat16)
DISTURBED = 6  # copies of the model that tell how sensitive an image's results are


class Truth(NamedTuple):
    """What the reference makes of a batch: the logits (N, C), and for each method what it gives."""

    logits: Tensor
    scores: tuple[Tensor, ...]
    abnormality: tuple[list[Tensor], ...]


class Found(NamedTuple):
    """What is held to it.

    Attributes:
        logits: (N, C).
        scores: of each method, (N,).
        told: of each method, (N,) bools: for which images the score is to be compared; None for all.
    """

    logits: Tensor
    scores: tuple[Tensor, ...]
    told: tuple[Tensor | None, ...]

    @classmethod
    def of(cls, outputs: Mapping[str, Tensor], results: Sequence[ResultNames]) -> "Found":
        """Returns a program's outputs: scores of images that violate a precondition are not the program's."""
        holds = (outputs[PRECONDITIONS] > 0).all(1) if PRECONDITIONS in outputs else None
        scores = tuple(outputs[each.score] for each in results)
        return cls(outputs[LOGITS], scores, tuple(holds if each.counted else None for each in results))


class Verifier:
    """Compares results with the reference, as far as two orders of rounding can agree.

    A unit that is zero to rounding and becomes active changes a score by far more than rounding does. Where an image's
    results are off by more, they are held to the reference on a float64 copy: they may be off by twice what the
    reference in the model's own dtype is, or by twice what weights do to it that are off by as much as arithmetic
    loses.

    Args:
        model: the classifier, in the dtype that is computed in.
        requests: what is measured.
        head: where GAIA-A's components meet; None where no method needs one.
    """

    def __init__(self, model: nn.Module, requests: Sequence[Request], head: Head | None) -> None:
        self._model, self._requests = model, requests
        self._head = head.name if head else None

    def reference(self, x: Tensor) -> Truth:
        """Returns what the reference makes of a batch."""
        return self._measure(self._model, x)

    def error(self, found: Found, x: Tensor, own: Truth) -> tuple[float, float]:
        """Returns how far results for a batch are off, and how far they may be, relative to the largest.

        Args:
            found: the results.
            x: the batch.
            own: what `reference` gives for it.
        """
        of_own = Found(own.logits, own.scores, found.told)
        errors = _errors(found, own)
        allowed = torch.full_like(errors, max(1e-3, lost(own.logits)))
        if not bool((errors <= allowed).all()):
            truth = self.exact(x)
            errors = _errors(found, truth)
            allowed = allowed.maximum(2 * _errors(of_own, truth))
            if not bool((errors <= allowed).all()):
                allowed = allowed.maximum(2 * self.sensitivity(x, truth, lost(own.logits)))
        worst = (errors / allowed).nan_to_num(torch.inf).argmax()
        return float(errors.flatten()[worst]), float(allowed.flatten()[worst])

    def sensitivity(self, x: Tensor, truth: Truth, size: float) -> Tensor:
        """Returns by how much each image's results change, (M, N), if the weights are off by what arithmetic loses.

        Args:
            x, truth: the batch, and what is `exact` for it.
            size: what is `lost`.
        """
        found = torch.zeros_like(_errors(_all_of(truth), truth))
        for seed in range(DISTURBED):
            random = torch.Generator().manual_seed(seed)
            model = copy.deepcopy(self._wide)
            with torch.no_grad():
                for weight in model.parameters():
                    noise = torch.randn(weight.shape, generator=random, dtype=torch.float64).to(weight.device)
                    weight.mul_(1 + min(size, 0.02) * noise)
            with contextlib.suppress(GaiaError):
                other = self._measure(model, x.double())
                found = found.maximum(_errors(_all_of(other), truth))
        return found

    def other_batches(self, x: Tensor, own: Truth) -> list[tuple[Tensor, Truth]]:
        """Returns other batches than the example, of `NUMBERS` images and of as many, each with its reference.

        Those that the model itself does not take are left out.

        Args:
            x, own: the example, and its reference. The others are of its images, and of these turned over or negated.

        Raises:
            CompilationError: the model gives an image other results beside others, or in a batch of another size: no
                program of any number of images is equal to it, and none that is filled up or split.
        """
        pool = torch.cat([x, x.flip(3), x.flip(2), x.flip(2, 3)])
        found = [(x, own)]
        for images in NUMBERS:
            with contextlib.suppress(GaiaError):  # the model's own, which every engine would meet
                found.append((pool[:images], self.reference(pool[:images])))
        largest = max(found, key=lambda each: each[0].shape[0])
        for few in found:
            if not self._agree(few, largest):
                images = few[0].shape[0]
                raise CompilationError(
                    f"what {type(self._model).__name__} makes of an image depends on how many others are in the batch, "
                    f"or on which: {images} of {largest[0].shape[0]} images by themselves have other results. No "
                    "program holds for that; engine='hooks' scores it as it is"
                )
        with contextlib.suppress(GaiaError):
            found.append((-x.flip(3), self.reference(-x.flip(3))))
        return found[1:]

    def _agree(self, few: tuple[Tensor, Truth], many: tuple[Tensor, Truth]) -> bool:
        """Whether the first images of `many` have the same results by themselves, as `few`."""
        alike = _alike(few[1], many[1])
        if alike and few[1].logits.dtype not in HALVES:  # there, rounding hides a brightness that is halved
            return True
        try:
            return _alike(self.exact(few[0]), self.exact(many[0]))
        except GaiaError:  # the model runs in its own dtype alone
            return alike

    def exact(self, x: Tensor) -> Truth:
        """Returns what the reference makes of a batch on a float64 copy of the model."""
        return self._measure(self._wide, x.double())

    @cached_property
    def _wide(self) -> nn.Module:
        return copy_in(self._model, torch.float64)

    @torch.enable_grad()
    def _measure(self, model: nn.Module, x: Tensor) -> Truth:
        found = [reference.run(each.method, model, x, each.layer_names, self._head) for each in self._requests]
        logits = found[0].logits if found else reference.logits(model, x)
        return Truth(logits, tuple(each.score for each in found), tuple(each.abnormality for each in found))


def _all_of(truth: Truth) -> Found:
    return Found(truth.logits, truth.scores, (None,) * len(truth.scores))


def _errors(found: Found, truth: Truth) -> Tensor:
    """(M, N): for each of M scores the larger of its relative error, where it is told, and of the logits', to the
    largest of them; without scores the logits' alone, (1, N).

    Each score by itself: what one of them loses to rounding is no leave for another.
    """
    tiny = torch.finfo(torch.float64).tiny
    of_logits = logits_error(found.logits, truth.logits)
    errors = []
    for score, told, true_score in zip(found.scores, found.told, truth.scores, strict=True):
        expected = true_score.double()
        error = (score.double() - expected).abs() / expected.abs().clamp_min(tiny)
        errors.append(of_logits.maximum(error if told is None else error.where(told, 0)))
    return torch.stack(errors or [of_logits])


def logits_error(logits: Tensor, truth: Tensor) -> Tensor:
    """Returns by how much each image's logits (N, C) are off, relative to the largest of them: (N,), float64."""
    tiny = torch.finfo(torch.float64).tiny
    truth = truth.double()
    return (logits.double() - truth).abs().amax(1) / truth.abs().amax(1).clamp_min(tiny)


def _alike(few: Truth, many: Truth) -> bool:
    images = few.logits.shape[0]
    first = Truth(many.logits[:images], tuple(each[:images] for each in many.scores), ())
    return bool((_errors(_all_of(few), first) <= max(1e-3, lost(few.logits))).all())


def lost(logits: Tensor) -> float:
    """Returns what a pass through a model loses to rounding, relative to its largest result."""
    # Half precision is accumulated in float32, and rounded once an operator.
    return (4 if logits.dtype in HALVES else 32) * rounding(logits)


def rounding(logits: Tensor) -> float:
    """Returns how exactly a model was computed: the machine epsilon of its products."""
    # Not by `allow_tf32`, which raises once the newer setting has been used.
    convolutions: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    if logits.device.type == "cuda" and logits.dtype == torch.float32 and convolutions.fp32_precision == "tf32":
        return 2.0**-11  # TF32, PyTorch's own choice for convolutions
    return float(torch.finfo(logits.dtype).eps)
