"""Exported files, ready to run: what a user of one would write, for checks and examples."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from gaia_fast.compiled.onnx import missing
from gaia_fast.errors import BackendError


def load(path: Path) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """Returns a function of images (N, C, H, W), on the CPU for ".onnx", that gives logits and score.

    Raises:
        BackendError: onnxruntime is not installed.
    """
    if path.suffix == ".onnx":
        if reason := missing():
            raise BackendError(f"{path} cannot be run: {reason}")
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda x: tuple(
            torch.from_numpy(each) for each in session.run(["logits", "score"], {"images": x.cpu().numpy()})
        )
    package = torch._inductor.aoti_load_package(str(path))

    def run(x: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return tuple(package(x))

    return run
