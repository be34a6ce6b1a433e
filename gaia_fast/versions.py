"""What is here: kernels, backends, runtimes, packages, the machine. `gaia-fast --version` prints it."""

import importlib.metadata
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from gaia_fast import backends
from gaia_fast._version import __version__
from gaia_fast.backends import Availability, kernels
from gaia_fast.compiler.runtimes import availability
from gaia_fast.errors import first_line
from gaia_fast.extras import EXTRAS, how_to_install

_REQUIRED = ("torch", "numpy", "safetensors", "scikit-learn", "pillow", "click", "rich")
_NO = "no: "


def show_versions() -> None:
    """Prints the version and all that scores and times may depend on here: put it into a report of an error.

    Kernels, backends and runtimes, each with what it is or why it cannot run; packages; the machine.

    Example:
        >>> show_versions()  # doctest: +ELLIPSIS
        gaia-fast ...
    """
    print(version_report())


def version_report() -> str:
    """Returns what `show_versions` prints. The first line is `gaia-fast` and the version, nothing else.

    Example:
        >>> version_report().splitlines()[0].split()[0]
        'gaia-fast'
    """
    sections = versions()
    width = max(len(name) for section in sections.values() for name in section)
    lines = [f"gaia-fast {__version__}"]
    for title, section in sections.items():
        lines += ["", f"{title}:", *(f"  {name:{width}}  {text}" for name, text in section.items())]
    return "\n".join(lines)


def versions() -> dict[str, dict[str, str]]:
    """Returns what `show_versions` prints below its first line: sections by title, in each a text by name.

    What cannot be found out says so in its place; nothing is raised.

    Example:
        >>> list(versions())
        ['kernels', 'backends', 'runtimes', 'packages', 'machine']
    """
    return {
        "kernels": {"C++": _found(_cpu_kernels), "CUDA": _found(_cuda_kernels)},
        "backends": _told(backends.available),
        "runtimes": _told(availability.available),
        "packages": {
            **{name: _found(lambda name=name: _version(name)) for name in _REQUIRED},  # type: ignore[misc]
            **{name: _found(lambda name=name: _optional(name)) for name in _OPTIONAL},  # type: ignore[misc]
        },
        "machine": {
            "processor": _found(processor),
            "threads": _found(
                lambda: f"PyTorch uses {torch.get_num_threads()}; the machine has {os.cpu_count()} processors"
            ),
            "GPUs": _found(_gpus),
            "Python": _found(platform.python_version),
            "system": _found(platform.platform),
        },
    }


def processor() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine() or "an unnamed processor"


# By the name that pip knows, the extras that install it.
_OPTIONAL: Mapping[str, list[str]] = {
    name.replace("_", "-"): [extra for extra, names in EXTRAS.items() if name in names]
    for name in dict.fromkeys(name for names in EXTRAS.values() for name in names)
}


def _found(what: Callable[[], str]) -> str:
    try:
        return what()
    except Exception as error:  # of a package that is broken in whichever way
        return f"not to be found out ({type(error).__name__}: {first_line(error)})"


def _told(available: Callable[[], Mapping[str, Availability]]) -> dict[str, str]:
    try:
        return {name: each.reason if each else f"{_NO}{each.reason}" for name, each in available().items()}
    except Exception as error:
        return {"all": f"not to be found out ({type(error).__name__}: {first_line(error)})"}


def _cpu_kernels() -> str:
    if kernels is None:
        return f"{_NO}{backends.available()['cpu'].reason}"
    return (
        f"instruction-set level {kernels.cpu_level()}; this processor runs {', '.join(kernels.cpu_levels())}; "
        f"built were {', '.join(kernels.built_cpu_levels())}"
    )


def _cuda_kernels() -> str:
    if kernels is None:
        return f"{_NO}{backends.available()['cuda'].reason}"
    build = kernels.cuda_build()
    return f"built for {'the CPU' if build == 'emulated' else build}" if build else f"{_NO}left out of this build"


def _version(name: str) -> str:
    return str(importlib.metadata.version(name))


def _optional(name: str) -> str:
    try:
        return _version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"{_NO}{' or '.join(how_to_install(extra) for extra in _OPTIONAL[name])}"


def _gpus() -> str:
    if not torch.cuda.is_available():
        return "torch sees none"
    return ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
