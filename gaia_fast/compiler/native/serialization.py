"""Executables as plain data and tensors: each kernel by the arguments that it is made with. Nothing is run as code."""

import inspect
import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor

from gaia_fast.compiler.native import kernels, result_kernels
from gaia_fast.compiler.native.executable import Executable, Instruction
from gaia_fast.compiler.native.kernels import Convolution, Kernel
from gaia_fast.ops.convolution.packing import Algorithm, Weights
from gaia_fast.ops.convolution.parts import Part

_KERNELS: dict[str, type[Kernel]] = {
    name: each
    for module in (kernels, result_kernels)
    for name, each in vars(module).items()
    if isinstance(each, type) and issubclass(each, Kernel)
}
_RECORDS: dict[str, type] = {each.__name__: each for each in (Part, kernels.Windows, kernels.Activation)}


def to_data(executable: Executable) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns an executable as plain data, and its constants by name."""
    writer = _Writer()
    instructions = [
        [type(each.kernel).__name__, writer.arguments(each.kernel), list(each.inputs), list(each.outputs)]
        for each in executable.instructions
    ]
    data = {
        "instructions": instructions,
        "weights": writer.weights,
        "inputs": executable.numbered_inputs,
        "outputs": list(executable.outputs),
        "one_by_one": sorted(executable.one_by_one),
    }
    return data, writer.tensors


def from_data(data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Executable:
    """Returns the executable that `to_data` was given.

    Raises:
        Exception: of many kinds, where the data are not those of an executable.
    """
    reader = _Reader(data["weights"], tensors)
    instructions = [
        Instruction(reader.kernel(name, arguments), tuple(inputs), tuple(outputs))
        for name, arguments, inputs, outputs in data["instructions"]
    ]
    inputs = [(number, channels) for number, channels in data["inputs"]]
    executable = Executable(instructions, inputs, tuple(data["outputs"]))
    executable.one_by_one = set(data["one_by_one"])
    return executable


class _Writer:
    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.weights: list[Any] = []
        self._known: dict[int, Any] = {}  # what several kernels share is packed once

    def arguments(self, kernel: Kernel) -> dict[str, Any]:
        parameters = inspect.signature(type(kernel)).parameters.values()
        names = [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
        written = {name: self.value(getattr(kernel, name)) for name in names}
        if isinstance(kernel, Convolution):
            written["measured_for"] = self.value(kernel.measured_for)
        return written

    def value(self, value: Any) -> Any:
        """Plain values as they are, all others as a list that begins with their kind."""
        if isinstance(value, Algorithm):
            return ["algorithm", int(value)]
        if value is None or isinstance(value, (bool, int, str)):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else ["float", str(value)]
        if isinstance(value, (list, tuple)):
            return ["tuple" if isinstance(value, tuple) else "list", *map(self.value, value)]
        if id(value) in self._known:
            return self._known[id(value)]
        if isinstance(value, Tensor):
            self.tensors[f"{len(self.tensors)}"] = value
            return self._known.setdefault(id(value), ["tensor", f"{len(self.tensors) - 1}"])
        if isinstance(value, Weights):
            self.weights.append([self.value(value.weight), value.groups])
            return self._known.setdefault(id(value), ["weights", len(self.weights) - 1])
        return [type(value).__name__, {each.name: self.value(getattr(value, each.name)) for each in fields(value)}]


class _Reader:
    def __init__(self, weights: list[Any], tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self._weights = [Weights(self.value(weight), groups) for weight, groups in weights]

    def kernel(self, name: str, arguments: Mapping[str, Any]) -> Kernel:
        read = {key: self.value(value) for key, value in arguments.items()}
        measured_for = read.pop("measured_for", None)
        kernel = _KERNELS[name](**read)
        if measured_for is not None:
            assert isinstance(kernel, Convolution)
            kernel.measured_for = measured_for
        return kernel

    def value(self, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        kind, *rest = value
        if kind in ("tuple", "list"):
            found = [self.value(each) for each in rest]
            return tuple(found) if kind == "tuple" else found
        (only,) = rest
        if kind == "tensor":
            return self._tensors[only]
        if kind == "weights":
            return self._weights[only]
        if kind == "algorithm":
            return Algorithm(only)
        if kind == "float":
            return float(only)
        return _RECORDS[kind](**{name: self.value(each) for name, each in only.items()})
