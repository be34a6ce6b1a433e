"""`frobenius` in plain PyTorch."""

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def frobenius_reference(
    moments: Tensor, widths: Sequence[int], inverse_area: Sequence[float], output_component: Tensor | None, p: float
) -> Tensor:
    """Returns the (N,) p-norms of the packed rows; see `frobenius`."""
    area = torch.tensor(inverse_area, dtype=torch.float64, device=moments.device)
    eps = moments.double() * area.repeat_interleave(torch.tensor(widths, dtype=torch.int64, device=moments.device))
    if output_component is not None:
        eps = eps / output_component.double().unsqueeze(1)
    return torch.linalg.vector_norm(eps, ord=p, dim=1).to(moments.dtype)
