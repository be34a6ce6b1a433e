"""Which kernel backends can run here, which one a call gets, and why.

`torch` is plain PyTorch reductions on any device; `cpu` is the C++ part of the extension and `cuda` its CUDA part;
`triton` is compiled when it is first used. For tests without a GPU both of the latter can run on CPU tensors: in
Triton's interpreter (TRITON_INTERPRET=1), and in an extension whose CUDA kernels were built for the CPU.
"""

import functools
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from gaia_fast import extras
from gaia_fast.errors import ArgumentError, BackendError, MissingKernelsWarning

__all__ = ["BACKENDS", "KERNEL_DTYPES", "Availability", "Choice", "available", "choose", "kernels"]

BACKENDS = ("torch", "cpu", "triton", "cuda")
KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

try:
    import gaia_fast._kernels as kernels

    _kernels_missing = ""
except ImportError as error:
    kernels = None  # type: ignore[assignment]
    if "does not run here" in str(error):  # the level that GAIA_FAST_CPU_LEVEL names
        _advice = "change GAIA_FAST_CPU_LEVEL"
    elif (Path(__file__).parents[1] / "CMakeLists.txt").exists():
        _advice = "this is the source tree, where it is not built: run `make dev`, or start Python in another folder"
    else:
        _advice = "reinstall gaia-fast"
    _kernels_missing = f"the C++ extension gaia_fast._kernels did not import ({error}); {_advice}"


@dataclass(frozen=True)
class Availability:
    """Whether a backend can run here; `reason` says why not, or what it is. True and false like `available`."""

    available: bool
    reason: str

    def __bool__(self) -> bool:
        return self.available


@dataclass(frozen=True)
class Choice:
    """What was picked among several (an engine or a backend), and why."""

    name: str
    why: str


def available() -> dict[str, Availability]:
    """Returns every backend's name with its `Availability` on this machine.

    Example:
        >>> bool(available()["torch"])
        True
    """
    found = {"torch": Availability(True, f"PyTorch {torch.__version__} reductions")}
    for name, backend in _COMPILED.items():
        reason = backend.missing()
        found[name] = Availability(not reason, reason or backend.what())
    return found


def choose(requested: str, device: torch.device, dtype: torch.dtype) -> Choice:
    """Returns the backend that handles maps of `dtype` on `device`.

    Args:
        requested: a name of `BACKENDS`, or "auto": where they apply, the C++ kernels for maps on the CPU, and the CUDA
            kernels, else Triton's, for maps on a GPU; else plain PyTorch.

    Raises:
        ArgumentError: no such backend.
        BackendError: the backend was asked for by name and cannot handle these maps; nothing else is used instead.

    Example:
        >>> choose("torch", torch.device("cpu"), torch.float32)
        Choice(name='torch', why='asked for')
    """
    if requested not in ("auto", *BACKENDS):
        raise ArgumentError(f"backend={requested!r} does not exist; choose from {('auto', *BACKENDS)}")
    if requested == "torch":
        return Choice("torch", "asked for")
    if requested != "auto":
        obstacle = _obstacle(requested, device, dtype)
        if obstacle:
            raise BackendError(f"backend={requested!r} cannot run here: {obstacle}")
        return Choice(requested, "asked for")
    if device.type == "cuda":
        return _on_gpu(device, dtype)
    obstacle = _obstacle("cpu", device, dtype)
    if not obstacle:
        return Choice("cpu", "maps on the CPU: the C++ kernels are fastest")
    if kernels is None:
        if os.environ.get("GAIA_FAST_CPU_LEVEL"):
            raise BackendError(f"backend='cpu' cannot run here: {obstacle}")
        warnings.warn(
            f"PyTorch's slower operators take the place of this package's kernels: {_kernels_missing}",
            MissingKernelsWarning,
            stacklevel=2,
        )
    return Choice("torch", f"plain PyTorch reductions, because {obstacle}")


def has_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether "auto" is this package's own kernels for maps of `dtype` on `device`, and not plain PyTorch."""
    return choose("auto", device, dtype).name != "torch"


def _on_gpu(device: torch.device, dtype: torch.dtype) -> Choice:
    """The backend for maps on a GPU: the fastest that takes them."""
    # On an H200, means over maps, layouts and dtypes (benchmarks/results/nvidia-h200/kernels.json), of the kernels as
    # of commit f941964, before their tiling changed: Triton took 1.7 to 2.2 times as long as CUDA for a map of one
    # image, whose launch is what counts, and 1.0 to 1.8 times for many; only relu_forward_count of channels-last half
    # precision was faster in Triton. For many images both were faster than PyTorch.
    obstacles = {name: _obstacle(name, device, dtype) for name in ("cuda", "triton")}
    if not obstacles["cuda"]:
        return Choice("cuda", "maps on a GPU: the CUDA kernels are fastest")
    if not obstacles["triton"]:
        return Choice("triton", f"maps on a GPU: the CUDA kernels would be faster, but {obstacles['cuda']}")
    why = "; ".join(f"{name}: {obstacle}" for name, obstacle in obstacles.items())
    return Choice("torch", f"plain PyTorch reductions, because no kernels can run here ({why})")


def _obstacle(name: str, device: torch.device, dtype: torch.dtype) -> str:
    backend = _COMPILED[name]
    if reason := backend.missing():
        return reason
    if device.type != backend.memory():
        return f"the maps are on {device} and the backend reads {backend.memory().upper()} memory only"
    if reason := backend.on(device):
        return reason
    if dtype not in KERNEL_DTYPES:
        return f"the maps are {dtype} and the kernels take float32, float16 and bfloat16"
    return ""


def _cpu_missing() -> str:
    return _kernels_missing if kernels is None else ""


def _cpu_what() -> str:
    return f"C++ kernels, instruction-set level {kernels.cpu_level()}"


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _triton_missing() -> str:
    if reason := extras.missing("triton"):
        return reason
    if not torch.cuda.is_available() and not _interpreted():
        return "torch sees no CUDA device here"
    return ""


def _triton_what() -> str:
    return "Triton kernels in Triton's interpreter, on CPU tensors" if _interpreted() else "Triton kernels"


def _cuda_missing() -> str:
    if kernels is None:
        return _kernels_missing
    if not kernels.cuda_build():
        return "the extension was built without CUDA: reinstall with a CUDA compiler on the path and GAIA_FAST_CUDA=on"
    if _emulated():
        return ""
    if not torch.cuda.is_available():
        return "torch sees no CUDA device here"
    # Of the first device: another one that is asked for is looked at for itself.
    return "" if torch.cuda.device_count() > 1 else _cuda_obstacle(0)


def _cuda_on(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    return _cuda_obstacle(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _cuda_obstacle(device: int) -> str:
    """Why the kernels cannot be loaded on a device of this number."""
    return str(kernels.cuda_obstacle(device))


def _emulated() -> bool:
    return kernels is not None and kernels.cuda_build() == "emulated"


def _cuda_what() -> str:
    return "CUDA kernels built for the CPU" if _emulated() else f"CUDA kernels, {kernels.cuda_build()}"


@dataclass(frozen=True)
class _Kernels:
    """A backend with kernels: why it is missing (empty where it is not), what it is, whose memory it reads, and why it
    cannot run on a device of that kind.
    """

    missing: Callable[[], str]
    what: Callable[[], str]
    memory: Callable[[], str]
    on: Callable[[torch.device], str] = lambda device: ""


_COMPILED = {
    "cpu": _Kernels(_cpu_missing, _cpu_what, lambda: "cpu"),
    "triton": _Kernels(_triton_missing, _triton_what, lambda: "cpu" if _interpreted() else "cuda"),
    "cuda": _Kernels(_cuda_missing, _cuda_what, lambda: "cpu" if _emulated() else "cuda", _cuda_on),
}
