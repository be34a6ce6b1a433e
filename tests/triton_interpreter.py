"""Triton's interpreter with the conversions between bfloat16 and float32 that its compiler makes.

Its own cut the mantissa off where the hardware rounds to nearest even, and read subnormals as zero. Importing this
mends it, so that the kernels are held to the same contract there as on a GPU.
"""

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

_own = interpreter._convert_float


def _convert_float(values: np.ndarray, source: tl.dtype, target: tl.dtype, rounding: object) -> np.ndarray:
    if (source, target) == (tl.bfloat16, tl.float32):
        halves = torch.from_numpy(values.view(np.int16).copy()).view(torch.bfloat16)
        return halves.float().numpy().view(np.uint32)
    if (source, target) == (tl.float32, tl.bfloat16):
        wide = torch.from_numpy(values.view(np.float32).copy())
        return wide.bfloat16().view(torch.int16).numpy().view(np.uint16)
    return _own(values, source, target, rounding)


interpreter._convert_float = _convert_float
