"""The program in onnxruntime: on the CPU the fastest float32 convolutions that were measured. Optional."""

import torch
from torch import Tensor

from gaia_fast import extras
from gaia_fast.compiler.onnx.conversion import Conversion, missing
from gaia_fast.compiler.runtimes.runner import Guard, check_float32_on_cpu, no_guard


class OnnxRuntime:
    """Runs a program as an ONNX graph; float32 on the CPU, any number of images.

    Uses as many threads as PyTorch does, and none that spins while it waits: spinning threads of several sessions slow
    each other, and PyTorch, down.

    Args:
        convert: makes the graph.
        example: images.

    Raises:
        BackendError: a package is missing, or other images than float32 on the CPU.
        CompilationError: no ONNX graph can be made.
    """

    def __init__(self, convert: Conversion, example: Tensor) -> None:
        check_float32_on_cpu("onnxruntime", missing(), example)
        onnxruntime = extras.load("onnxruntime", "onnx", "runtime='onnxruntime'")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        model = convert()
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._name = self._session.get_inputs()[0].name

    def __call__(self, x: Tensor, guard: Guard = no_guard) -> tuple[Tensor, ...]:
        guard()
        found = self._session.run(None, {self._name: x.detach().contiguous().numpy()})
        return tuple(torch.from_numpy(each) for each in found)
