"""What a program launches on a CUDA device, read off the code that PyTorch's compiler makes for one that is not there.

The program is laid out and compiled as `gaia_fast.compiler.runtimes.inductor` does it on a device, its images and
constants being tensors without numbers that say they lie on one. The compiler then writes the code that calls the
kernels, which is read and never run.

Counted is each call that the code makes: a Triton kernel, a convolution or a product of matrices (one, whatever cuDNN
and cuBLAS start for it), an operator that the compiler does not write itself, a copy. Not counted: what is around the
program (the copy of the images into a CUDA graph's buffer, the checks, the copies of the results), and the padding of
matrices to a multiple of a few columns, which the compiler times on the device.

What of the device the compiler looks at, its multiprocessors foremost, is an H200's.

Where no compiler is asked, as in `gaia_fast.compiler.runtimes.cudagraph`, what is launched is read off the graph.
"""

import ast
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch._inductor.config
import torch.utils._triton
from torch import Tensor, fx
from torch._dynamo.device_interface import CudaInterface
from torch._inductor.exc import InductorError
from torch._inductor.fx_passes import joint_graph
from torch._inductor.graph import GraphLowering
from torch._prims_common import suggest_memory_format
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from gaia_fast.compiler.frontend.example_batch import repeated
from gaia_fast.compiler.ir.rewriting import copy_of
from gaia_fast.compiler.pipeline import cuda, run_passes
from gaia_fast.compiler.runtimes.inductor import Frozen
from gaia_fast.errors import CompilationError

_DEVICE = torch.device("cuda", 0)
_H200 = SimpleNamespace(
    name="NVIDIA H200",
    major=9,
    minor=0,
    multi_processor_count=132,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    total_memory=140 << 30,
    L2_cache_size=50 << 20,
    shared_memory_per_block=48 << 10,
    shared_memory_per_block_optin=227 << 10,
)
# Calls that start nothing on the device.
_BOOKKEEPING = {
    "args.clear",
    "assert_alignment",
    "assert_size_stride",
    "copy_if_misaligned",
    "empty_strided_cuda",
    "get_raw_stream",
    "reinterpret_tensor",
    "torch.cuda._DeviceGuard",
    "torch.cuda.set_device",
}
# Operators that start nothing: of a size, and of a map that lies as the view wants it.
_NOTHING = {torch.ops.aten.sym_size.int, torch.ops.aten.reshape.default}


def launches(graph: fx.GraphModule, x: Tensor, images: int) -> Counter[str]:
    """Returns how often each kernel is launched for so many images, by what the compiler calls it, its number left out.

    Args:
        graph: a program, on the CPU; stays as it was.
        x: images, of which the first is enough.
    """
    laid_out = run_passes(cuda(images, _H200.L2_cache_size), copy_of(graph))
    return count(generated_code(laid_out, repeated(x, images)))


def operators(graph: fx.GraphModule) -> Counter[str]:
    """Returns how often each operator of a graph is launched, where PyTorch runs one after the other.

    A convolution's bias is another launch, and named so: PyTorch adds it to what cuDNN gives. Not counted are views,
    and what is read or asked and not computed.
    """
    found = Counter[str]()
    for node in graph.graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if node.target is torch.ops.aten.convolution.default and node.args[2] is not None:
            found["bias"] += 1
        if node.target not in _NOTHING and not node.target.is_view:
            found[node.target._opname] += 1
    return found


def generated_code(graph: fx.GraphModule, x: Tensor) -> str:
    """Returns what the compiler writes for a program on a device, from one on the CPU and images on the CPU."""
    code: list[str] = []

    def keep(lowered: GraphLowering) -> None:
        wrapper, _ = lowered.codegen()
        code.append(wrapper.value)
        raise _GeneratedError

    on_device = _OnDevice()
    with _fake_device(), mock.patch.object(GraphLowering, "compile_to_module", keep):
        try:
            Frozen(on_device.graph(graph), on_device.tensor(x))
        except CompilationError as error:
            cause = error.__cause__
            if not (isinstance(cause, InductorError) and isinstance(cause.inner_exception, _GeneratedError)):
                raise
    (only,) = code
    return only


def count(code: str) -> Counter[str]:
    """Returns the calls in generated code that start something on the device, by name."""
    (call,) = (each for each in ast.walk(ast.parse(code)) if isinstance(each, ast.FunctionDef) and each.name == "call")
    names = [ast.unparse(each.func) for each in ast.walk(call) if isinstance(each, ast.Call)]
    return Counter(_without_number(name) for name in names if name not in _BOOKKEEPING)


def _without_number(name: str) -> str:
    name = name.removesuffix(".run").removeprefix("extern_kernels.")
    kernel, _, number = name.rpartition("_")
    return kernel if kernel.startswith("triton_") and number.isdigit() else name


class _GeneratedError(Exception):
    """The code is there; nothing is to be loaded."""


class _OnDevice:
    """Makes tensors without numbers, on a device."""

    def __init__(self) -> None:
        self._mode = FakeTensorMode()

    def tensor(self, value: Tensor) -> Tensor:
        with self._mode:
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=_DEVICE)

    def graph(self, module: fx.GraphModule) -> fx.GraphModule:
        moved = copy_of(module)
        for name, value in [*moved.named_parameters(), *moved.named_buffers()]:
            delattr(moved, name)
            moved.register_buffer(name, self.tensor(value))
        for node in moved.graph.nodes:
            if "device" in node.kwargs:
                node.update_kwarg("device", _DEVICE)
        moved.recompile()
        return moved


def _strided(x: Tensor, stride: list[int]) -> Tensor:
    return torch.empty_strided(x.shape, tuple(stride), dtype=x.dtype, device=x.device)


def _layout_of_cudnn(x: Tensor, weight: Tensor, _: Any) -> torch.memory_format:
    last = torch.channels_last in (suggest_memory_format(x), suggest_memory_format(weight))
    return torch.channels_last if last else torch.contiguous_format


def _deduced_on_cpu(folder: joint_graph.UniformValueConstantFolder, node: fx.Node) -> Any:
    """What the compiler computes of tensors that are the same everywhere: it does so on their device."""
    given = node.kwargs
    node.kwargs = {
        key: torch.device("cpu") if isinstance(value, torch.device) else value for key, value in given.items()
    }
    try:
        value = _DEDUCE(folder, node)
    finally:
        node.kwargs = given
    return folder.unknown_value if isinstance(value, FakeTensor) else value


_DEDUCE = joint_graph.UniformValueConstantFolder._deduce_value


@contextmanager
def _fake_device() -> Iterator[None]:
    """Has the compiler find a device; no more of PyTorch does."""
    # On the CPU: the patterns are the same, and tracing them on the device is not possible.
    joint_graph.lazy_init(torch.device("cpu"))
    force_stride = torch.ops.prims.inductor_force_stride_order.default
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    with ExitStack() as stack:
        # As users run it: the tests' own setting would have some operators done by others.
        stack.callback(torch.use_deterministic_algorithms, deterministic, warn_only=warn_only)
        torch.use_deterministic_algorithms(False)
        # The answer is kept for the process.
        stack.callback(torch.utils._triton.has_triton.cache_clear)
        torch.utils._triton.has_triton.cache_clear()
        stack.enter_context(torch._inductor.config.patch(shape_padding=False, compile_threads=1))
        for owner, name, value in (
            (CudaInterface, "is_available", lambda: True),
            (CudaInterface, "get_device_properties", lambda device=None: _H200),
            (CudaInterface, "get_compute_capability", lambda device=None: 90),
            (CudaInterface.Worker, "get_device_properties", lambda device=None: _H200),
            (torch.cuda, "get_device_properties", lambda device=None: _H200),
            (torch.cuda, "get_device_capability", lambda device=None: (9, 0)),
            (torch.utils._triton, "triton_hash_with_backend", lambda: ""),
            (joint_graph, "lazy_init", lambda device=None: None),
            (joint_graph.UniformValueConstantFolder, "_deduce_value", _deduced_on_cpu),
            # A build without cuDNN says that convolutions give NCHW whatever they are given.
            (torch._C, "_conv_determine_backend_memory_format", _layout_of_cudnn),
            # The operator's own copies a tensor, which asks for a driver.
            (force_stride, "prim_meta_impl", _strided),
        ):
            stack.enter_context(mock.patch.object(owner, name, value))
        yield
