"""Which algorithm a convolution gets, measured on the machine it runs on.

The answers are kept: see `gaia_fast.timing_cache`.
"""

import json
import time

import torch

from gaia_fast.backends import kernels
from gaia_fast.ops.convolution.packing import Algorithm, packed_size, padded
from gaia_fast.ops.convolution.parts import Pair, Part
from gaia_fast.timing_cache import TimingCache

# What the model of `packing` chooses stands unless another is faster by so much: less is noise.
_FASTER_BY = 1.05
_RUNS = 5
_LEAST_SECONDS = 2e-4  # shorter runs are repeated
# Of more operations than these a part of the images tells as much.
_MOST_OPERATIONS = 1e9
# Between two uses of a layer's weights a network reads all others, so copies of them are gone through: of no more
# bytes, no more operations, no more of them.
_MOST_BYTES = 64 << 20
_MOST_OPERATIONS_OF_COPIES = 4e9
_MOST_COPIES = 256

ANSWERS = TimingCache(
    "algorithms", lambda value: isinstance(value, int) and value in {each.value for each in Algorithm}
)


def measured_algorithm(
    part: Part, x: torch.Size, out: Pair, model: Algorithm, others: list[Algorithm], network_bytes: int
) -> Algorithm:
    """Returns the fastest of some algorithms.

    Args:
        part: the convolution.
        x: the shape of the map, (N, C, H, W).
        out: how many positions it makes, axis by axis.
        model: what is used unless another is clearly faster.
        others: what else could be used.
        network_bytes: of the weights of the network that the convolution is of.
    """
    if not others:
        return model
    window = part.stride, part.padding, part.dilation
    # Networks of about the same size share answers.
    weight_bytes = min(_MOST_BYTES, 1 << max(network_bytes - 1, 1).bit_length())
    key = json.dumps([list(part.weights.shape), *window, list(x), torch.get_num_threads(), weight_bytes])

    def measure() -> int:
        seconds = {each: _seconds(part, x, out, each, weight_bytes) for each in (model, *others)}
        fastest = min(seconds, key=lambda each: seconds[each])
        return int(fastest if seconds[fastest] * _FASTER_BY < seconds[model] else model)

    return Algorithm(ANSWERS.get(key, measure))


def _seconds(part: Part, x: torch.Size, out: Pair, algorithm: Algorithm, weight_bytes: int) -> float:
    """What a convolution by an algorithm takes, at best; of numbers that do not matter."""
    outputs, _, height, width = part.weights.shape
    operations = 2.0 * part.weights.weight.numel() * out[0] * out[1]
    images = max(1, min(x[0], int(_MOST_OPERATIONS / operations)))
    packed = packed_size(part.weights, algorithm)
    most = min(_MOST_COPIES, int(_MOST_OPERATIONS_OF_COPIES / (operations * images)))
    copies = max(1, min(most, -(-weight_bytes // (4 * packed))))
    weights, given = torch.full((copies * packed,), 0.01), torch.full((images * x[1] * x[2] * x[3],), 0.5)
    y = torch.empty(images * padded(outputs) * out[0] * out[1])
    steps = [
        kernels.ConvolutionStep(
            wave=i,
            algorithm=algorithm,
            x=(-1, given.data_ptr(), x[1]),
            shape=(images, *x[1:]),
            packed=(-1, weights.data_ptr() + 4 * i * packed, 0),
            packed_size=packed,
            out=out,
            outputs=padded(outputs),
            kernel=(height, width),
            stride=part.stride,
            padding=part.padding,
            dilation=part.dilation,
            y_size=out,
            begin=(0, 0),
            step=(1, 1),
            epilogue=kernels.Epilogue(y=(-1, y.data_ptr(), padded(outputs)), channels=outputs),
        )
        for i in range(copies)
    ]
    executable, threads, best = kernels.Executable(steps), torch.get_num_threads(), float("inf")
    executable.run([], threads)
    for _ in range(_RUNS):
        runs, start = 0, time.perf_counter()
        while runs == 0 or time.perf_counter() - start < _LEAST_SECONDS:
            executable.run([], threads)
            runs += 1
        best = min(best, (time.perf_counter() - start) / runs)
    return best / (copies * images)
