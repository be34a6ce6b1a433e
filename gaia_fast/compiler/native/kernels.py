"""The kernels that fusion puts into a program: this package's own, as modules with their weights."""

import torch
from torch import Tensor, nn

from gaia_fast.ops.convolution import Part, convolution_cpu, output_size
from gaia_fast.ops.convolution.packing import Algorithm
from gaia_fast.ops.convolution.parts import Pair
from gaia_fast.ops.maps import ABS_SUM, SUM
from gaia_fast.ops.relu_backward_moments import relu_backward_moments
from gaia_fast.ops.relu_forward_count import relu_forward_count


class Convolution(nn.Module):
    """`gaia_fast.ops.convolution` with its weights: (x, residual, relu_mask, skip) to (y, sums), unchecked.

    Attributes:
        parts: what makes the outputs.
        bias, scale, relu, statistic, algorithm: as in `gaia_fast.ops.convolution`.
        input_size: the size of the outputs of an adjoint; None where the size of the input tells.
    """

    def __init__(
        self,
        parts: list[Part],
        bias: Tensor | None,
        scale: Tensor | None,
        input_size: Pair | None,
        relu: bool,
        statistic: str | None,
        algorithm: Algorithm | None = None,
    ) -> None:
        super().__init__()
        self.parts, self.input_size, self.algorithm = parts, input_size, algorithm
        self.relu, self.statistic = relu, statistic
        self.bias, self.scale = (None if each is None else each.contiguous() for each in (bias, scale))

    @property
    def outputs(self) -> int:
        return self.parts[0].weights.shape[0]

    def out(self, shape: torch.Size) -> Pair:
        """(H', W') for inputs of this shape."""
        first = self.parts[0]
        return self.input_size or output_size(shape, first.weights.shape, first.stride, first.padding, first.dilation)

    def forward(
        self, x: Tensor, residual: Tensor | None, relu_mask: Tensor | None, skip: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        epilogue = self.bias, residual, relu_mask, self.scale, skip
        return convolution_cpu(x, self.parts, self.algorithm, *epilogue, self.relu, self.statistic, self.out(x.shape))


class Pointwise(nn.Module):
    """`relu_forward_count`, or behind a ReLU mask `relu_backward_moments`, called as a convolution is.

    Attributes:
        factor, shift: (K,), before the ReLU; None for 1 and 0.
        scale: (K,), behind the ReLU mask; None for 1.
        statistic: "positive", or behind a ReLU mask "sum" or "abs_sum".
    """

    def __init__(
        self, factor: Tensor | None, shift: Tensor | None, scale: Tensor | None, statistic: str | None
    ) -> None:
        super().__init__()
        self.factor, self.shift, self.scale = (
            None if each is None else each.contiguous() for each in (factor, shift, scale)
        )
        self.statistic = statistic

    def forward(
        self, x: Tensor, residual: Tensor | None, relu_mask: Tensor | None, skip: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if relu_mask is None:
            return relu_forward_count(x, self.factor, self.shift, residual, backend="cpu")
        grad_in, moments = relu_backward_moments(x, relu_mask, self.scale, backend="cpu")
        return grad_in, moments[ABS_SUM if self.statistic == "abs_sum" else SUM]
