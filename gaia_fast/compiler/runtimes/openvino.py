"""The program in OpenVINO, from the same ONNX graph that onnxruntime takes. Optional."""

import threading

import torch
from torch import Tensor

from gaia_fast import extras
from gaia_fast.compiler.onnx.conversion import Conversion
from gaia_fast.compiler.runtimes.runner import Guard, check_float32_on_cpu, no_guard
from gaia_fast.errors import CompilationError, first_line


class OpenVino:
    """Runs a program as a compiled OpenVINO model; float32 on the CPU, any number of images.

    Uses as many threads as PyTorch does. Computes in float32: left to itself OpenVINO takes bfloat16 where the
    processor has it.

    Args:
        convert: makes the ONNX graph that is compiled.
        example: images.

    Raises:
        BackendError: a package is missing, or other images than float32 on the CPU.
        CompilationError: no ONNX graph can be made, or OpenVINO cannot compile it.
    """

    def __init__(self, convert: Conversion, example: Tensor) -> None:
        check_float32_on_cpu("openvino", missing(), example)
        openvino = extras.load("openvino", "openvino", "runtime='openvino'")
        model = convert()
        core = openvino.Core()
        hints = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": "f32",
        }
        try:
            self._model = core.compile_model(core.read_model(model.SerializeToString()), "CPU", hints)
        except RuntimeError as error:
            raise CompilationError(
                f"OpenVINO cannot compile the program: {first_line(error)}; use another runtime"
            ) from error
        self._local = threading.local()

    def __call__(self, x: Tensor, guard: Guard = no_guard) -> tuple[Tensor, ...]:
        guard()
        request = getattr(self._local, "request", None)  # a request runs one batch at a time
        if request is None:
            request = self._local.request = self._model.create_infer_request()
        request.infer({0: x.detach().contiguous().numpy()})
        return tuple(
            torch.from_numpy(request.get_output_tensor(i).data.copy()) for i in range(len(self._model.outputs))
        )


def missing() -> str:
    """Why OpenVINO cannot run programs here; empty where it can."""
    return extras.missing("openvino")
