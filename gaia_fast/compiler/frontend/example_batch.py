"""Example batches for programs of any number of images, or of one number."""

from typing import Any

import torch
from torch import Tensor


def repeated(example: Tensor, images: int) -> Tensor:
    """Returns (images, C, H, W), contiguous: the first image of the example, so many times."""
    return example[:1].expand(images, -1, -1, -1).contiguous()


def export_arguments(example: Tensor, dynamic: bool, any_size: bool = False) -> tuple[tuple[Tensor], tuple[Any] | None]:
    """Returns what PyTorch's exporters take as arguments and dynamic shapes, for a program of images alone.

    Args:
        example: images; where their number is left open, the first is enough.
        dynamic: whether it is left open.
        any_size: whether height and width are left open.
    """
    open_sizes = {2: torch.export.Dim("height"), 3: torch.export.Dim("width")} if any_size else {}
    if not dynamic:
        return (example.contiguous(),), (open_sizes,) if open_sizes else None
    # Two: the exporters take one image for a promise that there will always be one.
    return (repeated(example, 2),), ({0: torch.export.Dim("batch"), **open_sizes},)
