"""The program in onnxruntime: on the CPU the fastest float32 convolutions that were measured. Optional."""

import torch
from torch import Tensor

from gaia_fast.compiler.onnx.conversion import Conversion, missing
from gaia_fast.compiler.onnx.session import open_session
from gaia_fast.compiler.runtimes.runner import Guard, check_float32_on_cpu, no_guard


class OnnxRuntime:
    """Runs a program as an ONNX graph; float32 on the CPU, any number of images.

    Args:
        convert: makes the graph.
        example: images.

    Raises:
        BackendError: a package is missing, or other images than float32 on the CPU.
        CompilationError: no ONNX graph can be made.
    """

    def __init__(self, convert: Conversion, example: Tensor) -> None:
        check_float32_on_cpu("onnxruntime", missing(), example)
        self._session = open_session(convert().SerializeToString(), "runtime='onnxruntime'")
        self._name = self._session.get_inputs()[0].name

    def __call__(self, x: Tensor, guard: Guard = no_guard) -> tuple[Tensor, ...]:
        guard()
        found = self._session.run(None, {self._name: x.detach().contiguous().numpy()})
        return tuple(torch.from_numpy(each) for each in found)
