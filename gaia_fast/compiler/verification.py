"""Programs held to the reference: on the example, and on other numbers of images than it has."""

import contextlib
import copy
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from gaia_fast import reference
from gaia_fast.errors import CompilationError, GaiaError
from gaia_fast.inspection.head import Head
from gaia_fast.method import Method
from gaia_fast.reference import Reference, copy_in

# PyTorch's exporter takes it that there are two images or more: what becomes of one has to be tried.
NUMBERS = (1, 2, 3)
HALVES = (torch.float16, torch.bfloat16)
DISTURBED = 6  # copies of the model that tell how sensitive an image's results are


class Verifier:
    """Compares results with the reference, as far as two orders of rounding can agree.

    A unit that is zero to rounding and becomes active changes a score by far more than rounding does. Where an image's
    results are off by more, they are held to the reference on a float64 copy: they may be off by twice what the
    reference in the model's own dtype is, or by twice what weights do to it that are off by as much as arithmetic
    loses.

    Args:
        model: the classifier, in the dtype that is computed in.
        method: what is measured.
        names: the inspected layers; None for those that are inspected by default.
        head: where GAIA-A's components meet; None where the method needs none.
    """

    def __init__(self, model: nn.Module, method: Method, names: list[str] | None, head: Head | None) -> None:
        self._model, self._method, self._names = model, method, names
        self._head = head.name if head else None

    def reference(self, x: Tensor) -> Reference:
        """Returns what the reference makes of a batch."""
        return self._measure(self._model, x)

    def error(self, found: Mapping[str, Tensor], x: Tensor, own: Reference) -> tuple[float, float]:
        """Returns how far a program's outputs for a batch are off, and how far they may be, relative to the largest.

        Args:
            found: "logits" and "score", with "preconditions" where it is among the outputs: the scores of images that
                violate one are not the program's.
            x: the batch.
            own: what `reference` gives for it.
        """
        told = torch.ones_like(own.score, dtype=torch.bool)
        if "preconditions" in found:
            told = (found["preconditions"] > 0).all(1)
        errors = _errors(found["logits"], found["score"], own, told)
        allowed = torch.full_like(errors, max(1e-3, lost(own.logits)))
        if not bool((errors <= allowed).all()):
            truth = self._exact(x)
            errors = _errors(found["logits"], found["score"], truth, told)
            allowed = allowed.maximum(2 * _errors(own.logits, own.score, truth, told))
            if not bool((errors <= allowed).all()):
                allowed = allowed.maximum(2 * self._sensitivity(x, truth, lost(own.logits)))
        worst = (errors / allowed).nan_to_num(torch.inf).argmax()
        return float(errors[worst]), float(allowed[worst])

    def _sensitivity(self, x: Tensor, truth: Reference, size: float) -> Tensor:
        """(N,): by how much each image's results change if the weights are off by what arithmetic loses."""
        found = torch.zeros_like(truth.score, dtype=torch.float64)
        for seed in range(DISTURBED):
            random = torch.Generator().manual_seed(seed)
            model = copy.deepcopy(self._wide)
            with torch.no_grad():
                for weight in model.parameters():
                    noise = torch.randn(weight.shape, generator=random, dtype=torch.float64).to(weight.device)
                    weight.mul_(1 + min(size, 0.02) * noise)
            with contextlib.suppress(GaiaError):
                other = self._measure(model, x.double())
                found = found.maximum(_errors(other.logits, other.score, truth))
        return found

    def other_batches(self, x: Tensor, own: Reference) -> list[tuple[Tensor, Reference]]:
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

    def _agree(self, few: tuple[Tensor, Reference], many: tuple[Tensor, Reference]) -> bool:
        """Whether the first images of `many` have the same results by themselves, as `few`."""
        alike = _alike(few[1], many[1])
        if alike and few[1].logits.dtype not in HALVES:  # there, rounding hides a brightness that is halved
            return True
        try:
            return _alike(self._exact(few[0]), self._exact(many[0]))
        except GaiaError:  # the model runs in its own dtype alone
            return alike

    def _exact(self, x: Tensor) -> Reference:
        return self._measure(self._wide, x.double())

    @cached_property
    def _wide(self) -> nn.Module:
        return copy_in(self._model, torch.float64)

    @torch.enable_grad()
    def _measure(self, model: nn.Module, x: Tensor) -> Reference:
        return reference.run(self._method, model, x, self._names, self._head)


def _errors(logits: Tensor, score: Tensor, truth: Reference, told: Tensor | None = None) -> Tensor:
    """(N,): the larger of each score's relative error, where it is told, and its logits', to the largest of them."""
    tiny = torch.finfo(torch.float64).tiny
    logits, score, true_logits, true_score = (each.double() for each in (logits, score, truth.logits, truth.score))
    in_logits = (logits - true_logits).abs().amax(1) / true_logits.abs().amax(1).clamp_min(tiny)
    in_score = (score - true_score).abs() / true_score.abs().clamp_min(tiny)
    return in_logits.maximum(in_score if told is None else in_score.where(told, 0))


def _alike(few: Reference, many: Reference) -> bool:
    images = few.logits.shape[0]
    first = Reference(many.score[:images], [], many.logits[:images])
    return bool((_errors(few.logits, few.score, first) <= max(1e-3, lost(few.logits))).all())


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
