"""A file that was just written, held to the reference before it takes its name."""

from pathlib import Path

import torch
from torch import Tensor

from gaia_fast.compiler.package.reading import load
from gaia_fast.compiler.verification import Verifier
from gaia_fast.errors import ArgumentError, BackendError, CompilationError, first_line


@torch.inference_mode(False)
@torch.no_grad()
def check_file(written: Path, path: Path, verifier: Verifier, x: Tensor, dynamic: bool) -> None:
    """Raises CompilationError unless a file runs, and agrees with the reference on other images than `x`."""
    try:
        run = load(written)
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
    for images, own, (logits, score) in outputs:
        if (logits.dtype, score.dtype) != (x.dtype, torch.float32):
            raise CompilationError(
                f"{path} is not written, since its logits would be in {logits.dtype} and its score in {score.dtype}, "
                f"not in {x.dtype} and torch.float32; use the other format, or engine='hooks' in Python"
            )
        found = {"logits": logits, "score": score, "preconditions": (~score.isnan()).unsqueeze(1)}
        off, allowed = verifier.error(found, images, own)
        if not off <= allowed:
            raise CompilationError(
                f"{path} is not written, since it would be off by {off:.2g} from the reference, more than "
                f"{allowed:.2g}; use the other format, or engine='hooks' in Python"
            )
