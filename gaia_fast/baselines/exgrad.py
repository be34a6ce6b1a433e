"""ExGrad (Igoe et al., 2022): the size of the loss's gradient, expected over the labels as the model predicts them."""

import torch
from torch import Tensor


def exgrad(logits: Tensor, features: Tensor) -> Tensor:
    """The expected L1 norm of the gradient of the cross-entropy with respect to the last layer's weights W.

        E over y ~ p of |d(-log p_y) / dW|_1 = |z|_1 * sum over y of p_y |p - e_y|_1 = 2 |z|_1 (1 - sum of p_y^2)

    with p the softmax of the logits, z the features and e_y the label as a one-hot vector. It is large where the model
    is unsure, so it is taken as it is: larger = more out of distribution.

    Args:
        logits: (N, C).
        features: (N, D), what the last layer reads.

    Returns:
        (N,) float64.

    Example:
        >>> exgrad(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, -2.0]]))
        tensor([3.], dtype=torch.float64)
    """
    p = torch.softmax(logits.double(), dim=1)
    return 2 * features.double().abs().sum(1) * (p * (1 - p)).sum(1)
