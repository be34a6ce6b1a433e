"""Whether results mean something: finite numbers, and an output component that can be divided by.

A batch has one answer, so that a device is waited for once; `gaia_fast.inspection.checks` finds the images at fault.
"""

import torch
from torch import Tensor

from gaia_fast.backends import kernels


def all_finite(x: Tensor) -> bool | Tensor:
    """Whether every number of a tensor of any shape is finite: a bool, or where a device has to tell, a 0-d tensor."""
    layout = torch.channels_last if x.ndim == 4 and not x.is_contiguous() else torch.contiguous_format
    if _readable(x) and x.is_contiguous(memory_format=layout):
        return kernels.all_finite(x.data_ptr(), x.numel())
    return torch.isfinite(x).all()


def results_hold(
    logits: Tensor, score: Tensor, preconditions: Tensor | None = None, component: Tensor | None = None
) -> bool | Tensor:
    """Whether all of a batch's results mean something: a bool, or where a device has to tell, a 0-d tensor.

    Args:
        logits: (N, C), to be finite.
        score: (N,), to be finite.
        preconditions: (N, P), to be positive; None for none.
        component: (N,), to be `divisible`; None where nothing is divided.
    """
    given = [each for each in (logits, score, preconditions, component) if each is not None]
    if all(_readable(each) and each.is_contiguous() for each in given):
        images, classes = logits.shape
        return kernels.results_hold(
            logits.data_ptr(),
            images,
            classes,
            score.data_ptr(),
            0 if preconditions is None else preconditions.data_ptr(),
            0 if preconditions is None else preconditions.shape[1],
            0 if component is None else component.data_ptr(),
            rounding(classes, torch.float32),
        )
    fine = [torch.isfinite(logits).all(), torch.isfinite(score).all()]
    if preconditions is not None:
        fine.append((preconditions > 0).all())
    if component is not None:
        fine.append(divisible(component, logits).all())
    return torch.stack(fine).all()


def finite_per_image(x: Tensor) -> Tensor:
    """Returns (N,) bools: in which images of (N, ...) every number is finite. Three launches on a device."""
    total = x.flatten(1).sum(1, dtype=torch.float64)  # which no sum of narrower numbers overflows
    return total - total == 0


def results_hold_per_image(
    logits: Tensor, score: Tensor, preconditions: Tensor | None = None, component: Tensor | None = None
) -> Tensor:
    """Returns (N,) bools: which images' results hold, of results as in `results_hold`; few launches on a device."""
    total = logits.sum(1, dtype=torch.float64) + score
    fine = total - total == 0
    if preconditions is not None and preconditions.shape[1]:
        fine = fine & (preconditions.amin(1) > 0)
    return fine if component is None else fine & divisible(component, logits)


def all_hold(answers: Tensor) -> bool | Tensor:
    """Whether all of several images' answers are yes, (N,): a bool, or where a device has to tell, a 0-d tensor."""
    if answers.dtype is torch.float32 and answers.is_cpu and kernels is not None and answers.is_contiguous():
        return kernels.all_positive(answers.data_ptr(), answers.numel())
    if answers.dtype is torch.bool and answers.is_cpu:
        return bool(answers.numpy().all())
    return answers.all()


def together(answers: list[bool | Tensor]) -> bool:
    """Whether all of several answers are yes. One look at those that a device has to tell: each waits for it."""
    asked = [each for each in answers if isinstance(each, Tensor)]
    if not all(each for each in answers if isinstance(each, bool)):
        return False
    if len(asked) > 1:  # of a model on several devices, the logits are on another one than the maps
        asked = [torch.stack([each.to(asked[0].device) for each in asked]).all()]
    return bool(asked[0]) if asked else True


def divisible(component: Tensor, logits: Tensor) -> Tensor:
    """Returns (N,) bools: which images' output component (N,) can be divided by.

    Equal logits have no gradient; what rounding leaves of it is no better than zero.
    """
    classes = logits.shape[1]
    wide = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
    slope = (1 - classes * torch.softmax(wide, dim=1)).abs().amax(1)
    uniform = slope <= rounding(classes, wide.dtype)
    return (component > 0) & ~uniform.to(component.device)


def rounding(classes: int, dtype: torch.dtype) -> float:
    """Returns the largest |1 - C softmax(S)| that is rounding alone."""
    return 16 * torch.finfo(dtype).eps * classes


def _readable(x: Tensor) -> bool:
    if kernels is None or x.dtype != torch.float32 or x.device.type != "cpu":
        return False
    return not x.is_neg() and not x._is_zerotensor()
