"""Which kernel backends can run here, which one a call gets, and why.

`torch` is plain PyTorch reductions on any device; `cpu` is the C++ extension. `triton` and `cuda` are named so that
asking for them gets a reason.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

from gaia_fast.errors import ArgumentError, BackendError

BACKENDS = ("torch", "cpu", "triton", "cuda")
CPU_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

kernels: ModuleType | None
try:
    from gaia_fast import _kernels as kernels  # type: ignore[attr-defined, no-redef]

    _kernels_missing = ""
except ImportError as error:
    kernels = None
    if os.environ.get("GAIA_FAST_CPU_LEVEL"):
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
    """Returns every backend's name with its `Availability` on this machine."""
    if kernels is None:
        cpu = Availability(False, _kernels_missing)
    else:
        cpu = Availability(True, f"C++ kernels, instruction-set level {kernels.cpu_level()}")
    return {
        "torch": Availability(True, f"PyTorch {torch.__version__} reductions"),
        "cpu": cpu,
        "triton": Availability(False, "this version of gaia_fast has no Triton kernels yet"),
        "cuda": Availability(False, "this version of gaia_fast has no CUDA kernels yet"),
    }


def choose(requested: str, device: torch.device, dtype: torch.dtype) -> Choice:
    """Returns the backend that handles maps of `dtype` on `device`.

    Args:
        requested: a name of `BACKENDS`, or "auto": the C++ kernels where they apply, else plain PyTorch.

    Raises:
        ArgumentError: no such backend.
        BackendError: the backend was asked for by name and cannot handle these maps; nothing else is used instead.
    """
    if requested not in ("auto", *BACKENDS):
        raise ArgumentError(f"backend={requested!r} does not exist; choose from {('auto', *BACKENDS)}")
    if requested == "torch":
        return Choice("torch", "asked for")
    if requested in ("triton", "cuda"):
        raise BackendError(f"backend={requested!r} cannot run here: {available()[requested].reason}")
    obstacle = _cpu_obstacle(device, dtype)
    if not obstacle:
        return Choice("cpu", "asked for" if requested == "cpu" else "maps on the CPU: the C++ kernels are fastest")
    if requested == "cpu" or (kernels is None and os.environ.get("GAIA_FAST_CPU_LEVEL")):
        raise BackendError(f"backend='cpu' cannot run here: {obstacle}")
    return Choice("torch", f"plain PyTorch reductions, because {obstacle}")


def _cpu_obstacle(device: torch.device, dtype: torch.dtype) -> str:
    if kernels is None:
        return _kernels_missing
    if device.type != "cpu":
        return f"the maps are on {device} and the C++ kernels read CPU memory only"
    if dtype not in CPU_DTYPES:
        return f"the maps are {dtype} and the C++ kernels take float32, float16 and bfloat16"
    return ""
