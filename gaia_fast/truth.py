"""What every engine is held to: the same model in float64, and how far a score is from its."""

import copy

import torch
from torch import Tensor, nn

from gaia_fast.errors import ModelError


def copy_in(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Returns a copy of the model in another dtype: float64 for the reference.

    Raises:
        ModelError: the model cannot be copied, or not converted.
    """
    try:
        return copy.deepcopy(model).to(dtype)
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be copied to {dtype} ({type(error).__name__}: {error}); give a model that "
            f"copy.deepcopy(model).to({dtype}) takes"
        ) from error


def relative_error(score: Tensor, truth: Tensor) -> float:
    """Returns the largest |score - truth| / |truth| of (N,) scores, computed in float64; 0.0 for none."""
    error = (score.double() - truth.double()).abs() / truth.double().abs().clamp_min(torch.finfo(torch.float64).tiny)
    return float(error.max()) if error.numel() else 0.0
