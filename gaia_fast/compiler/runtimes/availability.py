"""Which runtimes can run here, and what they are."""

from collections.abc import Callable

import torch

from gaia_fast import extras
from gaia_fast.backends import Availability, kernels
from gaia_fast.compiler.runtimes import native
from gaia_fast.errors import BackendError, GaiaError, first_line
from gaia_fast.options import Runtime


def available() -> dict[str, Availability]:
    """Returns every runtime's name with its `Availability` here. The packages that runtimes are of are imported.

    Example:
        >>> bool(available()["eager"])
        True
    """
    found = {}
    for runtime in Runtime:
        try:
            found[runtime.value] = Availability(True, _WHAT[runtime]())
        except GaiaError as error:
            found[runtime.value] = Availability(False, str(error))
    return found


def _eager() -> str:
    return "PyTorch's operators, one by one"


def _native() -> str:
    _refuse(native.missing())
    return f"this package's kernels, instruction-set level {kernels.cpu_level()}"


def _inductor() -> str:
    if torch.cuda.is_available():
        _refuse(extras.missing("triton"))
        return "PyTorch's compiler, with Triton"
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler

        return f"PyTorch's compiler, with {get_cpp_compiler()}"
    except Exception as error:
        raise BackendError(
            f"PyTorch's compiler finds no C++ compiler ({first_line(error)}): install one, or set CXX to it"
        ) from error


def _cudagraph() -> str:
    _refuse("" if torch.cuda.is_available() else "torch sees no CUDA device here")
    return "PyTorch's operators, recorded"


def _package(name: str, extra: str) -> Callable[[], str]:
    def what() -> str:
        _refuse(extras.missing(extra))
        module = extras.load(name, extra, f"runtime={name!r}")
        return f"{name} {getattr(module, '__version__', 'of an unknown version')}"

    return what


def _refuse(reason: str) -> None:
    if reason:
        raise BackendError(reason)


_WHAT: dict[str, Callable[[], str]] = {
    Runtime.EAGER: _eager,
    Runtime.NATIVE: _native,
    Runtime.INDUCTOR: _inductor,
    Runtime.ONNXRUNTIME: _package("onnxruntime", "onnx"),
    Runtime.OPENVINO: _package("openvino", "openvino"),
    Runtime.CUDAGRAPH: _cudagraph,
}
