"""A graph in onnxruntime on the CPU, ready to run."""

from pathlib import Path
from typing import Any

import torch

from gaia_fast import extras


def open_session(model: bytes | Path, needed_by: str) -> Any:
    """Returns an onnxruntime.InferenceSession of a model, given whole or as a file.

    It uses as many threads as PyTorch does now, and none that spins while it waits: spinning threads of several
    sessions slow each other, and PyTorch, down.

    Args:
        model: the graph.
        needed_by: what cannot go on without onnxruntime, for the message.

    Raises:
        BackendError: onnxruntime cannot be imported. What onnxruntime itself raises of a graph is raised as it is.
    """
    onnxruntime = extras.load("onnxruntime", "onnx", needed_by)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
