"""The kernels as operations on tensors: one folder each, the plain PyTorch reference beside the fast versions.

Semantics that every version shares:

- non-zero means `g != 0` by its bits: -0.0 is zero; subnormals, infinities and NaN are not;
- a ReLU mask selects, it does not multiply: where `y <= 0` the gradient is 0 whatever `g` holds, and a NaN in `y`
  passes `g` on, as PyTorch's own ReLU backward does;
- sums accumulate in float32 (float64 for float64 maps, which only the reference takes); counts are exact up to 2**24
  positions, and larger maps are refused;
- results are deterministic bit for bit (what is added atomically are integers alone: counts and tickets), and an
  image's result depends neither on the other images of the batch nor on the number of threads; on a GPU the order of
  summation depends on shape, strides and whether the maps begin at multiples of 16 bytes. The backend "torch" is as
  good as PyTorch's own reductions there: they may split a single sum among threads, choose another order for another
  batch size, and take flushed subnormals for zero;
- kernels run on the maps' device and the caller's current stream, wait for nothing, and may be captured in a CUDA
  graph. Triton compiles when it first meets a kind of map, and its `frobenius` and `count_and_score` copy what they
  have to know of the layers to the device then: call each once before. `count_and_score` takes its scratch from who
  calls it, or fills one with zeros in a launch of its own.

torch.vmap takes them, in one call of a kernel (`gaia_fast.ops.transforms`). They have no derivatives: torch.func.grad
and its kin are refused, and autograd finds no graph behind a result.

Around a compiled program two more, `gaia_fast.ops.copy_and_check` and `.check_results`, tell whether it means something
on a device; they write to arguments, count with atomic additions, and have no C++ version.

On the CPU, compiled programs are made of two more, `gaia_fast.ops.convolution` and `.active_everywhere`; they have no
versions for GPUs and are not in PyTorch's registry.
"""

from gaia_fast.ops.channel_moments import channel_moments
from gaia_fast.ops.count_and_score import count_and_score
from gaia_fast.ops.frobenius import frobenius
from gaia_fast.ops.relu_backward_moments import relu_backward_moments
from gaia_fast.ops.relu_forward_count import relu_forward_count

__all__ = ["channel_moments", "count_and_score", "frobenius", "relu_backward_moments", "relu_forward_count"]
