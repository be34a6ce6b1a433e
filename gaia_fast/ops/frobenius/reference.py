"""`frobenius` in plain PyTorch."""

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def frobenius_reference(
    moments: Tensor,
    begins: Sequence[int],
    widths: Sequence[int],
    inverse_area: Sequence[float],
    output_component: Tensor | None,
    p: float,
    score: Tensor,
) -> None:
    """Writes the (N,) p-norms of the rows; see `frobenius`."""
    layers = [moments.narrow(1, begin, width) for begin, width in zip(begins, widths, strict=True)]
    moments = torch.cat(layers, dim=1) if layers else moments[:, :0]
    area = torch.tensor(inverse_area, dtype=torch.float64, device=moments.device)
    eps = moments.double() * area.repeat_interleave(
        torch.tensor(widths, dtype=torch.int64, device=moments.device), output_size=sum(widths)
    )
    if output_component is not None:
        eps = eps / output_component.double().unsqueeze(1)
    score.copy_(torch.linalg.vector_norm(eps, ord=p, dim=1))
