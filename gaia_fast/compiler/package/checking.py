"""A file that was just written, held to the reference before it takes its name."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from gaia_fast.compiler.ir.results import ResultNames
from gaia_fast.compiler.package.reading import open_program
from gaia_fast.compiler.verification import Found, Verifier
from gaia_fast.errors import ArgumentError, BackendError, CompilationError, first_line
from gaia_fast.logit_scores import logit_score


@torch.inference_mode(False)
@torch.no_grad()
def check_file(
    written: Path,
    path: Path,
    verifier: Verifier,
    names: Sequence[str],
    results: Sequence[ResultNames],
    x: Tensor,
    dynamic: bool,
) -> None:
    """Raises CompilationError unless a file runs, and agrees with the reference on other images than `x`.

    Args:
        written: the file.
        path: what it will be called.
        verifier: of the model.
        names: of the file's scores, in their order.
        results: which of them are of the verifier's methods.
        x: images.
        dynamic: whether it takes any number of them.
    """
    try:
        run = open_program(written)
        outputs = [
            (images, own, run(images))
            for images, own in verifier.other_batches(x, verifier.reference(x))
            if dynamic or images.shape[0] == x.shape[0]
        ]
    except (ArgumentError, BackendError) as error:
        raise CompilationError(
            f"{path} is not written, since it would not run on {x.dtype} images: {first_line(error)}. Export the model "
            "in float32, model.float(), or to the other format"
        ) from error
    for images, own, (logits, *given) in outputs:
        scores = dict(zip(names, given, strict=True))
        wrong = next((score.dtype for score in given if score.dtype != torch.float32), torch.float32)
        if (logits.dtype, wrong) != (x.dtype, torch.float32):
            raise CompilationError(
                f"{path} is not written, since its logits would be in {logits.dtype} and its score in {wrong}, "
                f"not in {x.dtype} and torch.float32; use the other format, or engine='hooks' in Python"
            )
        measured = tuple(scores.pop(each.score) for each in results)
        found = Found(logits, measured, tuple(~score.isnan() for score in measured))
        off, allowed = verifier.error(found, images, own)
        for name, score in scores.items():  # of the logits, which have just been found right or wrong
            difference = (score - logit_score(name, logits)).double().abs() / logits.double().abs().amax().clamp_min(1)
            off = max(off, float(difference.nan_to_num(torch.inf).max()))
        if not off <= allowed:
            raise CompilationError(
                f"{path} is not written, since it would be off by {off:.2g} from the reference, more than "
                f"{allowed:.2g}; use the other format, or engine='hooks' in Python"
            )
