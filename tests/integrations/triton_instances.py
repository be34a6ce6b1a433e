"""A model of a repository, loaded and asked as Triton Inference Server does it."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import triton_python_backend_utils as pb_utils

from triton_config import read_config

# The server gives its module these only after it has imported a model.py.
_LATER = ("InferenceRequest", "InferenceResponse", "Tensor", "TritonError")


def imported(path: Path) -> ModuleType:
    """Imports a model.py, by the name that the server gives it."""
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}.model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        for name in _LATER:
            patch.delattr(pb_utils, name)
        spec.loader.exec_module(module)
    return module


def instance(exported: Path, kind: str = "CPU", **parameters: str) -> Any:
    """Returns the TritonPythonModel beside an exported file, initialised.

    Args:
        exported: the file.
        kind: of the instance.
        parameters: of the configuration, in the place of those written there.
    """
    config = read_config(exported.parents[1] / "config.pbtxt")
    config["parameters"] |= {name: {"string_value": value} for name, value in parameters.items()}
    model = imported(exported.with_name("model.py")).TritonPythonModel()
    model.initialize(
        {
            "model_config": json.dumps(config),
            "model_instance_kind": kind,
            "model_instance_name": f"{config['name']}_0_0",
            "model_instance_device_id": "0",
            "model_repository": str(exported.parents[1]),
            "model_version": exported.parent.name,
            "model_name": config["name"],
        }
    )
    return model


def request(images: Any, name: str = "images") -> pb_utils.InferenceRequest:
    return pb_utils.InferenceRequest(inputs=[pb_utils.Tensor(name, np.asarray(images))])


def answer(response: pb_utils.InferenceResponse) -> dict[str, np.ndarray]:
    """The outputs of a response that is no error."""
    error = response.error()
    assert error is None, error.message() if error else ""
    return {each.name(): each.as_numpy() for each in response.output_tensors()}


def refusal(response: pb_utils.InferenceResponse) -> tuple[int, str]:
    """Code and message of a response that is an error."""
    error = response.error()
    assert error is not None
    assert not response.output_tensors()
    return error.code(), error.message()
