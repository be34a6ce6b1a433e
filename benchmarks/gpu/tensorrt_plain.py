"""A model's own forward pass in NVIDIA's TensorRT: what it is compared with where that is installed."""

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

from gaia_fast.compiler.runtimes.recorded import Recorded
from gaia_fast.compiler.runtimes.runner import Guard, Runner, no_guard


def tensorrt_plain(model: nn.Module, x: Tensor) -> Recorded:
    """Returns a function of images like `x` that gives the logits alone, in a CUDA graph, in the dtype of `x`.

    Raises:
        ModuleNotFoundError: neither torch_tensorrt nor tensorrt, with what writes an ONNX file, is installed.
    """
    if importlib.util.find_spec("torch_tensorrt") is not None:
        run = _through_torch(model, x)
    elif importlib.util.find_spec("tensorrt") is not None:
        run = _through_onnx(model, x)
    else:
        raise ModuleNotFoundError("neither torch_tensorrt nor tensorrt is installed")
    return Recorded(run, x, None)


def _through_torch(model: nn.Module, x: Tensor) -> Runner:
    import torch_tensorrt

    compiled = torch_tensorrt.compile(model, ir="dynamo", inputs=[x], enabled_precisions={x.dtype}, min_block_size=1)

    @torch.no_grad()
    def run(x: Tensor, guard: Guard = no_guard) -> tuple[Tensor, ...]:
        return (compiled(x),)

    return run


def _through_onnx(model: nn.Module, x: Tensor) -> Runner:
    import tensorrt as trt

    exported = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    assert exported is not None
    written = exported.model_proto.SerializeToString()
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    flags: Any = trt.NetworkDefinitionCreationFlag
    network = builder.create_network(1 << int(flags.STRONGLY_TYPED))  # the file's dtypes, not what it would choose
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(written):
        raise RuntimeError(f"TensorRT does not read the file: {parser.get_error(0)}")
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    context = engine.create_execution_context()
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    given = next(name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT)
    logits = next(name for name in names if name != given)
    shape = tuple(engine.get_tensor_shape(logits))

    def run(x: Tensor, guard: Guard = no_guard) -> tuple[Tensor, ...]:
        out = torch.empty(shape, dtype=x.dtype, device=x.device)
        context.set_tensor_address(given, x.data_ptr())
        context.set_tensor_address(logits, out.data_ptr())
        if not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise RuntimeError("TensorRT does not run the network")
        return (out,)

    return run
