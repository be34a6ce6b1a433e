"""A file that was just written, held to the reference before it takes its name."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gaia_fast.calibration import decide
from gaia_fast.compiler.ir.results import ResultNames
from gaia_fast.compiler.package.preprocessing import pictures_like, prepared
from gaia_fast.compiler.package.reading import open_program
from gaia_fast.compiler.package.writing import Sized
from gaia_fast.compiler.verification import NUMBERS, Found, Truth, Verifier
from gaia_fast.data.presets import Preset
from gaia_fast.errors import ArgumentError, BackendError, CompilationError, first_line
from gaia_fast.logit_scores import logit_score


class Batch(NamedTuple):
    """What goes into a file, the model's images that it stands for, and what the reference makes of these."""

    given: Tensor
    images: Tensor
    own: Truth


class FileCheck:
    """What a file should give.

    Args:
        path: what it will be called.
        scores: the names of its scores, in their order.
        thresholds: by score, of those that it decides by, in their order.
        preset: what it does to pictures first, if anything.
    """

    def __init__(
        self, path: Path, scores: Sequence[str], thresholds: Mapping[str, float], preset: Preset | None
    ) -> None:
        self._path, self._scores, self._thresholds, self._preset = path, scores, thresholds, preset
        self._parts: list[tuple[Sized, Verifier, Sequence[ResultNames]]] = []

    def add(self, sized: Sized, verifier: Verifier, results: Sequence[ResultNames]) -> None:
        """Has the file checked on images of a size that it is for.

        Args:
            sized: the program for them.
            verifier: of the model.
            results: which of the scores are of the verifier's methods.
        """
        self._parts.append((sized, verifier, results))

    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(self, written: Path) -> None:
        """Raises CompilationError unless a file runs, and agrees with the reference on other images than the example,
        of each size."""
        outputs = []
        shape = self._parts[0][0].example.shape
        try:
            run = open_program(written)
            for sized, verifier, results in self._parts:
                shape = sized.example.shape
                outputs += [(batch, verifier, results, run(batch.given)) for batch in self._batches(sized, verifier)]
        except (ArgumentError, BackendError) as error:
            raise CompilationError(
                f"{self._path} is not written, since it would not run on {self._parts[0][0].example.dtype} images of "
                f"{shape[2]}x{shape[3]}: {first_line(error)}. Export the model in float32, model.float(), or to the "
                "other format"
            ) from error
        for batch, verifier, results, given in outputs:
            self._compare(batch, verifier, results, given)

    def _batches(self, sized: Sized, verifier: Verifier) -> list[Batch]:
        x, fixed = sized.example, None if sized.dynamic else sized.example.shape[0]
        if self._preset is None:
            others = verifier.other_batches(x, verifier.reference(x))
            return [Batch(images, images, own) for images, own in others if fixed in (None, images.shape[0])]
        found = []
        for place, pictures in enumerate(pictures_like(self._preset, x)):
            pictures = pictures[: fixed or NUMBERS[place % len(NUMBERS)]]
            images = prepared(self._preset, pictures, x)
            found.append(Batch(pictures, images, verifier.reference(images)))
        return found

    def _compare(
        self, batch: Batch, verifier: Verifier, results: Sequence[ResultNames], outputs: tuple[Tensor, ...]
    ) -> None:
        logits, given = outputs[0], outputs[1 : 1 + len(self._scores)]
        dtype = batch.images.dtype
        wrong = next((score.dtype for score in given if score.dtype != torch.float32), torch.float32)
        if (logits.dtype, wrong) != (dtype, torch.float32):
            raise CompilationError(
                f"{self._path} is not written, since its logits would be in {logits.dtype} and its score in {wrong}, "
                f"not in {dtype} and torch.float32; use the other format, or engine='hooks' in Python"
            )
        scores = dict(zip(self._scores, given, strict=True))
        decisions = zip(self._thresholds.items(), outputs[1 + len(self._scores) :], strict=True)
        undecided = [name for (name, limit), found in decisions if not torch.equal(found, decide(scores[name], limit))]
        if undecided:
            raise CompilationError(
                f"{self._path} is not written, since it would not decide by its own {', '.join(undecided)}; use the "
                "other format, or leave the threshold out"
            )
        measured = tuple(scores.pop(each.score) for each in results)
        found = Found(logits, measured, tuple(~score.isnan() for score in measured))
        off, allowed = verifier.error(found, batch.images, batch.own)
        for name, score in scores.items():  # of the logits, which have just been found right or wrong
            difference = (score - logit_score(name, logits)).double().abs() / logits.double().abs().amax().clamp_min(1)
            off = max(off, float(difference.nan_to_num(torch.inf).max()))
        if not off <= allowed:
            raise CompilationError(
                f"{self._path} is not written, since it would be off by {off:.2g} from the reference, more than "
                f"{allowed:.2g}; use the other format, or engine='hooks' in Python"
            )
